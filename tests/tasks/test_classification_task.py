"""The classification task: it learns labels, one or several; masked examples change nothing; smoothing as in the paper."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmgen_jax.core import metrics as metrics_lib
from mmgen_jax.core import optimizer as optimizer_lib
from mmgen_jax.core import sharding
from mmgen_jax.tasks.classification import Classification

B, L, K = 4, 3, 5
# No batch statistics: an example's logits are its own.
TOWER = {"name": "vit", "width": 16, "depth": 1, "heads": 2, "patch": 8, "image_size": 16, "pool": "mean"}


def make(labels=1, label_smoothing=0.0, tower=TOWER, **model):
    optimizer = optimizer_lib.make(name="adamw", learning_rate=1e-2, schedule="constant", steps=60)
    return Classification(
        model={"tower": tower, "classes": K, "labels": labels, **model},
        label_smoothing=label_smoothing,
        optimizer=optimizer,
        layout=sharding.make(devices=jax.devices()[:1]),
        context={},
    )


def make_batch(labels=1, rows=B):
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (rows, 16, 16, 3), dtype=np.uint8),
        "label": rng.integers(0, K, (rows,) if labels == 1 else (rows, labels), dtype=np.int32),
        "mask": np.ones(rows, np.float32),
        "index": np.arange(rows, dtype=np.int32),
    }


@functools.cache
def state_of(labels):
    return jax.jit(make(labels).init)(jax.random.key(0), make_batch(labels))


def gradients(task, state, batch):
    grads, metrics, _ = jax.jit(task.gradients)(
        state.params, state.variables, batch, jax.random.key(1), jnp.int32(0)
    )
    return grads, metrics_lib.compute(metrics)


def logits_of(task, state, batch):
    return np.float64(
        task.predict["classify"](state.params, state.variables, batch, jax.random.key(0))["logits"]
    )


@pytest.mark.parametrize("labels", [1, L])
def test_learns_a_batch(labels):
    task, batch = make(labels), make_batch(labels)
    state, step = state_of(labels), jax.jit(task.train_step)
    for _ in range(60):
        state, metrics = step(state, batch)
    metrics = metrics_lib.compute(metrics)
    assert metrics["loss"] < 0.1 and metrics["accuracy"] == 1 and metrics.get("all_right", 1) == 1
    logits = logits_of(task, state, batch)
    assert logits.shape == ((B, K) if labels == 1 else (B, L, K))
    np.testing.assert_array_equal(logits.argmax(axis=-1), batch["label"])


@pytest.mark.parametrize("labels", [1, L])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_and_metrics_against_numpy(labels, smoothing):
    task, state, batch = make(labels, smoothing), state_of(labels), make_batch(labels)
    logits = logits_of(task, state, batch)
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    target = (1 - smoothing) * np.eye(K)[batch["label"]] + smoothing / K
    metrics = gradients(task, state, batch)[1]
    np.testing.assert_allclose(metrics["loss"], -(target * log_p).sum(axis=-1).mean(), rtol=1e-5)
    right = logits.argmax(axis=-1) == batch["label"]
    np.testing.assert_allclose(metrics["accuracy"], right.mean())
    if labels > 1:
        np.testing.assert_allclose(metrics["all_right"], right.all(axis=1).mean())


def test_what_is_not_there_changes_nothing():
    task, state, batch = make(L), state_of(L), make_batch(L)
    grads, metrics = gradients(task, state, {**batch, "mask": np.float32([1, 0, 1, 1])})
    kept = {name: value[[0, 2, 3]] for name, value in batch.items()}
    expected, other = gradients(task, state, kept)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    for name in ("loss", "accuracy", "all_right"):
        np.testing.assert_allclose(metrics[name], other[name], rtol=1e-5)


def test_features_are_what_the_head_reads():
    task, state, batch = make(L), state_of(L), make_batch(L)
    features = task.predict["features"](state.params, state.variables, batch, jax.random.key(0))["features"]
    assert features.shape == (B, 16) and features.dtype == jnp.float32
    head = jax.tree.map(np.float64, state.params["model"]["head"])
    expected = (np.float64(features) @ head["kernel"] + head["bias"]).reshape(B, L, K)
    np.testing.assert_allclose(logits_of(task, state, batch), expected, rtol=1e-4, atol=1e-5)


def test_a_judge_needs_the_image_alone():
    task, state, batch = make(L), state_of(L), make_batch(L)
    only = {name: batch[name] for name in ("image", "mask", "index")}
    np.testing.assert_array_equal(logits_of(task, state, only), logits_of(task, state, batch))


def test_a_label_that_is_no_class_stops_the_run():
    batch = make_batch()
    batch["label"][2] = K
    assert np.isnan(gradients(make(), state_of(1), batch)[1]["loss"])


@pytest.mark.parametrize(
    ("options", "batch", "message"),
    [
        ({"labels": L}, make_batch(), r"label has the shape \[\], task\.model\.labels=3 expects \[3\]"),
        ({}, make_batch(L), r"label has the shape \[3\], task\.model\.labels=1 expects \[\]"),
        ({}, {k: v for k, v in make_batch().items() if k != "label"}, r'come without "label".*cells=True'),
        ({"classes": 1}, make_batch(), "classes=1 and labels=1: at least two classes"),
        ({"apart": True}, make_batch(), "apart gives each of the three colours a label: labels is 3, not 1"),
        ({"label_smoothing": 1.0}, make_batch(), "label_smoothing is 1.0: a share"),
        ({"tower": {**TOWER, "pool": "none"}}, make_batch(), "set its pool"),
        (
            {"tower": {"name": "convent"}},
            make_batch(),
            'Unknown name "convent" in nn/. Did you mean "convnet"',
        ),
        ({"class": 3}, make_batch(), 'Unknown key "class" in task.model. Did you mean "classes"'),
    ],
)
def test_mistakes_are_named(options, batch, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(make(**options).init, jax.random.key(0), batch)
