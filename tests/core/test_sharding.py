"""The mesh, the rules that place arrays on it, and batches."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from mmgen_jax.core import sharding


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def spec(tree, layout):
    """{path: PartitionSpec without trailing None}"""
    placed = jax.tree_util.tree_leaves_with_path(sharding.infer(tree, layout))
    return {sharding.path_name(path): P(*place.spec) for path, place in placed}


def test_sizes():
    assert sharding.make().mesh.shape == {"data": 8, "fsdp": 1, "tensor": 1}
    layout = sharding.make(data=2, fsdp=-1, tensor=2)
    assert layout.mesh.shape == {"data": 2, "fsdp": 2, "tensor": 2}
    assert layout.cuts == 4
    assert sharding.make(devices=jax.devices()[:3]).cuts == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": 3}, r"data=3 x fsdp=1 x tensor=1 does not fit 8 device\(s\)\. Set mesh\.data=-1"),
        ({"data": -1, "fsdp": 3}, r"data=-1 x fsdp=3 x tensor=1 does not fit 8 device"),
        ({"data": -1, "fsdp": 16}, r"does not fit 8 device"),
        ({"data": 0}, r"does not fit 8 device"),
        ({"fsdp": 0}, r"does not fit 8 device"),
        ({"data": -2, "fsdp": -4}, r"does not fit 8 device"),
        ({"data": -1, "fsdp": -1}, "at most one of data, fsdp, tensor may be -1"),
        ({"mode": "pjit"}, 'mesh.mode is "pjit"; it is one of: jit, pmap'),
        ({"mode": "pmap", "fsdp": 2}, "fsdp and tensor must be 1"),
    ],
)
def test_sizes_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        sharding.make(**options)


def test_fsdp_cuts_the_largest_dimension_that_divides():
    layout = sharding.make(data=2, fsdp=4, min_mb=0.0)
    tree = {
        "wide": shape(8, 64),
        "tall": shape(64, 8),
        "tie": shape(16, 16),
        "odd": shape(7, 8),
        "prime": shape(7, 5),
        "scalar": shape(),
        "vector": shape(12),
    }
    assert spec(tree, layout) == {
        "wide": P(None, "fsdp"),
        "tall": P("fsdp", None),
        "tie": P(None, "fsdp"),
        "odd": P(None, "fsdp"),
        "prime": P(),
        "scalar": P(),
        "vector": P("fsdp"),
    }


def test_the_first_rule_wins_and_matches_the_tail():
    rules = (("query/kernel", (None, "tensor")), ("kernel", ("tensor", None)), (".*", "fsdp"))
    layout = sharding.make(data=2, fsdp=2, tensor=2, min_mb=0.0, rules=rules)
    tree = {
        "a": {"query": {"kernel": shape(4, 4)}, "xquery": {"kernel": shape(4, 4)}, "mykernel": shape(4, 4)},
        "kernel": shape(3, 4, 4),
        "odd": {"kernel": shape(5, 4)},
    }
    assert spec(tree, layout) == {
        "a/query/kernel": P(None, "tensor"),
        "a/xquery/kernel": P("tensor", None),
        "a/mykernel": P(None, "fsdp"),
        "kernel": P(None, "tensor", None),
        # An axis that does not divide its dimension is left out; no other rule is tried.
        "odd/kernel": P(None, None),
    }


def test_moments_and_averages_follow_their_parameter():
    params = {"model": {"dense": {"kernel": shape(8, 64), "bias": shape(64)}}}
    state = {"params": params, "ema": params, "opt_state": jax.eval_shape(optax.adam(1.0).init, params)}
    layout = sharding.make(data=2, fsdp=4, min_mb=0.0, rules=(("dense/kernel", ("fsdp", None)), (".*", ())))
    places = spec(state, layout)
    kernels = {name: place for name, place in places.items() if name.endswith("dense/kernel")}
    assert len(kernels) == 4 and set(kernels.values()) == {P("fsdp", None)}


def test_small_arrays_stay_whole():
    layout = sharding.make(fsdp=8, data=1, min_mb=1.0)
    tree = {"big": shape(512, 512), "small": shape(512, 511), "half": shape(512, 512, dtype=jnp.bfloat16)}
    assert spec(tree, layout) == {"big": P(None, "fsdp"), "small": P(), "half": P()}


def test_keys_and_pmap_are_replicated():
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1024))
    layout = sharding.make(data=1, fsdp=8, min_mb=0.0)
    assert spec({"rng": keys}, layout) == {"rng": P()}
    assert spec({"big": shape(1024, 1024)}, sharding.make(mode="pmap", min_mb=0.0)) == {"big": P()}


def test_put_batch():
    batch = {"image": np.arange(16 * 3).reshape(16, 3).astype(np.int32), "mask": np.ones(16, np.float32)}
    for layout in (sharding.make(), sharding.make(data=2, fsdp=4), sharding.make(data=4, tensor=2)):
        put = sharding.put_batch(batch, layout)
        np.testing.assert_array_equal(put["image"], batch["image"])
        assert put["image"].addressable_shards[0].data.shape == (16 // layout.cuts, 3)
    with pytest.raises(ValueError, match=r"batch of 12 does not divide over data x fsdp = 8 devices"):
        sharding.put_batch({"mask": np.ones(12)}, sharding.make())


def test_gathered():
    """A step computes with parameters that are whole over fsdp and cut over tensor as before; stacked layers stay as they are."""
    rules = (("embed", (None, "tensor")), (".*", "fsdp"))
    layout = sharding.make(data=2, fsdp=2, tensor=2, rules=rules, min_mb=0.0)
    params = {"embed": shape(8, 4), "out": shape(8, 4), sharding.STACKED: {"out": shape(3, 8, 4)}}
    placed = sharding.infer(params, layout)
    assert placed["out"].spec == P("fsdp", None)
    compiled = jax.jit(lambda x: sharding.gathered(x, layout), in_shardings=(placed,)).lower(params).compile()
    after = compiled.output_shardings
    assert after["out"].is_fully_replicated
    assert after["embed"].spec == P(None, "tensor")
    assert after[sharding.STACKED]["out"].is_equivalent_to(placed[sharding.STACKED]["out"], 3)
    alone = sharding.make()
    assert sharding.gathered(params, alone) is params


def test_keep_rows():
    """What a loop carries stays cut as a batch is; nothing is said where nobody has named a mesh or rows do not divide."""
    layout = sharding.make(data=2, fsdp=4)
    for rows, cut in ((16, True), (12, False)):
        fn = sharding.on_mesh(lambda x: sharding.keep_rows(x + 1.0), layout)
        compiled = jax.jit(fn, in_shardings=layout.replicated).lower(shape(rows, 3)).compile()
        assert compiled.output_shardings.is_fully_replicated != cut
    assert sharding.keep_rows(jnp.ones((16, 3))).sharding.is_fully_replicated
