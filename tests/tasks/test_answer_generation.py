"""Answers word by word: a batch is learnt and said by every search of decoding.py; what is hidden or missing changes nothing."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmgen_jax import decoding
from mmgen_jax.core import metrics as metrics_lib
from mmgen_jax.core import optimizer as optimizer_lib
from mmgen_jax.core import sharding
from mmgen_jax.data.text import BOS, EOS, PAD, UNK
from mmgen_jax.tasks.answer_generation import AnswerGeneration

B, T, L, V = 6, 5, 4, 12
TOKENIZER = SimpleNamespace(vocab_size=V, eos=EOS)
RNN = {"name": "rnn", "features": 16, "embed_features": 8, "attention_features": 8}
TRANSFORMER = {"name": "transformer", "features": 16, "layers": 1, "heads": 2, "mlp_ratio": 2, "max_len": L}
MODEL = {
    # No batch statistics: an example's answer is its own. No blocks: quick to compile.
    "towers": {
        "image": {"name": "vit", "width": 8, "depth": 0, "heads": 2, "patch": 4, "image_size": 8},
        "question": {"name": "text_rnn", "features": 8, "embed_features": 4, "max_len": T, "pool": "none"},
    },
    "modalities": ("image", "question"),
    "features": 8,
}


def make(decoder=RNN, decode=None, **model):
    return AnswerGeneration(
        model={**MODEL, "decoder": decoder, **model},
        decode={"max_len": L, **(decode or {})},
        optimizer=optimizer_lib.make(name="adamw", learning_rate=2e-2, schedule="constant", steps=100),
        layout=sharding.make(devices=jax.devices()[:1]),
        context={"tokenizer": TOKENIZER},
    )


def make_batch():
    """Questions of two to four tokens, answers of one to three words; the last two rows differ in their picture alone."""
    rng = np.random.default_rng(0)
    question, tokens = np.full((B, T), PAD, np.int32), np.full((B, 1, L + 1), PAD, np.int32)
    for i in range(B):
        question[i, : 3 + i % 3] = [BOS, *rng.integers(UNK + 1, V, 1 + i % 3), EOS]
        words = [*rng.permutation(np.arange(UNK + 1, V))[: 1 + i % 3]]
        tokens[i, 0, : len(words) + 2] = [BOS, *words, EOS]
    question[-1] = question[-2]
    image = rng.integers(0, 256, (B, 8, 8, 3), np.uint8)
    index = np.arange(B, dtype=np.int32)
    return {
        "image": image,
        "question": question,
        "tokens": tokens,
        "mask": np.ones(B, np.float32),
        "index": index,
    }


BATCH = make_batch()


def parameters(task, batch=BATCH):
    """Random ones, without a program for them."""
    draw = np.random.default_rng(1)
    shapes = jax.eval_shape(task.init, jax.random.key(0), batch).params
    return jax.tree.map(lambda x: np.float32(0.3 * draw.normal(size=x.shape)), shapes)


@pytest.mark.parametrize(
    ("decoder", "fusion"), [(RNN, None), (TRANSFORMER, {"name": "sum", "features": 8})], ids=["rnn", "transformer"]
)  # fmt: skip
def test_a_batch_is_learnt_and_said_word_for_word(decoder, fusion, monkeypatch):
    """By greedy search and by a beam, both of decoding.py, with the probability that teacher forcing gives these words."""
    task, searched = make(decoder, fusion=fusion), []
    state, step = jax.jit(task.init)(jax.random.key(0), BATCH), jax.jit(task.train_step)
    for _ in range(100):
        state, metrics = step(state, BATCH)
    metrics = metrics_lib.compute(metrics)
    assert metrics["loss"] < 0.05
    words = BATCH["tokens"][:, 0, 1:]
    for name in ("sample", "beam_search"):
        search = getattr(decoding, name)

        def spy(*args, name=name, search=search, **options):
            searched.append(name)
            return search(*args, **options)

        monkeypatch.setattr(decoding, name, spy)
    asked = {name: value for name, value in BATCH.items() if name != "tokens"}
    greedy, beam = (
        jax.jit(search)(state.params, state.variables, asked, jax.random.key(0))
        for search in (task.predict["answer"], task.search(max_len=L, beam=3, n_best=2))
    )
    assert searched == ["sample", "beam_search"]
    np.testing.assert_array_equal(greedy["tokens"][:, 0], words)
    np.testing.assert_array_equal(beam["tokens"][:, 0], words)
    assert np.all(greedy["finished"]) and np.all(beam["log_prob"][:, 0] > beam["log_prob"][:, 1])
    nll = jax.jit(task.predict["loss"])(state.params, state.variables, BATCH, None)["nll"]
    np.testing.assert_allclose(-nll.sum(axis=(1, 2)), beam["log_prob"][:, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("decoder", [RNN, {**RNN, "heads": 2, "attention": "dot"}, TRANSFORMER])
def test_what_is_hidden_changes_nothing(decoder):
    """What follows a question's end, and all of a modality that a row lacks; where it looked is on the picture alone."""
    task = make(decoder, fusion={"name": "sum", "features": 8})
    present = np.ones((B, 2), bool)
    present[0, 0] = present[1, 1] = False
    batch = {**BATCH, "present": present}
    params, run = parameters(task, batch), jax.jit(task.predict["loss"])
    image, question = BATCH["image"].copy(), BATCH["question"].copy()
    image[0], question[1] = 255 - image[0], question[3]
    question[:, -1] = np.where(question[:, -1] == PAD, UNK, question[:, -1])
    other = {**batch, "image": image, "question": question}
    one = run(params, {"model": {}}, batch, None)["nll"]
    np.testing.assert_allclose(run(params, {"model": {}}, other, None)["nll"], one, rtol=1e-5, atol=1e-6)
    whole = run(params, {"model": {}}, {**other, "present": np.ones_like(present)}, None)["nll"]
    assert np.abs(whole[:2] - one[:2]).max(axis=(1, 2)).min() > 1e-3
    weights = jax.jit(task.predict["attend"])(params, {"model": {}}, batch, None)["weights"]
    assert weights.shape == (B, 1, L, 4)
    np.testing.assert_array_equal(weights[0], 0.0)
    assert np.all((weights[1:].sum(axis=-1) < 1) & (weights[1:].sum(axis=-1) > 0))


def test_parts_and_where_they_begin():
    """A tower that `modalities` leaves out is not built; init_from of parts and towers is found; without fusion there is none."""
    towers = {name: {**tower, "init_from": f"{name}.st"} for name, tower in MODEL["towers"].items()}
    task = make({**RNN, "init_from": "words.st"}, towers=towers, modalities=("question",))
    assert task.init_from == {("model", "towers_question"): "question.st", ("model", "decoder"): "words.st"}
    params = jax.eval_shape(task.init, jax.random.key(0), BATCH).params["model"]
    assert params.keys() == {"towers_question", "project_question", "decoder"}
    gradients = jax.eval_shape(
        task.gradients, {"model": params}, {"model": {}}, BATCH, jax.random.key(0), jnp.int32(0)
    )
    assert gradients[1].keys() == {"loss"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder": {**RNN, "name": "rn"}}, r'Unknown decoder "rn". Did you mean "rnn"'),
        ({"decoder": {**RNN, "feature": 3}}, r'Unknown key "feature" in task.model.decoder'),
        ({"modalities": ("imge",)}, r'Unknown modality in task.model.towers "imge". Did you mean "image"'),
        ({"hidden": 3}, r'Unknown key "hidden" in task.model'),
        ({"decode": {"beam": 0}}, r"beam=0"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_an_input_that_is_not_there():
    with pytest.raises(ValueError, match=r"The examples have no question, which task.model.modalities names"):
        jax.eval_shape(make().init, jax.random.key(0), {name: BATCH[name] for name in ("image", "tokens")})
