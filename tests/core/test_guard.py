"""The guard: what is not finite or leaps changes nothing but the step's number; what is fine is untouched."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmgen_jax.core import guard as guard_lib
from mmgen_jax.core.guard import Guard
from mmgen_jax.core.metrics import Mean
from mmgen_jax.core.state import State


def train_step(state, batch):
    """Plain descent with a momentum; the batch says the loss and the two gradients."""
    grads = {"model": {"a": jnp.full(3, batch["a"]), "b": jnp.full((2, 2), batch["b"])}}
    params = jax.tree.map(lambda p, g: p - 0.1 * g, state.params, grads)
    new = state.replace(
        step=state.step + 1,
        params=params,
        variables={"model": {"last": batch["loss"]}},
        opt_state=grads,
        ema=params,
        guard=guard_lib.see(state.guard, state.params, grads),
    )
    return new, {"loss": Mean.of(batch["loss"]), "norm": Mean.of(batch["a"])}


@pytest.fixture
def state():
    params = {"model": {"a": jnp.ones(3), "b": jnp.ones((2, 2))}}
    zeros = jax.tree.map(jnp.zeros_like, params)
    variables = {"model": {"last": jnp.float32(0)}}
    return State(jnp.int32(0), jax.random.key(0), params, variables, zeros, params, guard_lib.start())


def batch(loss=1.0, a=0.5, b=0.5):
    return {"loss": jnp.float32(loss), "a": jnp.float32(a), "b": jnp.float32(b)}


def kept(state):
    return state.params, state.variables, state.opt_state, state.ema, state.rng


def test_what_is_fine_is_as_without_a_guard(state, same):
    step = jax.jit(guard_lib.guarded(train_step, Guard()))
    plain, guarded = state, state
    for loss in (1.0, 0.8, 50.0):
        plain, _ = jax.jit(train_step)(plain, batch(loss))
        guarded, metrics = step(guarded, batch(loss))
        assert metrics["notice"]["ok"] and float(metrics["loss"].compute()) == np.float32(loss)
        assert float(metrics["skipped"].compute()) == 0.0
    same(kept(guarded), kept(plain))
    assert int(guarded.step) == 3 and int(guarded.guard["skipped"]) == 0


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"loss": np.nan}, "the loss is nan"),
        ({"loss": -np.inf}, "the loss is -inf"),
        ({"b": np.nan}, "the gradient of model/b is not finite"),
        ({"a": np.inf, "b": np.nan}, "the gradient of model/a is not finite"),
        ({"b": 1e30}, "the gradient of model/b is not finite"),  # its norm is not
    ],
)
def test_what_is_not_finite_changes_nothing(state, same, wrong, why):
    """Twice in a row, then a good one: counted, out of the metrics, and no trace in what comes after."""
    step = jax.jit(guard_lib.guarded(train_step, Guard()))
    first, _ = step(state, batch())
    now = first
    for row in (1, 2):
        now, metrics = step(now, batch(**wrong))
        notice = jax.device_get(metrics["notice"])
        assert not notice["ok"] and notice["row"] == row
        assert guard_lib.why(notice, state.params, Guard()) == why
        assert float(metrics["loss"].count) == 0.0 and float(metrics["loss"].total) == 0.0
        assert float(metrics["skipped"].total) == 1.0
    same(kept(now), kept(first))
    same(now.guard["mean"], first.guard["mean"])
    assert int(now.step) == 3
    now, metrics = step(now, batch())
    same(kept(now), kept(step(first, batch())[0]))
    assert int(now.guard["row"]) == 0 and int(now.guard["skipped"]) == 2


def test_spikes(state, same):
    """Against numpy: the running mean and deviation of the loss, and no judgement before a window was seen."""
    options = Guard(spike=6.0, window=10)
    step = jax.jit(guard_lib.guarded(train_step, options))
    losses = np.random.default_rng(0).normal(5.0, 0.1, 30)
    losses[4] = 30.0  # too early to be told
    mean, variance = 0.0, 0.0
    for i, loss in enumerate(losses):
        state, metrics = step(state, batch(loss, a=1.0 + 0.01 * loss))
        assert metrics["notice"]["ok"], i
        share = 1 / min(i + 1, 10)
        off = loss - mean
        mean, variance = mean + share * off, (1 - share) * (variance + share * off**2)
    np.testing.assert_allclose(state.guard["mean"][0], mean, rtol=1e-5)
    np.testing.assert_allclose(state.guard["variance"][0], variance, rtol=1e-3)
    high = mean + 7 * np.sqrt(variance)
    for wrong, name in (
        ({"loss": high}, f"the loss is {high:.4g}"),
        ({"b": 1e4}, "the gradient norm is 2e+04"),
    ):
        after, metrics = step(state, batch(**{"loss": mean, "a": 1.05, **wrong}))
        notice = jax.device_get(metrics["notice"])
        same(kept(after), kept(state))
        said = guard_lib.why(notice, state.params, options)
        assert said.startswith(name) and "deviations above its mean" in said, said
    _, metrics = step(state, batch(mean - 9 * np.sqrt(variance), a=1.05))
    assert metrics["notice"]["ok"], "a loss that falls is no trouble"


def test_unknown_choice():
    with pytest.raises(ValueError, match=r'guard\.then is "retry"; it is one of: rollback, stop'):
        guard_lib.guarded(train_step, Guard(then="retry"))
