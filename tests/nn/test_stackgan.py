"""StackGAN's published widths, frozen stages, the judged stages, statistics of several stages, impossible sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmgen_jax.nn import stackgan
from mmgen_jax.nn.text_conditioning import Text

TEXT = Text(jnp.ones((2, 6)), jnp.ones((2, 3, 6)), jnp.ones((2, 3), bool))
Z = jnp.asarray(np.random.default_rng(0).normal(size=(2, 100)), jnp.float32)
SMALL = {"image_sizes": [8, 16], "width": 2, "blocks": 1, "augmented": 3, "dtype": jnp.float32}


def shapes(generator, discriminator, text=TEXT):
    def init():
        out, variables = generator.init_with_output(jax.random.key(0), Z, text, train=True)
        return out, variables, discriminator.init(jax.random.key(0), out.images, text, train=True)

    out, first, second = jax.eval_shape(init)
    return out, first["params"], second["params"]


def test_published_widths():
    """StackGAN for CUB: N_g = 192, N_d = 64, stage I from 1,536 features at 4x4, stage II refines 768 at 16x16."""
    make = {"dtype": jnp.float32}
    out, first, second = shapes(stackgan.make_generator(**make), stackgan.make_discriminator(**make))
    assert [x.shape[1] for x in out.images] == [64, 256]
    assert first["stage1"]["first"]["kernel"].shape == (228, 4 * 4 * 1536)
    assert first["stage1"]["up4"]["conv"]["kernel"].shape == (3, 3, 192, 96)
    assert first["stage2"]["joined"]["conv"]["kernel"].shape == (3, 3, 768 + 128, 768)
    assert first["stage2"]["block4"]["layer2"]["conv"]["kernel"].shape == (3, 3, 768, 768)
    assert first["stage2"]["up4"]["conv"]["kernel"].shape == (3, 3, 96, 48)
    assert second["stage2"]["down"]["down6"]["kernel"].shape == (4, 4, 1024, 2048)
    assert second["stage2_both"]["joined_conv"]["kernel"].shape == (3, 3, 512 + 128, 512)


def test_published_widths_of_the_tree():
    """StackGAN-v2: N_g = 64; three stages with 64, 32 and 16 features."""
    make = {"dtype": jnp.float32, "joint": True}
    out, first, second = shapes(stackgan.make_generator(**make), stackgan.make_discriminator(**make))
    assert [x.shape[1] for x in out.images] == [64, 128, 256]
    assert [first[f"stage{i}_image"]["kernel"].shape[2] for i in (1, 2, 3)] == [64, 32, 16]
    assert first["stage1"]["first"]["kernel"].shape == (228, 4 * 4 * 1024 * 2)
    assert {"stage1_alone", "stage3_alone", "stage3_both"} <= set(second)


def test_frozen_stages_learn_nothing(same):
    for frozen in (True, False):
        generator = stackgan.make_generator(**SMALL, frozen=frozen)
        variables = generator.init(jax.random.key(0), Z, TEXT, train=False)

        def loss(params, generator=generator, variables=variables):
            out, changed = generator.apply(
                {**variables, "params": params}, Z, TEXT, train=True, mutable=["batch_stats"]
            )
            return jnp.sum(jnp.square(out.images[1])), (out, changed["batch_stats"])

        slopes, (out, statistics) = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
        moved = {name: any(np.any(x) for x in jax.tree.leaves(tree)) for name, tree in slopes.items()}
        assert moved.pop("stage2") and moved.pop("stage2_image")
        del moved["stage2_text"]  # the draw's deviation has no part in an image without noise
        assert set(moved.values()) == {not frozen}
        assert out.statistics["mean"].shape == (2, 3 if frozen else 6)
        if frozen:
            same(statistics["stage1"], variables["batch_stats"]["stage1"])


def test_one_stage_alone():
    generator = stackgan.make_generator(**{**SMALL, "image_sizes": [16]})
    discriminator = stackgan.make_discriminator(stages=1, width=2, dtype=jnp.float32)
    out, first, second = shapes(generator, discriminator)
    assert [x.shape for x in out.images] == [(2, 16, 16, 3)]
    assert set(first) == {"stage1", "stage1_image", "stage1_text"} and "stage1" in second


def test_judging_the_last_stage_alone():
    generator = stackgan.make_generator(**SMALL, frozen=True)
    discriminator = stackgan.make_discriminator(stages=1, width=2, dtype=jnp.float32)
    _, _, second = shapes(generator, discriminator)
    assert set(second) == {"stage1", "stage1_both"}
    assert set(second["stage1"]["down"]) == {"down1", "down2", "norm2"}  # 16 px, two halvings


def test_noise_changes_images():
    generator = stackgan.make_generator(**SMALL, joint=True)
    variables = generator.init(jax.random.key(0), Z, TEXT, train=False)
    draw = jax.jit(
        lambda rng: generator.apply(variables, Z, TEXT, train=False, rngs={"noise": rng}).images[1]
    )
    assert not np.allclose(draw(jax.random.key(0)), draw(jax.random.key(1)), atol=1e-6)


@pytest.mark.parametrize("sizes", [(8, 24), (16, 8), (8, 8), (8, 12)])
def test_impossible_sizes(sizes):
    for joint in (True, False):
        generator = stackgan.make_generator(**{**SMALL, "image_sizes": sizes}, joint=joint)
        after = f"so {sizes[0]} px can be followed by {2 * sizes[0]}, .*, not by {sizes[1]}"
        with pytest.raises(ValueError, match=after):
            jax.eval_shape(lambda: generator.init(jax.random.key(0), Z, TEXT, train=False))


def test_more_stages_than_images():
    discriminator = stackgan.make_discriminator(stages=3, dtype=jnp.float32)
    images = (jnp.zeros((2, 8, 8, 3)), jnp.zeros((2, 16, 16, 3)))
    with pytest.raises(
        ValueError, match=r"judges 3 stages, but the generator makes 2: set task.discriminator.stages to 2"
    ):
        jax.eval_shape(lambda: discriminator.init(jax.random.key(0), images, TEXT, train=False))
