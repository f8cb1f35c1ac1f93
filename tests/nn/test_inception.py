"""Published parameter counts, the outputs' shapes, padding in averages, and pixels against plain loops and PIL."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mmgen_jax.nn import inception

# torchvision's 27,161,264 without the auxiliary head's 3,326,696; the FID papers' has eight classes more.
COUNTS = {"torchvision": 23_834_568, "fid": 23_834_568 + 8 * 2049}


def shapes(side, batch=2, **fields):
    module = inception.make(**{"dtype": jnp.float32, **fields})
    image = jax.ShapeDtypeStruct((batch, side, side, 3), jnp.float32)
    return jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x, train=False), image)


@pytest.mark.parametrize("variant", COUNTS)
def test_counts_and_outputs(variant):
    outputs, variables = shapes(299, variant=variant, dtype=jnp.bfloat16)
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == COUNTS[variant]
    classes = inception.VARIANTS[variant]["classes"]
    sizes = [(2, 17, 17, 768), (2, 2048), (2, classes), (2, classes)]
    assert [x.shape for x in outputs] == sizes
    assert {x.dtype for x in jax.tree.leaves((outputs, variables))} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    "output, size", [("grid", (2, 3, 3, 768)), ("features", (2, 2048)), ("logits", (2, 1008))]
)
def test_one_output_alone_stops_there(output, size):
    shape, variables = shapes(75, output=output)
    assert shape.shape == size
    assert ("mixed_7a" in variables["params"]) == (output != "grid")
    assert ("head" in variables["params"]) == (output == "logits")


def test_training_updates_the_statistics():
    module = inception.make(output="grid", dtype=jnp.float32)
    image = jax.ShapeDtypeStruct((2, 75, 75, 3), jnp.float32)

    def step(image):
        variables = module.init(jax.random.key(0), image, train=True)
        return variables, module.apply(variables, image, train=True, mutable="batch_stats")[1]

    before, after = jax.eval_shape(step, image)
    assert jax.tree.structure(before["batch_stats"]) == jax.tree.structure(after["batch_stats"])


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"variant": "fidd"}, 'Unknown Inception variant "fidd". Did you mean "fid"'),
        ({"output": "grids"}, 'Unknown Inception output "grids". Did you mean "grid"'),
        ({"last_pool": "min"}, 'Unknown Inception last_pool "min"'),
        ({"depth": 3}, 'Unknown key "depth" in inception'),
    ],
)
def test_unknown_names(fields, message):
    with pytest.raises(ValueError, match=message):
        shapes(75, **fields)


def test_small_images_are_an_error():
    with pytest.raises(ValueError, match="75 px or more, these are 74 x 74: resize them to 299"):
        shapes(74)


# --- pixels ---


def bilinear_loop(image, side):
    """TensorFlow 1's rule pixel by pixel, in float64."""
    height, width, channels = image.shape
    out = np.zeros((side, side, channels))
    for row in range(side):
        for column in range(side):
            y, x = row * height / side, column * width / side
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            upper = image[top, left] * (1 - (x - left)) + image[top, right] * (x - left)
            lower = image[bottom, left] * (1 - (x - left)) + image[bottom, right] * (x - left)
            out[row, column] = upper * (1 - (y - top)) + lower * (y - top)
    return out


@pytest.mark.parametrize("size, side", [((7, 5), 12), ((12, 9), 5), ((6, 6), 6)])
def test_resizing_as_tensorflow_1(size, side):
    image = np.random.default_rng(0).uniform(0, 255, (2, *size, 3)).astype(np.float32)
    got = inception.resize(jnp.asarray(image), side, method="tf1")
    expect = [bilinear_loop(x.astype(np.float64), side) for x in image]
    np.testing.assert_allclose(got, expect, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("size, side", [((7, 5), 12), ((30, 21), 8)])
def test_antialiased_resizing_as_pil(size, side):
    image = np.random.default_rng(0).uniform(0, 255, (2, *size, 3)).astype(np.float32)
    got = inception.resize(jnp.asarray(image), side, method="antialias")
    for x, ours in zip(image, np.asarray(got), strict=True):
        channels = [
            Image.fromarray(x[..., c]).resize((side, side), Image.Resampling.BICUBIC) for c in range(3)
        ]
        np.testing.assert_allclose(ours, np.stack([np.asarray(c) for c in channels], -1), atol=1e-3)


@pytest.mark.parametrize("resize", ["tf1", "antialias"])
def test_bytes_become_what_the_weights_want(resize):
    levels = np.array([0, 128, 255], np.uint8)
    image = jnp.asarray(np.broadcast_to(levels[:, None, None, None], (3, 32, 32, 3)))
    got = jax.jit(lambda x: inception.prepare(x, resize=resize))(image)
    assert got.shape == (3, 299, 299, 3) and got.dtype == jnp.float32
    np.testing.assert_allclose(got[:, 5, 7, 0], [-1, 0, 127 / 128], atol=1e-5)


def test_an_unknown_way_to_resize():
    with pytest.raises(ValueError, match=r'Unknown way to resize "tf2"\. Did you mean "tf1"'):
        inception.prepare(jnp.zeros((1, 8, 8, 3), jnp.uint8), resize="tf2")
