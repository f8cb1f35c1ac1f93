"""Videos captioned by the captioner's decoder: a video's tokens stand where an image's positions do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmgen_jax.core import metrics as metrics_lib
from mmgen_jax.core import optimizer as optimizer_lib
from mmgen_jax.core import sharding
from mmgen_jax.data import text
from mmgen_jax.data.loader import loader
from mmgen_jax.data.sources import make as make_source
from mmgen_jax.data.transforms import parse
from mmgen_jax.tasks.captioning import Captioning

ENCODER = {
    "name": "video_transformer",
    "width": 8,
    "depth": 1,
    "heads": 2,
    "frames": 12,
    "tubelet": 2,
    "patch": 12,
    "image_size": 24,
}


@pytest.fixture(scope="module")
def batch_and_task():
    source = make_source({"name": "clips", "size": 24, "length": 4})
    captions = [caption for i in range(4) for caption in source.captions(i)]
    tokenizer = text.train({"name": "words", "min_count": 1}, captions)
    transforms = parse("caption(max_len=27, per_image=2)", {"tokenizer": tokenizer})
    task = Captioning(
        model={
            "encoder": ENCODER,
            "decoder": {"name": "rnn", "features": 16, "embed_features": 8, "attention_features": 8},
        },
        decode={"max_len": 5, "beam": 2},
        optimizer=optimizer_lib.make(name="adamw", learning_rate=1e-2, schedule="constant", steps=9),
        layout=sharding.make(devices=jax.devices()[:1]),
        context={"tokenizer": tokenizer},
    )
    return next(loader(source, transforms, 4)), task


def test_a_video_is_learnt_and_captioned(batch_and_task):
    batch, task = batch_and_task
    assert batch["video"].shape == (4, 12, 24, 24, 3)
    state, step = jax.jit(task.init)(jax.random.key(0), batch), jax.jit(task.train_step)
    losses = []
    for _ in range(9):
        state, metrics = step(state, batch)
        losses.append(metrics_lib.compute(metrics)["loss"])
    assert losses[-1] < losses[0] - 0.3
    written = jax.eval_shape(
        task.predict["generate"], state.params, state.variables, batch, jax.random.key(0)
    )
    assert written["tokens"].shape == (4, 1, 5)
    looked = jax.eval_shape(task.predict["attend"], state.params, state.variables, batch, jax.random.key(0))
    assert looked["weights"].shape == (4, 2, 27, 12, 4)  # of each frame, of which two share a tubelet


def test_padded_videos_are_refused(batch_and_task):
    batch, task = batch_and_task
    with pytest.raises(ValueError, match="sample fewer frames"):
        jax.eval_shape(task.init, jax.random.key(0), {**batch, "frame_mask": np.ones((4, 12), bool)})


def test_a_pooled_tower_is_refused(batch_and_task):
    batch, task = batch_and_task
    model = task.model.clone(encoder=task.model.encoder.clone(pool="mean"))
    with pytest.raises(ValueError, match="of a video at tokens"):
        jax.eval_shape(
            model.init,
            jax.random.key(0),
            jnp.asarray(batch["video"]),
            jnp.asarray(batch["tokens"][:, :, :-1]),
        )
