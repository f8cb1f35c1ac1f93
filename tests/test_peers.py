"""The PyTorch peers of the benchmark compute the same thing as each other, and as our ResNet."""

import importlib.util
import itertools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmgen_jax import decoding
from mmgen_jax.models.captioner import RnnDecoder
from mmgen_jax.nn import resnet

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def peers():
    path = Path(__file__).parents[1] / "scripts" / "peers" / "captioner_torch.py"
    spec = importlib.util.spec_from_file_location("captioner_torch", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["captioner_torch"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def weights(peers):
    return peers.random_weights(vocab=7, features=5, hidden=6, attention=4, embed=3)


def batch():
    rng = np.random.default_rng(1)
    tokens = np.array([[1, 4, 5, 3, 2], [1, 6, 2, 0, 0], [1, 3, 3, 2, 0]])
    return rng.normal(size=(3, 8, 5)).astype(np.float32), tokens


def test_hoisted_equals_recompute(peers, weights):
    loss_a, grad_a = peers.gradients("recompute", weights, *batch())
    loss_b, grad_b = peers.gradients("hoisted", weights, *batch())
    assert loss_a == pytest.approx(loss_b, rel=1e-6)
    assert grad_a.keys() == weights.keys()
    for name, value in grad_a.items():
        assert np.abs(value).max() > 0, name
        np.testing.assert_allclose(grad_b[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_loss_equals_numpy(peers, weights):
    """The whole equation, word by word, in float64."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    features, tokens = batch()
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    entropy, words, penalty = 0.0, 0, 0.0
    for memory, row in zip(features.astype(np.float64), tokens, strict=True):
        h = np.tanh(memory.mean(0) @ w["init_h"] + w["init_h_bias"])
        c = np.tanh(memory.mean(0) @ w["init_c"] + w["init_c_bias"])
        attended = np.zeros(len(memory))
        for previous, target in itertools.pairwise(row):
            if target == 0:
                break
            energy = np.tanh(memory @ w["key"] + w["key_bias"] + h @ w["query"]) @ w["score"]
            alpha = np.exp(energy) / np.exp(energy).sum()
            context = sigmoid(h @ w["gate"] + w["gate_bias"]) * (alpha @ memory)
            x = np.concatenate([w["embed"][previous], context, h])
            matrix = np.concatenate([w["lstm_embed"], w["lstm_context"], w["lstm_hidden"]])
            i, f, g, o = np.split(x @ matrix + w["lstm_bias"], 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            deep = np.tanh(w["embed"][previous] + h @ w["out_hidden"] + context @ w["out_context"])
            logits = deep @ w["vocab"] + w["vocab_bias"]
            entropy += np.log(np.exp(logits).sum()) - logits[target]
            words += 1
            attended += alpha
        penalty += ((1 - attended) ** 2).sum() / len(features)
    loss, _ = peers.gradients("hoisted", weights, features, tokens)
    assert loss == pytest.approx(entropy / words + penalty, rel=1e-5)


def test_train_step_learns(peers, weights):
    step = peers.make_train_step("hoisted", weights, learning_rate=0.01)
    losses = [float(step(*batch())) for _ in range(20)]
    assert losses[0] == pytest.approx(peers.gradients("hoisted", weights, *batch())[0], rel=1e-6)
    assert losses[-1] < losses[0] - 0.1


def test_beams(peers, weights):
    features, _ = batch()
    tokens, scores = peers.beam(weights, features, k=3, max_len=4)
    alone, alone_scores = peers.beam(weights, features, k=3, max_len=4, batched=False)
    np.testing.assert_array_equal(tokens, alone)
    np.testing.assert_allclose(scores, alone_scores, rtol=1e-5)
    np.testing.assert_array_equal(
        peers.beam(weights, features, k=1, max_len=4)[0][:, 0], peers.greedy(weights, features, max_len=4)
    )


def test_wide_beam_equals_brute_force(peers, weights):
    """With room for every sentence of three words the beam is exact."""
    features, _ = batch()
    model = peers.Decoder(weights)
    words = range(2, 7)
    sentences = {s[: s.index(2) + 1] if 2 in s else s for s in itertools.product(words, repeat=3)}
    memory = torch.as_tensor(features[:1])
    scored = []
    for sentence in sentences:
        (h, c), score, token = model.start(memory), 0.0, 1
        for word in sentence:
            logits, h, c = model.step(memory, model.keys(memory), torch.tensor([token]), h, c)
            log_prob = logits[0].log_softmax(-1)
            score, token = score + log_prob[word].item(), word
        scored.append((score, sentence))
    scored.sort(reverse=True)
    tokens, scores = peers.beam(weights, features[:1], k=len(sentences), max_len=3)
    np.testing.assert_allclose(scores[0], [s for s, _ in scored], rtol=1e-4)
    assert [tuple(int(x) for x in row if x) for row in tokens[0][:10]] == [s for _, s in scored[:10]]


@pytest.mark.parametrize("gate", ["vector", "scalar"])
def test_decoder_equals_ours(peers, gate):
    sizes = {"vocab_size": 7, "features": 6, "embed_features": 3, "attention_features": 4}
    ours = RnnDecoder(**sizes, gate=gate)
    features, tokens = batch()
    rng = np.random.default_rng(2)
    params = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32),
        jax.eval_shape(
            lambda: ours.init(jax.random.key(0), jnp.zeros((3, 8, 5)), method="prepare")["params"]
        ),
    )
    rules = decoding.Rules(bos=1, eos=2, pad=0, max_len=5)

    @jax.jit
    def run(params):
        def call(method, *args):
            return ours.apply({"params": params}, *args, method=method)

        memory = call("prepare", features)
        forced = call("teacher_force", memory, jnp.asarray(tokens[:, :-1], jnp.int32), False)
        carry = call("start", memory, 9, 5)
        step = lambda token, carry: call("step", memory, token, carry)
        return *forced, decoding.beam_search(step, carry, rules, batch=3, beam=3, n_best=3)

    logits, alphas, found = run(params)
    weights = peers.from_params(params)
    with torch.inference_mode():
        got = peers.HoistedLoop(weights)(torch.as_tensor(features), torch.as_tensor(tokens))
    np.testing.assert_allclose(got[0], logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got[1], alphas[:, :, 0], rtol=1e-4, atol=1e-6)
    tokens, scores = peers.beam(weights, features, k=3, max_len=5)
    np.testing.assert_array_equal(tokens, found.tokens)
    np.testing.assert_allclose(scores, found.log_prob, rtol=1e-4)


def test_from_params_refuses_other_decoders(peers):
    with pytest.raises(ValueError, match="cell lstm, attention additive"):
        peers.from_params({"embed": np.zeros((3, 2))})


def test_resnet_equals_ours(peers):
    stages, width = (1, 2), 4
    ours = resnet.make(stages=stages, block="bottleneck", width=width, dtype=jnp.float32)
    image = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    rng = np.random.default_rng(1)
    variables = jax.tree.map(
        lambda leaf: rng.uniform(-0.5, 1, leaf.shape).astype(np.float32) ** 2,
        jax.eval_shape(lambda: ours.init(jax.random.key(0), jnp.zeros((2, 32, 32, 3)), train=False)),
    )
    theirs = peers.ResNet(stages, width).eval()
    theirs.load(variables["params"], variables["batch_stats"])
    with torch.inference_mode():
        got = theirs(torch.tensor(image))
    expected = ours.apply(variables, image, train=False)
    np.testing.assert_allclose(got, expected.reshape(2, -1, 32), rtol=1e-3)


def test_resnet50_has_the_published_count(peers):
    with torch.device("meta"):
        tower = peers.ResNet()
    assert sum(p.numel() for p in tower.parameters()) == 25_557_032 - 2_049_000


def test_end_to_end_step(peers):
    weights = peers.random_weights(vocab=7, features=32, hidden=6, attention=4, embed=3)
    step = peers.make_end_to_end_step("hoisted", weights, tower=peers.ResNet((1, 1), 4))
    image = np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype(np.float32)
    losses = [float(step(image, batch()[1])) for _ in range(3)]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
