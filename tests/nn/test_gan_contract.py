"""What every generator and discriminator promises: shapes, types, texts that matter, statistics, unknown fields."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmgen_jax.nn import attngan, dcgan, mlp_gan, resnet_gan, stackgan
from mmgen_jax.nn.text_conditioning import Text

B, F, T, Z = 4, 6, 3, 5
PAIR, SMALL = (8, 16), {"z_features": Z, "width": 4}
STAGED = {**SMALL, "image_sizes": PAIR, "augmented": 4, "blocks": 1}
# Module, fields of generator and of discriminator, sides of the images, whether a text brings logits of both kinds.
CASES = {
    "mlp": (mlp_gan, {"z_features": Z, "shape": (1, 1, 2)}, {}, (1,), False),
    "mlp_spectral": (mlp_gan, {"z_features": Z, "depth": 1}, {"depth": 2, "spectral": True}, (1,), False),
    "dcgan": (dcgan, {**SMALL, "image_size": 16}, {"width": 4}, (16,), False),
    "dcgan_projection": (
        dcgan,
        {**SMALL, "image_size": 14},
        {"width": 4, "condition": "projection", "batch_norm": False},
        (14,),
        False,
    ),
    "dcgan_spectral": (dcgan, {**SMALL, "image_size": 8}, {"width": 4, "spectral": True}, (8,), False),
    "resnet": (resnet_gan, {**SMALL, "image_size": 16, "max_width": 6}, {"width": 4}, (16,), False),
    "stackgan": (stackgan, STAGED, {"width": 4}, PAIR, False),
    "tree": (stackgan, {**STAGED, "joint": True}, {"width": 4, "joint": True, "stages": 2}, PAIR, True),
    "attngan": (attngan, STAGED, {"width": 4, "stages": 2}, PAIR, True),
}
TEXTLESS = [name for name in CASES if name != "attngan"]
NOISE = jnp.asarray(np.random.default_rng(0).normal(size=(B, Z)), jnp.float32)


def text(seed=1):
    rng = np.random.default_rng(seed)
    sentence, words = rng.normal(size=(B, F)), rng.normal(size=(B, T, F))
    return Text(
        jnp.float32(sentence), jnp.float32(words), jnp.arange(T)[None] < jnp.asarray([3, 2, 1, 3])[:, None]
    )


def make(name, dtype=jnp.float32, axis_name=None):
    module, generator, discriminator, *_ = CASES[name]
    shared = {"dtype": dtype, "axis_name": axis_name}
    return (
        module.make_generator(**shared, **generator),
        module.make_discriminator(**shared, **discriminator),
    )


@functools.partial(jax.jit, static_argnums=(0, 1), static_argnames=("train", "method"))
def apply(module, kinds, variables, *inputs, train=False, method=None):
    return module.apply(variables, *inputs, train=train, method=method, mutable=kinds)


def run(module, variables, *inputs, **fields):
    """-> outputs, the variables that may change, afterwards."""
    kinds = tuple(kind for kind in variables if kind != "params")
    return apply(module, kinds, variables, *inputs, **fields)


@functools.cache
def made(name):
    """Generator, its variables, discriminator, its variables: parameters random, so that no zero hides anything."""
    generator, discriminator = make(name)

    def init():
        out, variables = generator.init_with_output(jax.random.key(0), NOISE, text(), train=False)
        return variables, discriminator.init(jax.random.key(1), out.images, text(), train=False)

    rng = np.random.default_rng(2)
    randomised = [
        {**tree, "params": jax.tree.map(lambda x: jnp.float32(rng.normal(0, 0.3, x.shape)), tree["params"])}
        for tree in jax.jit(init)()
    ]
    return generator, randomised[0], discriminator, randomised[1]


def texts(name):
    return (text(), None) if name in TEXTLESS else (text(),)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_shapes_and_types(name, dtype):
    *_, sides, both = CASES[name]
    channels = 2 if name.startswith("mlp") else 3
    for condition in texts(name):
        generator, discriminator = make(name, dtype)

        def init(condition=condition, generator=generator, discriminator=discriminator):
            out, variables = generator.init_with_output(jax.random.key(0), NOISE, condition, train=True)
            judged = discriminator.init_with_output(jax.random.key(0), out.images, condition, train=True)
            return out, variables, *judged

        out, first, judged, second = jax.eval_shape(init)
        assert [(x.shape, x.dtype) for x in out.images] == [
            ((B, side, side, channels), jnp.float32) for side in sides
        ]
        assert {leaf.dtype for leaf in jax.tree.leaves((out, first, judged, second))} == {
            jnp.dtype("float32")
        }
        stages = len(sides)
        assert (len(judged.conditional), len(judged.unconditional)) == (
            (stages if condition else 0),
            (stages if both or condition is None else 0),
        )
        assert {x.shape for x in jax.tree.leaves(judged)} == {(B,)}
        staged = {"mean", "log_variance"} if len(sides) > 1 and condition else set()
        assert set(out.statistics) == staged


@pytest.mark.parametrize("name", CASES)
def test_text_matters(name):
    generator, first, discriminator, second = made(name)
    images = [run(generator, first, NOISE, words)[0].images for words in (text(), text(3))]
    for one, other in zip(*images, strict=True):
        assert np.isfinite(one).all() and not np.allclose(one, other)
        if not name.startswith("mlp"):
            assert np.abs(one).max() <= 1
    judged = [run(discriminator, second, images[0], words)[0] for words in (text(), text(3))]
    for one, other in zip(judged[0].conditional, judged[1].conditional, strict=True):
        assert np.isfinite(one).all() and not np.allclose(one, other)
    for one, other in zip(judged[0].unconditional, judged[1].unconditional, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", CASES)
def test_judging_features_is_judging_images(name, same):
    generator, first, discriminator, second = made(name)
    images = run(generator, first, NOISE, text())[0].images
    whole, _ = run(discriminator, second, images, text())
    features, _ = run(discriminator, second, images, method="features")
    assert isinstance(features, tuple) and len(features) == len(images)
    same(run(discriminator, second, features, text(), method="judge")[0], whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_statistics_move_in_training_alone(name, same):
    generator, first, discriminator, second = made(name)
    for module, variables, inputs in (
        (generator, first, (NOISE, text())),
        (discriminator, second, (run(generator, first, NOISE, text())[0].images, text())),
    ):
        before = {kind: tree for kind, tree in variables.items() if kind != "params"}
        same(run(module, variables, *inputs, train=False)[1], before)
        after = jax.tree.leaves(run(module, variables, *inputs, train=True)[1])
        assert all(
            not np.array_equal(a, b)
            for a, b in zip(after, jax.tree.leaves(before), strict=True)
            if a.size > 1
        )


@pytest.mark.parametrize("name", ["dcgan", "resnet", "tree"])
def test_statistics_of_two_devices_are_those_of_the_batch(name, same):
    _, first, _, second = made(name)
    whole, apart = make(name), make(name, axis_name="data")
    images = run(whole[0], first, NOISE, text())[0].images

    def half(tree):
        return jax.tree.map(lambda x: x.reshape(2, B // 2, *x.shape[1:]), tree)

    for i, variables, inputs in ((0, first, (NOISE, text())), (1, second, (images, text()))):
        if "batch_stats" not in variables:
            continue
        expected, expected_variables = run(whole[i], variables, *inputs, train=True)
        mapped = jax.vmap(
            lambda *inputs, i=i, variables=variables: run(apart[i], variables, *inputs, train=True),
            axis_name="data",
        )
        out, changed = mapped(*half(inputs))
        merged = jax.tree.map(lambda x: x.reshape(B, *x.shape[2:]), out)
        same(merged, expected, rtol=1e-3, atol=1e-4)
        same(jax.tree.map(lambda x: x[0], changed), expected_variables, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("module", [mlp_gan, dcgan, resnet_gan, stackgan, attngan])
def test_unknown_fields_are_refused(module):
    with pytest.raises(ValueError, match=r'Unknown key "widht" in the \w+ generator. Did you mean "width"'):
        module.make_generator(dtype=jnp.float32, widht=3)
    with pytest.raises(
        ValueError, match=r'Unknown key "widht" in the \w+ discriminator. Did you mean "width"'
    ):
        module.make_discriminator(dtype=jnp.float32, widht=3)
