"""Parameter counts of the published networks, equality with plain numpy, batch statistics across devices, recomputation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from mmgen_jax.nn import resnet

# torchvision's published counts (parameters, no statistics) minus the 1000-class head.
COUNTS = {
    "resnet18": 11_689_512 - 513_000,
    "resnet34": 21_797_672 - 513_000,
    "resnet50": 25_557_032 - 2_049_000,
    "resnet101": 44_549_160 - 2_049_000,
    "resnet152": 60_192_808 - 2_049_000,
}
# CLIP's visual towers; their last layer is the pool's.
POOLED = {"clip_rn50": (38_316_896, 1024), "clip_rn101": (56_259_936, 512)}
TINY = {"stages": (1, 1), "block": "bottleneck", "width": 4, "stem": "small"}


def tiny(**fields):
    return resnet.make(**{"dtype": jnp.float32, **TINY, **fields})


def images(batch=8, side=8):
    return jnp.asarray(np.random.default_rng(0).normal(size=(batch, side, side, 3)), jnp.float32)


def randomised(tree):
    """Every leaf positive and random, so that zero-initialised scales hide nothing."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(0.1, 1, leaf.shape), jnp.float32), tree)


@pytest.mark.parametrize("variant", COUNTS)
def test_counts_and_grid(variant):
    module = resnet.make(variant=variant, dtype=jnp.bfloat16)
    image = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    grid, variables = jax.eval_shape(
        lambda image: module.init_with_output(jax.random.key(0), image, train=True), image
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == COUNTS[variant]
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    assert grid.shape == (2, 7, 7, 512 if COUNTS[variant] < 2.2e7 else 2048)
    assert grid.dtype == jnp.bfloat16


@pytest.mark.parametrize("variant", POOLED)
def test_counts_of_pooled_variants(variant):
    module = resnet.make(variant=variant, dtype=jnp.bfloat16)
    image = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    pooled, variables = jax.eval_shape(
        lambda image: module.init_with_output(jax.random.key(0), image, train=True), image
    )
    count, features = POOLED[variant]
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == count
    assert (pooled.shape, pooled.dtype) == ((2, features), jnp.bfloat16)
    assert variables["params"]["pool"]["position"].shape == (7 * 7 + 1, 2048)


def convolve(x, kernel, stride):
    """Float64 convolution with padding k // 2, as an explicit sum over kernel positions."""
    kernel = np.asarray(kernel, np.float64)
    if kernel.ndim == 2:
        kernel = kernel[None, None]
    size = kernel.shape[0]
    rows, columns = (-(-side // stride) for side in x.shape[1:3])
    x = np.pad(x, ((0, 0), (size // 2,) * 2, (size // 2,) * 2, (0, 0)))
    out = 0
    for i in range(size):
        for j in range(size):
            window = x[
                :, i : i + stride * (rows - 1) + 1 : stride, j : j + stride * (columns - 1) + 1 : stride
            ]
            out = out + window @ kernel[i, j]
    return out


def halve(x):
    """Means of 2x2 squares."""
    return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_equals_numpy(block, clip):
    """`clip`: the deep stem, average pools in place of strides."""
    module = tiny(block=block, **({"stem": "deep", "antialias": True} if clip else {}))
    image = images(batch=2, side=16 if clip else 8)
    variables = randomised(module.init(jax.random.key(0), image, train=False))
    params, stats = variables["params"], variables["batch_stats"]

    def norm(x, scope, name):
        p, s = (jax.tree.map(np.float64, t[scope][name] if scope else t[name]) for t in (params, stats))
        return (x - s["mean"]) / np.sqrt(s["var"] + 1e-5) * p["scale"] + p["bias"]

    def conv(x, scope, name, stride):
        return convolve(x, (params[scope] if scope else params)[name]["kernel"], stride)

    x = np.float64(image)
    for number, stride in (("1", 2), ("2", 1), ("3", 1)) if clip else (("", 1),):
        x = np.maximum(norm(conv(x, None, f"stem_conv{number}", stride), None, f"stem_norm{number}"), 0)
    x = halve(x) if clip else x
    for scope, stride in (("stage1_block1", 1), ("stage2_block1", 2)):
        strides = (stride, 1) if block == "basic" else (1, stride, 1)
        y = x
        for i, s in enumerate(strides, start=1):
            y = norm(conv(y, scope, f"conv{i}", 1 if clip else s), scope, f"norm{i}")
            y = np.maximum(y, 0) if i < len(strides) else y
            y = halve(y) if clip and s == 2 else y
        if "shortcut_conv" in params[scope]:
            x = halve(x) if clip and stride == 2 else x
            x = norm(conv(x, scope, "shortcut_conv", 1 if clip else stride), scope, "shortcut_norm")
        x = np.maximum(x + y, 0)
    got = module.apply(variables, image, train=False)
    side = 2 if clip else 4
    assert got.shape == (2, side, side, 8 if block == "basic" else 32)
    np.testing.assert_allclose(got, x, rtol=1e-5)


def test_imagenet_stem():
    module = tiny(stem="imagenet", stages=(1,))
    grid = jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), images(1, 32), train=False)[0])
    assert grid.shape == (1, 8, 8, 16)


def test_pools():
    image = images(batch=2)
    fields = {"pool": "attention", "pool_features": 6, "pool_heads": 4, "image_size": 8}
    variables = tiny(**fields).init(jax.random.key(0), image, train=False)
    assert variables["params"]["pool"]["position"].shape == (4 * 4 + 1, 32)
    assert tiny(**fields).apply(variables, image, train=False).shape == (2, 6)
    assert tiny(**fields).apply(variables, images(2, 12), train=False).shape == (2, 6)
    del variables["params"]["pool"]
    grid = tiny().apply(variables, image, train=False)
    mean = tiny(pool="mean").apply(variables, image, train=False)
    np.testing.assert_allclose(mean, np.asarray(grid).mean((1, 2)), rtol=1e-5, atol=1e-6)


def test_average_pool_of_an_odd_grid_takes_what_is_there():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 3, 5, 2)), jnp.float32)
    got = resnet.average_pool(x, 2)
    assert got.shape == (1, 2, 3, 2)
    np.testing.assert_allclose(got[0, 0, 1], np.asarray(x)[0, :2, 2:4].mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(got[0, 1, 2], x[0, 2, 4], rtol=1e-6)


def test_recomputation_changes_nothing(same):
    image = images(batch=2)
    variables = randomised(tiny().init(jax.random.key(0), image, train=False))

    def gradient(remat):
        def loss(params):
            out, updated = tiny(remat=remat).apply(
                {**variables, "params": params}, image, train=True, mutable="batch_stats"
            )
            return jnp.mean(jnp.sin(out)), updated

        step = jax.value_and_grad(loss, has_aux=True)
        assert ("remat" in str(jax.make_jaxpr(step)(variables["params"]))) == remat
        return jax.jit(step)(variables["params"])

    same(gradient(True), gradient(False), rtol=1e-4, atol=1e-6)


def test_statistics_over_devices_equal_whole_batch():
    image = images()
    variables = randomised(tiny().init(jax.random.key(0), image, train=False))
    whole, updated = jax.jit(lambda v, x: tiny().apply(v, x, train=True, mutable="batch_stats"))(
        variables, image
    )

    def local(variables, image):
        return tiny(axis_name="data").apply(variables, image, train=True, mutable="batch_stats")

    batch, same = PartitionSpec("data"), PartitionSpec()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    mapped = jax.shard_map(local, mesh=mesh, in_specs=(same, batch), out_specs=(batch, same))
    split, updated_split = jax.jit(mapped)(variables, image)
    np.testing.assert_allclose(split, whole, rtol=1e-4, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), updated, updated_split)
    # Momentum 0.9: a tenth of the batch's mean enters.
    stem = np.asarray(convolve(np.float64(image), variables["params"]["stem_conv"]["kernel"], 1))
    expected = 0.9 * variables["batch_stats"]["stem_norm"]["mean"] + 0.1 * stem.mean((0, 1, 2)).astype(
        np.float32
    )
    np.testing.assert_allclose(updated["batch_stats"]["stem_norm"]["mean"], expected, rtol=1e-5)


def test_unknown_names():
    with pytest.raises(ValueError, match='Did you mean "resnet50"'):
        resnet.make(variant="resnet5", dtype=jnp.float32)
    with pytest.raises(ValueError, match=r'Unknown key \"widht\" in resnet\. Did you mean "width"'):
        resnet.make(variant="resnet50", dtype=jnp.float32, widht=3)
    with pytest.raises(ValueError, match="needs a value for: stages, block"):
        resnet.make(dtype=jnp.float32)
    with pytest.raises(ValueError, match='Did you mean "small"'):
        tiny(stem="smal").init(jax.random.key(0), images(), train=False)
    with pytest.raises(ValueError, match='Did you mean "basic"'):
        tiny(block="basik").init(jax.random.key(0), images(), train=False)
    with pytest.raises(ValueError, match='Unknown ResNet pool "atention"\\. Did you mean "attention"'):
        tiny(pool="atention").init(jax.random.key(0), images(), train=False)
    with pytest.raises(ValueError, match="3 heads do not divide the 32 features"):
        tiny(pool="attention", pool_heads=3).init(jax.random.key(0), images(), train=False)
