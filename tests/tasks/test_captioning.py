"""The captioning objective: it learns a batch, counts words alone, and does what each of its options says."""

import functools
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
from mmgen_jax.losses import sequence
from mmgen_jax.tasks.captioning import Captioning

B, C, T, V = 4, 2, 6, 12
RNN = {"name": "rnn", "features": 16, "embed_features": 8, "attention_features": 8}
TRANSFORMER = {"name": "transformer", "features": 16, "layers": 1, "heads": 2, "mlp_ratio": 2, "max_len": T}
# No batch statistics: an example's gradient is its own. No blocks: quick to compile.
TOWER = {"name": "vit", "width": 16, "depth": 0, "heads": 2, "patch": 8, "image_size": 16}


def make(decoder=RNN, decode=None, learning_rate=1e-2, **options):
    optimizer = optimizer_lib.make(
        name="adamw", learning_rate=learning_rate, schedule="constant", steps=60, clip_norm=1.0
    )
    return Captioning(
        model={"encoder": TOWER, "decoder": decoder},
        decode={"max_len": T, **(decode or {})},
        optimizer=optimizer,
        layout=sharding.make(devices=jax.devices()[:1]),
        context={"tokenizer": SimpleNamespace(vocab_size=V)},
        **options,
    )


def make_batch(seed=0, rows=B):
    rng = np.random.default_rng(seed)
    tokens = np.full((rows, C, T + 1), PAD, np.int32)
    for i, c in np.ndindex(rows, C):
        words = rng.integers(UNK + 1, V, rng.integers(1, T))
        tokens[i, c, : len(words) + 2] = [BOS, *words, EOS]
    return {
        "image": rng.integers(0, 256, (rows, 16, 16, 3), np.uint8),
        "tokens": tokens,
        "mask": np.ones(rows, np.float32),
        "index": np.arange(rows, dtype=np.int32),
    }


@functools.cache
def random_parameters(decoder="rnn"):
    """Quicker than to compile `init`."""
    decoders = {"rnn": RNN, "two heads": {**RNN, "heads": 2}, "transformer": TRANSFORMER}
    task, rng = make(decoders[decoder]), np.random.default_rng(0)
    state = jax.eval_shape(task.init, jax.random.key(0), make_batch())
    assert state.variables == {"model": {}}
    return jax.tree.map(lambda x: jnp.float32(0.3 * rng.normal(size=x.shape)), state.params)


@functools.cache
def compiled(**options):
    return jax.jit(make(**options).loss)


def run_loss(batch, step=0, **options):
    """-> scalar, {metric: (total, count)}."""
    fn, rng = compiled(**options), jax.random.key(1)
    scalar, (metrics, _) = fn(random_parameters(), {"model": {}}, batch, rng, jnp.int32(step))
    return float(scalar), {name: (float(mean.total), float(mean.count)) for name, mean in metrics.items()}


@functools.cache
def _forward():
    return jax.jit(make().model.apply)


def teacher_forced(batch):
    """The model's logits and weights for the batch, in float64, and the mask of its words."""
    logits, weights = _forward()(
        {"params": random_parameters()["model"]}, batch["image"], batch["tokens"][:, :, :-1]
    )
    mask = (batch["tokens"][:, :, 1:] != PAD) * batch["mask"][:, None, None]
    return np.float64(logits), np.float64(weights), mask


def nll(logits, tokens):
    log_probs = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    return -np.take_along_axis(log_probs, tokens[:, :, 1:, None], axis=-1)[..., 0], log_probs


@pytest.mark.parametrize("decoder", [RNN, TRANSFORMER], ids=["rnn", "transformer"])
def test_learns_a_batch(decoder):
    task, batch = make(decoder, learning_rate=2e-2), make_batch()
    state, step = jax.jit(task.init)(jax.random.key(0), batch), jax.jit(task.train_step)
    first = None
    for _ in range(60):
        state, metrics = step(state, batch)
        metrics = metrics_lib.compute(metrics)
        first = first or metrics["loss"]
    # An image has two right captions: the word where they part costs log 2, the rest nothing.
    floor = C * B * np.log(2) / np.sum(batch["tokens"][:, :, 1:] != PAD)
    assert first > 2.0
    assert metrics["loss"] < floor + 0.1
    assert metrics["grad_norm"] > 0
    written = jax.jit(task.predict["generate"])(state.eval_params, state.variables, batch, jax.random.key(0))
    for caption, truths in zip(
        written["tokens"][:, 0].tolist(), batch["tokens"][:, :, 1:].tolist(), strict=True
    ):
        assert caption in truths


def test_metrics_count_words_alone():
    batch = make_batch()
    logits, _, mask = teacher_forced(batch)
    scalar, metrics = run_loss(batch)
    expected = np.sum(nll(logits, batch["tokens"])[0] * mask)
    assert metrics["loss"][1] == mask.sum()
    np.testing.assert_allclose(metrics["loss"][0], expected, rtol=1e-5)
    np.testing.assert_allclose(scalar, expected / mask.sum(), rtol=1e-5)


def test_masked_examples_contribute_nothing():
    batch, task = make_batch(), make(doubly_stochastic=0.5, label_smoothing=0.1)

    @jax.jit
    def run(params, batch):
        value_and_grad = jax.value_and_grad(task.loss, has_aux=True)
        (scalar, (metrics, _)), gradient = value_and_grad(
            params, {"model": {}}, batch, jax.random.key(1), jnp.int32(0)
        )
        return scalar, metrics, gradient

    one = run(random_parameters(), {**batch, "mask": np.float32([1, 0, 1, 0])})
    other = run(random_parameters(), {name: value[::2] for name, value in batch.items()})
    for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    nothing = run(random_parameters(), {**batch, "mask": np.zeros(B, np.float32)})
    assert all(np.all(np.asarray(x) == 0.0) for x in jax.tree.leaves(nothing))


def test_label_smoothing_changes_the_objective_and_not_the_metric():
    batch = make_batch()
    logits, _, mask = teacher_forced(batch)
    losses, log_probs = nll(logits, batch["tokens"])
    scalar, metrics = run_loss(batch, label_smoothing=0.2)
    np.testing.assert_allclose(metrics["loss"][0], np.sum(losses * mask), rtol=1e-5)
    smooth = 0.8 * losses - 0.2 * log_probs.mean(axis=-1)
    np.testing.assert_allclose(scalar, np.sum(smooth * mask) / mask.sum(), rtol=1e-5)


def test_doubly_stochastic_term():
    batch = make_batch()
    logits, weights, mask = teacher_forced(batch)
    scalar, metrics = run_loss(batch, doubly_stochastic=0.7)
    looked = np.sum(weights * mask[..., None, None], axis=2)
    penalty = np.sum((1 - looked) ** 2, axis=-1).mean(axis=-1)
    np.testing.assert_allclose(metrics["attention_penalty"], (penalty.sum(), B * C), rtol=1e-5)
    # Equation 14 is a caption's summed loss and lambda times the penalty; here divided by the words.
    expected = (np.sum(nll(logits, batch["tokens"])[0] * mask) + 0.7 * penalty.sum()) / mask.sum()
    np.testing.assert_allclose(scalar, expected, rtol=1e-5)


def test_scheduled_sampling_ramps(monkeypatch):
    """The rate that reaches the decoder, and that a rate of 0 is plain teacher forcing."""
    batch, rates = make_batch(), []

    def record(step, carry, tokens, rate, rng):
        jax.debug.callback(lambda rate: rates.append(float(rate)), rate)
        return inputs(step, carry, tokens, rate, rng)

    inputs = decoding.scheduled_inputs
    monkeypatch.setattr(decoding, "scheduled_inputs", record)
    task = make(scheduled_sampling=0.4, scheduled_steps=10)
    fn = jax.jit(task.loss)
    params = random_parameters()
    losses = [
        float(fn(params, {"model": {}}, batch, jax.random.key(1), jnp.int32(step))[0])
        for step in (0, 5, 10, 99)
    ]
    jax.effects_barrier()
    np.testing.assert_allclose(rates, [0.0, 0.2, 0.4, 0.4], rtol=1e-6)
    np.testing.assert_allclose(losses[0], run_loss(batch)[0], rtol=1e-6)
    # The same coins: at full rate some inputs are the model's own.
    assert losses[2] == losses[3] != losses[0]


def test_targets_stay_the_true_words_under_scheduled_sampling():
    task, batch = make(), make_batch()
    scalar, metrics = run_loss(batch, step=1, scheduled_sampling=1.0, scheduled_steps=1)
    assert metrics["loss"][1] == np.sum(batch["tokens"][:, :, 1:] != PAD)
    params = {"params": random_parameters()["model"]}
    # All inputs but the first are the model's own: run the contract by hand with the same key.
    schedule = jax.random.split(jax.random.key(1))[1]

    @jax.jit
    def expected():
        memory = task.model.apply(params, batch["image"], method="encode")
        carry = task.model.apply(params, memory, B * C, T, method="start")
        step = lambda words, carry: task.model.apply(params, memory, words, carry, method="step")
        rows = jnp.asarray(batch["tokens"][:, :, :-1].reshape(-1, T))
        rows = decoding.scheduled_inputs(step, carry, rows, 1.0, schedule)
        logits, _ = task.model.apply(params, memory, rows, method="teacher_force")
        return sequence.cross_entropy(logits.reshape(B, C, T, V), jnp.asarray(batch["tokens"][:, :, 1:]))

    mask = batch["tokens"][:, :, 1:] != PAD
    np.testing.assert_allclose(scalar, np.sum(np.asarray(expected()) * mask) / mask.sum(), rtol=1e-5)


@pytest.mark.parametrize("decoder", ["rnn", "transformer"])
@pytest.mark.parametrize(
    ("decode", "shape"),
    [
        ({}, (B, 1)),
        ({"beam": 3, "n_best": 2, "length_penalty": 0.7, "min_len": 2}, (B, 2)),
        ({"temperature": 0.9, "n_best": 3, "top_k": 4, "top_p": 0.9, "no_repeat": 1}, (B, 3)),
    ],
)
def test_generate(decoder, decode, shape):
    """Any search: its log_prob is what teacher forcing of the same words gives."""
    task, batch = make({"rnn": RNN, "transformer": TRANSFORMER}[decoder], decode=decode), make_batch()
    params = random_parameters(decoder)

    @jax.jit
    def run(batch):
        output = task.predict["generate"](params, {"model": {}}, batch, jax.random.key(0))
        starts = jnp.full((*shape, 1), BOS, jnp.int32)
        again = {**batch, "tokens": jnp.concatenate([starts, output["tokens"]], axis=-1)}
        return output, task.predict["loss"](params, {"model": {}}, again, jax.random.key(0))["nll"]

    output, losses = run(batch)
    assert output["tokens"].shape == (*shape, T)
    assert output["tokens"].dtype == jnp.int32
    for name in ("log_prob", "score", "finished"):
        assert output[name].shape == shape
    np.testing.assert_allclose(-losses.sum(axis=-1), output["log_prob"], rtol=1e-4, atol=1e-5)
    assert not np.isin(output["tokens"], (BOS, UNK)).any()
    # An image's captions do not depend on the other images of its batch.
    if not decode.get("temperature"):
        turned = run({name: value[::-1] for name, value in batch.items()})[0]
        np.testing.assert_array_equal(turned["tokens"][::-1], output["tokens"])


def test_predictions():
    batch = make_batch()
    task, params = make({**RNN, "heads": 2}), random_parameters("two heads")
    losses = task.predict["loss"](params, {"model": {}}, batch, None)["nll"]
    assert losses.shape == (B, C, T)
    assert np.all((np.asarray(losses) > 0) == (batch["tokens"][:, :, 1:] != PAD))
    weights = task.predict["attend"](params, {"model": {}}, batch, None)["weights"]
    assert weights.shape == (B, C, T, 4)
    np.testing.assert_allclose(weights.sum(axis=-1), 1.0, rtol=1e-5)


@pytest.mark.parametrize(
    ("decode", "message"),
    [
        ({"beam": 3, "temperature": 1.0}, "beam=3 with temperature=1.0; take a beam or samples"),
        ({"beam": 2, "n_best": 3}, "n_best=3 of beam=2; widen the beam"),
        ({"n_best": 3}, "n_best=3 of beam=1"),
    ],
)
def test_contradicting_searches(decode, message):
    with pytest.raises(ValueError, match=message):
        make(decode=decode)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float16"}, 'Unknown dtype "float16".* "bfloat16"'),
        ({"decoder": {**RNN, "name": "rn"}}, 'Unknown decoder "rn".* "rnn"'),
        ({"decoder": {**RNN, "feature": 3}}, 'Unknown key "feature" in task.model.decoder.* "features"'),
        ({"decode": {"beams": 3}}, 'Unknown key "beams" in task.decode.* "beam"'),
        ({"decode": {"beam": 0}}, "beam=0"),
        ({"decode": {"temperature": -1.0}}, "temperature=-1.0"),
        ({"decode": {"temperature": 1.0, "top_p": 0.0}}, "top_p=0.0"),
        ({"decode": {"max_len": 0}}, "max_len=0"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
