"""The contrastive objective: it learns a batch, what is not there changes nothing, slices equal the whole, and trouble
is named."""

import functools
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmgen_jax.core import metrics as metrics_lib
from mmgen_jax.core import optimizer as optimizer_lib
from mmgen_jax.core import sharding
from mmgen_jax.data.text import BOS, EOS, PAD, UNK
from mmgen_jax.losses import contrastive as losses
from mmgen_jax.tasks.contrastive import Contrastive, text_ids

B, C, T, V, F = 4, 2, 6, 16, 8
# No batch statistics: an example's embedding is its own.
IMAGE = {"name": "vit", "width": 16, "depth": 1, "heads": 2, "patch": 8, "image_size": 16, "pool": "mean"}
TEXT = {"name": "text_rnn", "features": 16, "embed_features": 8, "max_len": T}


def make(learning_rate=1e-2, loss=None, image=None, text=None, slices=1, **model):
    optimizer = optimizer_lib.make(name="adamw", learning_rate=learning_rate, schedule="constant", steps=60)
    return Contrastive(
        model={
            "image": {**IMAGE, **(image or {})},
            "text": {**TEXT, **(text or {})},
            "embed_dim": F,
            **model,
        },
        loss={"name": "info_nce", **(loss or {})},
        slices=slices,
        optimizer=optimizer,
        layout=sharding.make(devices=jax.devices()[:1]),
        context={"tokenizer": SimpleNamespace(vocab_size=V, eos=EOS)},
    )


def make_batch(seed=0, rows=B, captions=1):
    rng = np.random.default_rng(seed)
    tokens = np.full((rows, captions, T), PAD, np.int32)
    for i, c in np.ndindex(rows, captions):
        words = rng.integers(UNK + 1, V, rng.integers(2, T - 1))
        tokens[i, c, : len(words) + 2] = [BOS, *words, EOS]
    return {
        "image": rng.integers(0, 256, (rows, 16, 16, 3), dtype=np.uint8),
        "tokens": tokens,
        "text_mask": np.ones((rows, captions), np.float32),
        "cut": np.zeros((rows, captions), np.float32),
        "mask": np.ones(rows, np.float32),
        "index": np.arange(rows, dtype=np.int32),
    }


@functools.cache
def state_of():
    return jax.jit(make().init)(jax.random.key(0), make_batch())


def gradients(task, state, batch, seed=1):
    """-> (gradients, metrics computed)."""
    grads, metrics, _ = jax.jit(task.gradients)(
        state.params, state.variables, batch, jax.random.key(seed), jnp.int32(0)
    )
    return grads, metrics_lib.compute(metrics)


def close(left, right, rtol=1e-5):
    """Relative to the largest number of each array."""
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(left), jax.tree.leaves(right), strict=True):
        bound = rtol * max(np.abs(b).max(), 1e-3)
        np.testing.assert_allclose(a, b, rtol=0, atol=bound, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize(
    "options",
    [
        {"loss": {"name": "info_nce"}},
        {"loss": {"name": "info_nce", "tau": 0.1, "symmetric": False}, "temperature": 0.0},
        {"loss": {"name": "sigmoid"}, "temperature": 0.1, "bias": -2.0},
        {"loss": {"name": "triplet"}, "temperature": 0.0},
    ],
    ids=["info_nce", "fixed_temperature", "sigmoid", "triplet"],
)
def test_learns_a_batch(options):
    task, batch = make(**options), make_batch()
    state, step = jax.jit(task.init)(jax.random.key(0), batch), jax.jit(task.train_step)
    first = None
    for _ in range(60):
        state, metrics = step(state, batch)
        metrics = metrics_lib.compute(metrics)
        first = first or metrics["loss"]
    assert metrics["loss"] < 0.5 * first
    found = jax.jit(task.predict["embed"])(state.params, state.variables, batch, jax.random.key(0))
    np.testing.assert_allclose(np.linalg.norm(found["image"], axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found["text"], axis=-1), 1, atol=1e-5)
    scores = np.asarray(found["image"]) @ np.asarray(found["text"])[:, 0].T
    assert scores.argmax(axis=0).tolist() == scores.argmax(axis=1).tolist() == list(range(B))


def test_embeddings_are_the_same_from_every_prediction():
    task, state, batch = make(), state_of(), make_batch(captions=C)
    key = jax.random.key(0)
    both = task.predict["embed"](state.params, state.variables, batch, key)
    image = task.predict["embed_image"](state.params, state.variables, {"image": batch["image"]}, key)
    text = task.predict["embed_text"](state.params, state.variables, {"tokens": batch["tokens"]}, key)
    close({**image, **text}, both)
    assert both["text"].shape == (B, C, F)


def test_what_is_not_there_changes_nothing():
    """A masked image, and a caption that only fills a row up, are no negatives either."""
    task, state = make(), state_of()
    batch = make_batch(captions=C)
    batch["text_mask"][:, 1] = 0
    one = gradients(task, state, {**batch, "mask": np.float32([1, 0, 1, 1])})
    kept = {name: value[[0, 2, 3]] for name, value in batch.items()}
    other = gradients(task, state, {**kept, "tokens": kept["tokens"][:, :1],
                                    "text_mask": kept["text_mask"][:, :1], "cut": kept["cut"][:, :1]})  # fmt: skip
    close(one[0], other[0])
    np.testing.assert_allclose(one[1]["loss"], other[1]["loss"], rtol=1e-5)
    np.testing.assert_allclose(one[1]["chance"], math.log(3), rtol=1e-6)


@pytest.mark.parametrize("equal", ["negative", "positive", "ignore"])
def test_captions_of_one_image_are_equal_pairs(equal):
    """The task hands the loss what it needs to know: here against the plain loss over explicit pairs."""
    task, state, batch = make(loss={"equal": equal}), state_of(), make_batch(captions=C)
    batch["tokens"][3, 0] = batch["tokens"][0, 0]  # two images share a text
    found = task.predict["embed"](state.params, state.variables, batch, jax.random.key(0))
    image, text = np.repeat(found["image"], C, axis=0), np.reshape(found["text"], (B * C, F))
    text_id = np.int32([0, 1, 2, 3, 4, 5, 0, 7])
    expected = losses.info_nce(jnp.asarray(image), jnp.asarray(text), jnp.float32(1 / 0.07), equal=equal,
                               image_id=jnp.asarray(np.repeat(np.arange(B), C)), text_id=jnp.asarray(text_id))  # fmt: skip
    np.testing.assert_allclose(gradients(task, state, batch)[1]["loss"], np.mean(expected), rtol=1e-5)


def test_slices_equal_the_whole_batch():
    state, batch = state_of(), make_batch(captions=C)
    whole, sliced = gradients(make(), state, batch), gradients(make(slices=2), state, batch)
    close(sliced[0], whole[0])
    np.testing.assert_allclose(sliced[1]["loss"], whole[1]["loss"], rtol=1e-5)


def test_slices_equal_the_whole_batch_with_dropout():
    """The second computation of a slice drops the same units as the first: the gradient is that of one big plain graph."""
    task = make(slices=2, image={"dropout": 0.5}, text={"dropout": 0.5})
    state, batch = state_of(), make_batch()

    def plain(params):
        """All slices side by side, nothing recomputed."""
        key, parts = jax.random.key(1), []
        for i in range(2):
            parts.append(
                task.model.apply(
                    {"params": params["model"]},
                    batch["image"][i::2],
                    batch["tokens"][i::2],
                    train=True,
                    rngs={"dropout": jax.random.fold_in(key, i)},
                )
            )
        image, text = (jnp.stack(x, axis=1).reshape(B, F) for x in zip(*parts, strict=True))
        return jnp.mean(losses.info_nce(image, text, jnp.exp(params["model"]["logit_scale"])))

    close(gradients(task, state, batch)[0], jax.jit(jax.grad(plain))(state.params))
    other = gradients(task, state, batch, seed=2)[0]
    assert not np.allclose(jax.tree.leaves(other)[0], jax.tree.leaves(gradients(task, state, batch)[0])[0])


def test_slices_hold_less():
    """What the compiler says a step needs beside its inputs and outputs."""
    image = {"image_size": 64, "patch": 4, "width": 32, "depth": 2}
    batch = {**make_batch(rows=32), "image": np.zeros((32, 64, 64, 3), np.uint8)}

    def temporaries(slices):
        task = make(image=image, slices=slices)
        state = jax.eval_shape(task.init, jax.random.key(0), batch)
        args = (state.params, state.variables, batch, jax.random.key(0), jnp.int32(0))
        return jax.jit(task.gradients).lower(*args).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(8) < 0.3 * temporaries(1)


def test_the_scale_stays_in_its_bounds():
    task, batch = make(learning_rate=5.0), make_batch()
    state, step = state_of(), jax.jit(task.train_step)
    for _ in range(4):
        state, _ = step(state, batch)
        assert 0.0 <= float(state.params["model"]["logit_scale"]) <= math.log(100) + 1e-6


def test_gradient_of_the_scale():
    """Against central differences."""
    task, state, batch = make(), state_of(), make_batch()

    @jax.jit
    def loss(scale):
        params = {"model": {**state.params["model"], "logit_scale": scale}}
        return task.loss(params, state.variables, batch, jax.random.key(0), jnp.int32(0))[0]

    at, step = jnp.float32(2.0), 0.05
    numeric = (loss(at + step) - loss(at - step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(loss)(at), numeric, rtol=5e-3)


def test_text_ids():
    tokens = np.unique(np.random.default_rng(0).integers(0, 50, (2000, 5), dtype=np.int32), axis=0)
    ids = np.asarray(text_ids(jnp.asarray(tokens)))
    assert ids.dtype == np.int32
    assert len(set(ids.tolist())) == len(tokens)
    assert np.array_equal(ids, text_ids(jnp.asarray(tokens)))


REPORT = {
    "train/loss": 1.0,
    "train/chance": math.log(64),
    "train/uniformity_image": -3.0,
    "train/uniformity_text": -3.0,
    "train/logit_scale": 14.3,
}


def test_a_stuck_loss_is_named_once():
    task = make()
    stuck = {**REPORT, "train/loss": math.log(64) - 0.001}
    assert task.advise(50, stuck) is None, "the first steps are always there"
    assert "log(N) = 4.159" in task.advise(200, stuck)
    assert task.advise(250, stuck) is None, "said once"
    assert task.advise(300, REPORT) is None
    assert task.advise(350, stuck), "said again after it was over"


@pytest.mark.parametrize("side", ["image", "text"])
def test_a_collapse_is_named(side):
    advice = make().advise(10, {**REPORT, f"train/uniformity_{side}": -0.001})
    assert advice.startswith(f"collapse: all {side} embeddings are nearly one point")


def test_collapse_shows_in_uniformity():
    """Images that are all the same are one point; texts that differ are not."""
    batch = make_batch()
    batch["image"][:] = 7
    metrics = gradients(make(), state_of(), batch)[1]
    assert abs(metrics["uniformity_image"]) < 1e-4
    assert metrics["uniformity_text"] < -0.02


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, r"info_nce needs task.model.temperature \(learned\) or task.loss.tau"),
        ({"loss": {"name": "sigmoid"}}, "sigmoid needs task.model.temperature and task.model.bias"),
        ({"loss": {"name": "info_nc"}}, 'Unknown loss "info_nc". Did you mean "info_nce"'),
        ({"loss": {"block": 4}}, 'Unknown key "block" in task.loss. Did you mean "block_size"'),
        ({"image": {"pool": "none"}}, "set its pool"),
        ({"image_head": "none"}, "Image embeddings have 16 features, text embeddings 8"),
        ({"image_head": "lineer"}, 'Unknown image_head "lineer". Did you mean "linear"'),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        task = make(**options)
        batch = make_batch()
        state = jax.eval_shape(task.init, jax.random.key(0), batch)
        jax.eval_shape(task.loss, state.params, state.variables, batch, jax.random.key(0), jnp.int32(0))


def test_a_batch_of_one_is_refused():
    with pytest.raises(ValueError, match=r"no negatives.*data.batch_size"):
        jax.eval_shape(make().init, jax.random.key(0), make_batch(rows=1))


def test_a_batch_that_does_not_divide_into_slices():
    with pytest.raises(ValueError, match=r"batch of 4 does not divide into task\.slices=3"):
        task = make(slices=3)
        state = state_of()
        jax.eval_shape(
            task.loss, state.params, state.variables, make_batch(), jax.random.key(0), jnp.int32(0)
        )
