"""Optimizers, schedules, clipping, decay, rules, accumulation and averages, against formulas in numpy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmgen_jax.core import optimizer, sharding
from mmgen_jax.core.metrics import Mean
from mmgen_jax.tasks.base import Task

PARAMS = {
    "encoder": {"kernel": jnp.full((4, 3), 2.0), "bias": jnp.full(3, -1.0)},
    "decoder": {"kernel": jnp.linspace(-1.0, 1.0, 12).reshape(3, 4), "embed": jnp.full((2, 3, 3, 2), 0.5)},
}


def make(**options):
    defaults = {"name": "sgd", "learning_rate": 0.1, "schedule": "constant", "steps": 100}
    return optimizer.make(**{**defaults, **options})


def update(opt, grads, params=PARAMS, steps=1):
    """The parameters after `steps` equal gradients."""
    state = opt.transform.init(params)
    for _ in range(steps):
        updates, state = opt.transform.update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return params, state


def quadratic(params):
    return sum(jnp.sum((x - 3.0) ** 2) for x in jax.tree.leaves(params))


@pytest.mark.parametrize("name", ["adamw", "sgd", "lion", "muon"])
def test_every_optimizer_descends(name):
    opt = make(name=name, learning_rate=0.01, weight_decay=1e-4, clip_norm=1.0)
    params, _ = update(opt, jax.grad(quadratic)(PARAMS))
    assert quadratic(params) < quadratic(PARAMS)
    for (path, old), new in zip(
        jax.tree_util.tree_leaves_with_path(PARAMS), jax.tree.leaves(params), strict=True
    ):
        assert float(quadratic(new)) < float(quadratic(old)), jax.tree_util.keystr(path)
        assert new.dtype == jnp.float32


def test_adam_against_its_formula():
    opt = make(name="adamw", learning_rate=0.01, options={"b1": 0.8, "b2": 0.9, "eps": 1e-6})
    x, m, v = 2.0, 0.0, 0.0
    params, state = {"x": jnp.full((2, 2), 2.0)}, None
    state = opt.transform.init(params)
    for t, g in enumerate((0.5, -1.0, 2.0), start=1):
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
        x -= 0.01 * (m / (1 - 0.8**t)) / (math.sqrt(v / (1 - 0.9**t)) + 1e-6)
        updates, state = opt.transform.update({"x": jnp.full((2, 2), g)}, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    np.testing.assert_allclose(params["x"], np.full((2, 2), x), rtol=1e-5)


def values(steps, **options):
    schedule = make(learning_rate=0.5, steps=100, **options).schedule
    return [float(schedule(jnp.int32(step))) for step in steps]


def test_schedules():
    close = pytest.approx
    # The first step's rate is one warm-up step's, not zero.
    assert values([0, 4, 9, 10, 50], warmup=10) == close([0.05, 0.25, 0.5, 0.5, 0.5])
    cosine = values([0, 9, 10, 55, 100, 200], schedule="cosine", warmup=10)
    assert cosine == close([0.05, 0.5, 0.5, 0.25, 0.0, 0.0], abs=1e-7)
    assert values([0, 50, 100], schedule="cosine") == close([0.5, 0.25, 0.0], abs=1e-7)
    quarter = 0.5 * 0.5 * (1 + math.cos(math.pi * 0.25))
    assert values([25], schedule="cosine") == close([quarter])
    assert values([0, 50, 100, 200], schedule="linear") == close([0.5, 0.25, 0.0, 0.0], abs=1e-7)
    assert values([0, 49, 50, 100], schedule="drop") == close([0.5, 0.5, 0.05, 0.05])
    assert values([0, 60, 80, 100], schedule="trapezoid") == close([0.5, 0.5, 0.3, 0.0], abs=1e-7)
    assert values([0, 50, 100], schedule="exponential") == close([0.5, 0.5 / math.sqrt(10), 0.05])
    floor = values([10, 55, 100], schedule="cosine", warmup=10, final=0.1)
    assert floor == close([0.5, 0.5 * (0.1 + 0.9 * 0.5), 0.05])
    roots = values([4, 10, 20, 90], schedule="inverse_sqrt", warmup=10)
    assert roots == close([0.25, 0.5, 0.5 / math.sqrt(2), 0.5 / 3])
    assert values([0, 3], schedule="inverse_sqrt") == close([0.5, 0.25])


def test_the_schedule_drives_the_step():
    opt = make(options={"momentum": 0.0}, schedule="cosine", steps=4, learning_rate=1.0)
    params, _ = update(opt, jax.tree.map(jnp.ones_like, PARAMS), steps=4)
    total = sum(0.5 * (1 + math.cos(math.pi * t / 4)) for t in range(4))
    np.testing.assert_allclose(
        PARAMS["encoder"]["bias"] - params["encoder"]["bias"], np.full(3, total), rtol=1e-5
    )


def test_clipping():
    grads = jax.tree.map(jnp.ones_like, PARAMS)
    norm = math.sqrt(sum(x.size for x in jax.tree.leaves(PARAMS)))
    for clip, factor in ((1.0, 1 / norm), (2 * norm, 1.0), (0.0, 1.0)):
        params, _ = update(make(clip_norm=clip), grads)
        for old, new in zip(jax.tree.leaves(PARAMS), jax.tree.leaves(params), strict=True):
            np.testing.assert_allclose(old - new, np.full(old.shape, 0.1 * factor), rtol=1e-4)


def test_decay_is_decoupled_and_spares_vectors():
    """No gradient, and still the matrices shrink by learning rate x decay; adamw's step does not scale it."""
    for name in ("adamw", "sgd", "lion"):
        opt = make(name=name, weight_decay=0.5)
        params, _ = update(opt, jax.tree.map(jnp.zeros_like, PARAMS))
        np.testing.assert_allclose(params["encoder"]["kernel"], 0.95 * PARAMS["encoder"]["kernel"], rtol=1e-6)
        np.testing.assert_allclose(params["decoder"]["embed"], 0.95 * PARAMS["decoder"]["embed"], rtol=1e-6)
        np.testing.assert_array_equal(params["encoder"]["bias"], PARAMS["encoder"]["bias"])


def test_rules_of_decay():
    opt = make(weight_decay=0.5, rules={"embed": {"weight_decay": 0.0}, "bias": {"weight_decay": 2.0}})
    params, _ = update(opt, jax.tree.map(jnp.zeros_like, PARAMS))
    np.testing.assert_array_equal(params["decoder"]["embed"], PARAMS["decoder"]["embed"])
    np.testing.assert_allclose(params["encoder"]["bias"], 0.9 * PARAMS["encoder"]["bias"], rtol=1e-6)
    np.testing.assert_allclose(params["encoder"]["kernel"], 0.95 * PARAMS["encoder"]["kernel"], rtol=1e-6)


def test_rules_of_learning_rate_the_first_wins():
    opt = make(rules={"decoder/kernel": {"learning_rate": 10.0}, "decoder": {"learning_rate": 0.5}})
    params, _ = update(opt, jax.tree.map(jnp.ones_like, PARAMS))
    moved = jax.tree.map(lambda old, new: float((old - new).mean()), PARAMS, params)
    assert moved["decoder"]["kernel"] == pytest.approx(1.0)
    assert moved["decoder"]["embed"] == pytest.approx(0.05)
    assert moved["encoder"]["kernel"] == pytest.approx(0.1)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_frozen_parameters(name):
    """They do not move, decay included; no moments are kept; and they take no part in the clipped norm."""
    options = {"name": name, "weight_decay": 0.1, "clip_norm": 1.0, "learning_rate": 0.01}
    opt = make(**options, rules={"encoder": {"learning_rate": 0.0}})
    grads = jax.tree.map(lambda x: jnp.full_like(x, 5.0), PARAMS)
    params, state = update(opt, grads, steps=2)
    for key in ("kernel", "bias"):
        np.testing.assert_array_equal(params["encoder"][key], PARAMS["encoder"][key])
    kept = [path for path, leaf in jax.tree_util.tree_leaves_with_path(state) if leaf.ndim]
    names = {optimizer.path_name(path) for path in kept}
    assert names and not [name for name in names if "encoder" in name]
    # The rest moves as it would alone.
    alone = {"decoder": PARAMS["decoder"]}
    expected, _ = update(make(**options), {"decoder": grads["decoder"]}, alone, steps=2)
    for key in ("kernel", "embed"):
        np.testing.assert_allclose(params["decoder"][key], expected["decoder"][key], rtol=1e-6)


def test_what_is_frozen_costs_no_backward_pass():
    """No gradient reaches it, and the compiler then leaves its share of the work out."""
    params = {"encoder": {"kernel": jnp.ones((8, 8))}, "head": {"kernel": jnp.ones((8, 8))}}
    x = jnp.ones((4, 8))

    def work(opt):
        def loss(params):
            params = opt.hold(params)
            return jnp.sum(jnp.sin(jnp.sin(x @ params["encoder"]["kernel"]) @ params["head"]["kernel"]))

        compiled = jax.jit(jax.grad(loss)).lower(params).compile()
        return compiled(params), compiled.cost_analysis()["flops"]

    grads, flops = work(make())
    held, fewer = work(make(rules={"encoder": {"learning_rate": 0.0}}))
    np.testing.assert_array_equal(held["encoder"]["kernel"], 0.0)
    np.testing.assert_allclose(held["head"]["kernel"], grads["head"]["kernel"], rtol=1e-6)
    assert np.abs(grads["encoder"]["kernel"]).max() > 0 and fewer < 0.75 * flops


def test_a_frozen_nan_does_no_harm():
    """A frozen part may have no meaningful gradient."""
    opt = make(clip_norm=1.0, rules={"encoder": {"learning_rate": 0.0}})
    grads = jax.tree.map(jnp.ones_like, PARAMS)
    grads["encoder"]["bias"] = jnp.full(3, jnp.nan)
    params, _ = update(opt, grads)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "adam"}, r'Unknown optimizer "adam"\. Did you mean "adamw"'),
        ({"schedule": "cosin"}, r'Unknown schedule "cosin"\. Did you mean "cosine"'),
        (
            {"options": {"momentun": 1.0}},
            r'Unknown key "momentun" in optimizer.options of sgd\. Did you mean "momentum"',
        ),
        ({"rules": {"a": {"learning_rat": 1.0}}}, r'optimizer.rules\["a"\]\. Did you mean "learning_rate"'),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


class Line(Task):
    """Fit y = x w over the values that count; rows have unequal numbers of them, as captions have words."""

    def networks(self, rng, batch):
        return {"model": {"params": {"w": jnp.ones((batch["x"].shape[-1],))}}}

    def loss(self, params, variables, batch, rng, step):
        error = (jnp.einsum("btd,d->bt", batch["x"], params["model"]["w"]) - batch["y"]) ** 2
        mean = Mean.of(error, batch["words"])
        return mean.compute(), ({"loss": mean}, variables)


def line(steps=1, **options):
    rng = np.random.default_rng(0)
    words = np.arange(5)[None, :] < rng.integers(0, 6, 8)[:, None]
    batch = {
        "x": rng.normal(size=(8, 5, 3)).astype(np.float32),
        "y": rng.normal(size=(8, 5)).astype(np.float32),
        "words": words.astype(np.float32),
    }
    task = Line(make(**options), sharding.make(devices=jax.devices()[:1]))
    state = task.init(jax.random.key(0), batch)
    step = jax.jit(task.train_step)
    states = [state]
    for _ in range(steps):
        state, metrics = step(states[-1], batch)
        states.append(state)
    return batch, states, metrics


def test_a_step_holds_what_is_frozen():
    """It stays as it is, and the norm that is logged is of what learns: here nothing does."""
    _, states, metrics = line(rules={"w": {"learning_rate": 0.0}})
    np.testing.assert_array_equal(states[-1].params["model"]["w"], states[0].params["model"]["w"])
    assert float(metrics["grad_norm"].compute()) == 0.0
    assert float(line()[2]["grad_norm"].compute()) > 0.0


@pytest.mark.parametrize("slices", [2, 4, 8])
def test_accumulation_equals_the_whole_batch(slices):
    batch, whole, metrics = line()
    _, sliced, sliced_metrics = line(accumulate=slices)
    np.testing.assert_allclose(sliced[-1].params["model"]["w"], whole[-1].params["model"]["w"], rtol=1e-5)
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(sliced_metrics[name].compute(), metrics[name].compute(), rtol=1e-5)
    residual = batch["x"] @ np.ones(3) - batch["y"]
    grad = 2 * np.einsum("bt,btd->d", residual * batch["words"], batch["x"]) / batch["words"].sum()
    np.testing.assert_allclose(whole[-1].params["model"]["w"], 1 - 0.1 * grad, rtol=1e-4)
    np.testing.assert_allclose(metrics["grad_norm"].compute(), np.linalg.norm(grad), rtol=1e-4)
    assert metrics["loss"].count == batch["words"].sum()


def test_the_average_follows_its_formula():
    _, states, _ = line(steps=3, ema=0.9)
    average = np.ones(3)
    for step, state in enumerate(states[1:]):
        decay = min(0.9, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * np.asarray(state.params["model"]["w"], np.float64)
    np.testing.assert_allclose(states[-1].ema["model"]["w"], average, rtol=1e-5)
    np.testing.assert_array_equal(states[-1].eval_params["model"]["w"], states[-1].ema["model"]["w"])
    plain = line(steps=1)[1][-1]
    assert plain.ema == {} and plain.eval_params is not plain.ema
    np.testing.assert_array_equal(plain.eval_params["model"]["w"], plain.params["model"]["w"])
    assert int(states[-1].step) == 3
