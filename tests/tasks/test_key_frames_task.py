"""The task of key frames: it learns them; frames that pad and rows that are masked change nothing; the loss as in numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmgen_jax.core import metrics as metrics_lib
from mmgen_jax.core import optimizer as optimizer_lib
from mmgen_jax.core import sharding
from mmgen_jax.tasks.key_frames import KeyFrameTask

B, F = 4, 6
# No batch statistics: a clip's logits are its own.
TOWER = {
    "name": "video_frames",
    "tower": {"name": "vit", "width": 8, "depth": 0, "heads": 2, "patch": 8, "image_size": 8, "pool": "mean"},
    "over_time": {"name": "transformer", "depth": 1, "heads": 2, "frames": F},
    "width": 16,
    "differences": True,
}


@functools.cache
def make(pool="frames"):
    optimizer = optimizer_lib.make(name="adamw", learning_rate=1e-2, schedule="constant", steps=80)
    return KeyFrameTask(
        model={"tower": {**TOWER, "pool": pool}},
        optimizer=optimizer,
        layout=sharding.make(devices=jax.devices()[:1]),
        context={},
    )


def make_batch(padded=True):
    rng = np.random.default_rng(0)
    mask = np.ones((B, F), bool)
    mask[1, 4:] = False
    return {
        "video": rng.integers(0, 256, (B, F, 8, 8, 3), dtype=np.uint8),
        "key_frames": (rng.random((B, F)) < 0.4).astype(np.float32),
        "mask": np.float32([1, 1, 1, 0]),
        "index": np.arange(B, dtype=np.int32),
        **({"frame_mask": mask} if padded else {}),
    }


@pytest.fixture(scope="module")
def state():
    return jax.jit(make().init)(jax.random.key(0), make_batch())


@pytest.fixture(scope="module")
def run():
    return jax.jit(make().gradients)


def test_learns_a_batch(state):
    batch, step = make_batch(), jax.jit(make().train_step)
    for _ in range(80):
        state, metrics = step(state, batch)
    metrics = metrics_lib.compute(metrics)
    assert metrics["loss"] < 0.05 and metrics["accuracy"] == 1
    score = make().predict["score"](state.params, state.variables, batch, jax.random.key(0))["score"]
    there = (batch["frame_mask"] & (batch["mask"][:, None] > 0)) > 0
    np.testing.assert_array_equal((np.asarray(score) > 0.5)[there], batch["key_frames"][there] > 0.5)
    assert not score[1, 4:].any(), "what pads is never a key frame"


def test_loss_against_numpy(state, run):
    batch = make_batch()
    score = make().predict["score"](state.params, state.variables, batch, jax.random.key(0))["score"]
    p, keys = np.float64(score), batch["key_frames"]
    there = batch["frame_mask"] & (batch["mask"][:, None] > 0)
    losses = -(keys * np.log(np.where(there, p, 1)) + (1 - keys) * np.log(1 - p))
    _, metrics, _ = run(state.params, state.variables, batch, jax.random.key(1), jnp.int32(0))
    assert float(metrics["loss"].count) == 3 * F - 2
    np.testing.assert_allclose(metrics["loss"].compute(), losses[there].mean(), rtol=1e-5)


def test_padding_and_masked_rows_change_nothing(state, run, same):
    batch = make_batch()
    grads, _, _ = run(state.params, state.variables, batch, jax.random.key(1), jnp.int32(0))
    other = make_batch()
    other["video"][1, 4:] = 99
    other["key_frames"][1, 4:] = 1 - other["key_frames"][1, 4:]
    other["video"][3] = 7
    other["key_frames"][3] = 1 - other["key_frames"][3]
    same(grads, run(state.params, state.variables, other, jax.random.key(1), jnp.int32(0))[0])


def test_errors_name_the_remedy():
    batch = make_batch(padded=False)
    with pytest.raises(ValueError, match='The source "clips" has both'):
        jax.eval_shape(make().init, jax.random.key(0), {k: x for k, x in batch.items() if k != "key_frames"})
    with pytest.raises(ValueError, match='set its pool to "frames"'):
        jax.eval_shape(make("mean").init, jax.random.key(0), batch)
