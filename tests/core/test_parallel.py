"""The two modes of a step, on a function small enough to check by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmgen_jax.core import parallel, sharding

BATCH = {"x": np.arange(16.0, dtype=np.float32)}


def run(mode):
    layout = sharding.make(mode=mode)
    axis = parallel.axis_of(layout)
    seen = []

    def step(state, batch):
        seen.append(batch["x"].shape)
        total = parallel.total(jnp.sum(batch["x"]), axis)
        everyone = parallel.gather(batch["x"], axis)
        key = parallel.device_key(jax.random.key(0), axis)
        draws = parallel.gather(jax.random.normal(key, (1,)), axis)
        return state + total, {"rows": everyone, "draws": draws}

    state = jax.device_put(jnp.float32(1.0), layout.replicated)
    compiled = parallel.compile_step(step, layout, layout.replicated)
    result = compiled(state, sharding.put_batch(BATCH, layout))
    assert state.is_deleted(), "the old state's memory is used again"
    return seen[0], *jax.device_get(result)


@pytest.mark.parametrize(("mode", "rows"), [("jit", 16), ("pmap", 2)])
def test_step(mode, rows):
    shape, state, metrics = run(mode)
    assert shape == (rows,), "in pmap mode a function sees one device's rows"
    assert state == 1.0 + BATCH["x"].sum()
    np.testing.assert_array_equal(metrics["rows"], BATCH["x"])
    assert len(set(metrics["draws"].tolist())) == (8 if mode == "pmap" else 1)


def test_predictions_are_whole_on_every_device():
    layout = sharding.make(data=2, fsdp=4)
    predict = parallel.compile_predict(
        lambda params, variables, batch, rng: {"y": batch["x"] * params + variables},
        layout,
        layout.replicated,
        layout.replicated,
    )
    result = predict(jnp.float32(2.0), jnp.float32(1.0), sharding.put_batch(BATCH, layout), jax.random.key(0))
    np.testing.assert_array_equal(result["y"], 2 * BATCH["x"] + 1)
    assert result["y"].sharding.is_fully_replicated


@pytest.mark.parametrize(
    "mesh", [{}, {"data": 2, "fsdp": 4}, {"data": 4, "tensor": 2}, {"mode": "pmap"}], ids=str
)
def test_by_rows(mesh):
    """Each device sees its own rows, and can reach the others' through the axis; gradients flow back over it."""
    layout = sharding.make(**mesh)

    def fn(rows, shared, axis):
        everyone = parallel.gather(rows["x"], axis)
        return rows["x"] * shared + jnp.sum(everyone)

    def loss(shared, batch):
        return jnp.sum(parallel.by_rows(fn, layout)({"x": batch["x"]}, shared))

    def step(state, batch):
        value, grad = jax.value_and_grad(loss)(state, batch)
        return parallel.total(grad, parallel.axis_of(layout)), {
            "loss": parallel.total(value, parallel.axis_of(layout))
        }

    state = jax.device_put(jnp.float32(3.0), layout.replicated)
    compiled = parallel.compile_step(step, layout, layout.replicated)
    grad, metrics = compiled(state, sharding.put_batch(BATCH, layout))
    total = BATCH["x"].sum()
    assert float(metrics["loss"]) == 3 * total + 16 * total
    assert float(grad) == total


def test_by_rows_on_one_device():
    layout = sharding.make(devices=jax.devices()[:1])
    seen = parallel.by_rows(lambda rows, shared, axis: (rows, axis), layout)(BATCH["x"], None)
    assert seen[1] is None
    assert seen[0] is BATCH["x"]
