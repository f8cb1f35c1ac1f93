"""Published parameter counts of whole classifiers; logits are the head of the tower's features; a tower that gives a grid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmgen_jax.models.classifier import Classifier
from mmgen_jax.nn import convnet, pixels, resnet, vit

TOKEN = {"class_token": True, "pool": "class"}
# With 1000 classes: torchvision's table of models (parameters, no statistics), and timm's for vit_s.
COUNTS = [
    (resnet, {"variant": "resnet18", "pool": "mean"}, 11_689_512),
    (resnet, {"variant": "resnet34", "pool": "mean"}, 21_797_672),
    (resnet, {"variant": "resnet50", "pool": "mean"}, 25_557_032),
    (resnet, {"variant": "resnet101", "pool": "mean"}, 44_549_160),
    (resnet, {"variant": "resnet152", "pool": "mean"}, 60_192_808),
    (vit, {"variant": "vit_s", **TOKEN}, 22_050_664),
    (vit, {"variant": "vit_b", **TOKEN}, 86_567_656),
    (vit, {"variant": "vit_b", "patch": 32, **TOKEN}, 88_224_232),
    (vit, {"variant": "vit_l", "scan": True, **TOKEN}, 304_326_632),
]


@pytest.mark.parametrize(("tower", "fields", "count"), COUNTS, ids=lambda x: str(x))
def test_counts(tower, fields, count):
    module = Classifier(tower.make(dtype=jnp.bfloat16, **fields), 1000, dtype=jnp.bfloat16)
    image = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.uint8)
    logits, variables = jax.eval_shape(
        lambda image: module.init_with_output(jax.random.key(0), image, train=False), image
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == count
    assert set(variables["params"]) == {"tower", "head"}
    assert logits.shape == (2, 1000)
    assert {leaf.dtype for leaf in jax.tree.leaves((logits, variables))} == {jnp.dtype(jnp.float32)}


def test_logits_are_the_head_of_the_tower():
    image = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8))
    tower = convnet.make(widths=(4,), blocks=0, pool="mean", dtype=jnp.float32)
    module = Classifier(tower, 3, pixels="half")
    variables = module.init(jax.random.key(0), image, train=False)
    inner = {kind: tree["tower"] for kind, tree in variables.items()}
    features = tower.apply(inner, pixels.normalise(image, "half", jnp.float32), train=False)
    head = jax.tree.map(np.float64, variables["params"]["head"])
    expected = np.float64(features) @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(module.apply(variables, image, train=False), expected, rtol=1e-5, atol=1e-6)


def test_a_grid_is_refused():
    module = Classifier(convnet.make(dtype=jnp.float32), 3)
    image = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.uint8)
    with pytest.raises(ValueError, match=r"gives a grid, \(2, 2, 2, 128\); set its pool"):
        jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), image)


def test_colours_apart():
    """Each colour's label comes from that colour alone, and in the same way."""
    image = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    tower = convnet.make(widths=(4,), blocks=0, pool="flatten", dtype=jnp.float32)
    module = Classifier(tower, 5, labels=3, apart=True, pixels="half")
    variables = module.init(jax.random.key(0), image)
    logits = np.asarray(module.apply(variables, image))
    assert logits.shape == (2, 3, 5)
    assert variables["params"]["tower"]["conv1"]["kernel"].shape == (3, 3, 1, 4)
    turned = module.apply(variables, image[..., [2, 0, 1]])
    np.testing.assert_allclose(turned, logits[:, [2, 0, 1]], rtol=1e-5, atol=1e-6)
    features = module.apply(variables, image, method="features")
    head = variables["params"]["head"]
    assert features.shape == (2, 3 * 64)
    expected = features.reshape(2, 3, 64) @ head["kernel"] + head["bias"][None, None]
    np.testing.assert_allclose(expected, logits, rtol=1e-5, atol=1e-5)
