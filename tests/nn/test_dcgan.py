"""DCGAN's parameter counts, sizes, initial values, and both ways in which a sentence enters the discriminator, against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmgen_jax.nn import dcgan
from mmgen_jax.nn.text_conditioning import Text

F, D = 6, 8
rng = np.random.default_rng(0)
TEXT = Text(jnp.float32(rng.normal(size=(2, F))), jnp.zeros((2, 1, F)), jnp.ones((2, 1), bool))


def shapes(image_size, text=None):
    generator = dcgan.make_generator(dtype=jnp.float32, image_size=image_size)
    discriminator = dcgan.make_discriminator(dtype=jnp.float32)

    def init():
        out, variables = generator.init_with_output(jax.random.key(0), jnp.zeros((2, 100)), text, train=True)
        return out.images[0], variables, discriminator.init(jax.random.key(0), out.images, text, train=True)

    return jax.eval_shape(init)


def count(variables):
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def test_counts_of_the_reference():
    """PyTorch's DCGAN example at 64 px, with ngf = ndf = 64 and z = 100."""
    _, generator, discriminator = shapes(64)
    assert (count(generator), count(discriminator)) == (3_576_704, 2_765_568)


@pytest.mark.parametrize("size", [28, 32, 64, 128])
def test_sizes(size):
    image, generator, discriminator = shapes(size, TEXT)
    assert image.shape == (2, size, size, 3)
    side = 7 if size == 28 else 4
    top = 64 * size // side // 2
    assert generator["params"]["first"]["kernel"].shape == (228, side * side * top)
    assert generator["params"]["text"]["project"]["kernel"].shape == (F, 128)
    assert discriminator["params"]["head"]["joined_conv"]["kernel"].shape == (1, 1, top + 128, top)


@pytest.mark.parametrize("size", [28, 32])
def test_resize(size):
    """Copies and 3x3 convolutions, and a last hidden grid of the image's own size."""
    generator = dcgan.make_generator(dtype=jnp.float32, image_size=size, width=8, resize=True)
    image, variables = jax.eval_shape(
        lambda: generator.init_with_output(jax.random.key(0), jnp.zeros((2, 100)), None, train=True)
    )
    params = variables["params"]
    assert image.images[0].shape == (2, size, size, 3)
    kernels = {name: part["kernel"].shape for name, part in params.items() if name.startswith(("up", "out"))}
    first = params["first"]["kernel"].shape[1] // (49 if size == 28 else 16)
    widths = [first // 2**i for i in range(len(kernels))]
    ups = {f"up{i + 1}": (3, 3, widths[i], widths[i + 1]) for i in range(len(kernels) - 1)}
    assert kernels == {**ups, "out": (3, 3, 4, 3)}


@pytest.mark.parametrize(("shape", "told"), [((48, 48), "48x48"), ((32, 64), "32x64"), ((4, 4), "4x4")])
def test_impossible_sizes(shape, told):
    discriminator = dcgan.make_discriminator(dtype=jnp.float32)
    with pytest.raises(
        ValueError, match=rf"square images of 8, 14, 16, 28, 32, 56, 64,.* not of {told}: resize"
    ):
        jax.eval_shape(
            lambda: discriminator.init(jax.random.key(0), (jnp.zeros((2, *shape, 3)),), None, train=False)
        )
    if shape[0] == shape[1]:
        with pytest.raises(ValueError, match="square images of"):
            shapes(shape[0])


def test_initial_values():
    generator = dcgan.make_generator(dtype=jnp.float32, image_size=16, width=32)
    tree = generator.init(jax.random.key(0), jnp.zeros((2, 100)), None, train=False)["params"]
    for kernel in (tree["first"]["kernel"], tree["up1"]["kernel"]):
        assert abs(float(kernel.std()) - 0.02) < 0.001
    scale = np.concatenate([tree[f"norm{i}"]["scale"] for i in (0, 1)])
    assert abs(scale.mean() - 1) < 0.01 and 0.01 < scale.std() < 0.03


@pytest.mark.parametrize("condition", ["replicate", "projection"])
def test_head_equals_numpy(condition):
    head = dcgan.Head(condition, 3, spectral=False, batch_norm=False, dtype=jnp.float32, axis_name=None)
    x = rng.normal(size=(2, 4, 4, D))
    shape = jax.eval_shape(lambda: head.init(jax.random.key(0), jnp.float32(x), TEXT, train=False))
    variables = jax.tree.map(lambda leaf: jnp.float32(rng.normal(size=leaf.shape)), shape)
    tree = jax.tree.map(np.float64, variables["params"])
    sentence = np.float64(TEXT.sentence)
    sentence = sentence - sentence.mean(axis=-1, keepdims=True)
    sentence = sentence / np.sqrt((sentence**2).mean(axis=-1, keepdims=True) + 1e-6)
    if condition == "replicate":
        small = sentence @ tree["text"]["project"]["kernel"] + tree["text"]["project"]["bias"]
        small = np.where(small > 0, small, 0.2 * small)
        joined = np.concatenate([x, np.broadcast_to(small[:, None, None], (2, 4, 4, 3))], axis=-1)
        y = joined @ tree["joined_conv"]["kernel"][0, 0]
        y = y + tree["joined_conv"]["bias"]
        expected = np.where(y > 0, y, 0.2 * y).reshape(2, -1) @ tree["logit"]["kernel"]
    else:
        expected = x.reshape(2, -1) @ tree["logit"]["kernel"]
        direction = sentence @ tree["text"]["kernel"]
        expected = expected + (direction * x.sum(axis=(1, 2))).sum(axis=-1, keepdims=True)
    expected = expected + tree["logit"]["bias"]
    logit = head.apply(variables, jnp.float32(x), TEXT, train=False)
    np.testing.assert_allclose(logit, expected[:, 0], rtol=1e-4, atol=1e-4)


def test_unknown_condition():
    discriminator = dcgan.make_discriminator(dtype=jnp.float32, condition="project")
    with pytest.raises(
        ValueError, match=r'Unknown discriminator condition "project". Did you mean "projection"'
    ):
        jax.eval_shape(
            lambda: discriminator.init(jax.random.key(0), (jnp.zeros((2, 8, 8, 3)),), TEXT, train=False)
        )


def test_a_logit_of_the_image_alone():
    """With `unconditional` there are both; without a text the one logit is unconditional anyway, and that is said."""
    discriminator = dcgan.make_discriminator(dtype=jnp.float32, width=4, batch_norm=False, unconditional=True)
    image = (jnp.float32(rng.normal(size=(2, 8, 8, 3))),)
    variables = discriminator.init(jax.random.key(0), image, TEXT, train=False)
    judged = discriminator.apply(variables, image, TEXT, train=False)
    other = discriminator.apply(variables, image, TEXT._replace(sentence=TEXT.sentence[::-1]), train=False)
    assert len(judged.conditional) == len(judged.unconditional) == 1
    np.testing.assert_array_equal(judged.unconditional[0], other.unconditional[0])
    assert np.any(judged.conditional[0] != other.conditional[0])
    with pytest.raises(ValueError, match=r"unconditional=True is for models with text"):
        discriminator.init(jax.random.key(0), image, None, train=False)
