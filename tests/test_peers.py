"""The PyTorch peers of the benchmark compute the same thing as each other, and as our ResNet.

That they compute what our dual encoder does is in test_benchmark.py.
"""

import importlib
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmgen_jax import decoding
from mmgen_jax.models.captioner import RnnDecoder
from mmgen_jax.nn import resnet

ROOT = Path(__file__).resolve().parents[1]

torch = pytest.importorskip("torch")


def module(name):
    """A module of scripts/peers/."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "scripts")
        return importlib.import_module(f"peers.{name}")


@pytest.fixture(scope="module")
def peers():
    return module("captioner_torch")


@pytest.fixture(scope="module")
def clip():
    return module("dual_encoder_torch")


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


def random_clip(clip):
    """A small model with random weights."""
    rng = np.random.default_rng(0)
    block = {"ln_1.weight": (64,), "ln_1.bias": (64,), "ln_2.weight": (64,), "ln_2.bias": (64,)}
    block |= {"attn.in_proj_weight": (192, 64), "attn.in_proj_bias": (192,)}
    block |= {"attn.out_proj.weight": (64, 64), "attn.out_proj.bias": (64,)}
    block |= {"mlp.c_fc.weight": (256, 64), "mlp.c_fc.bias": (256,)}
    block |= {"mlp.c_proj.weight": (64, 256), "mlp.c_proj.bias": (64,)}
    norm = lambda name: {f"{name}.weight": (64,), f"{name}.bias": (64,)}
    blocks = {f"transformer.resblocks.0.{name}": shape for name, shape in block.items()}
    shapes = {"token_embedding.weight": (20, 64), "positional_embedding": (6, 64), "text_projection": (64, 8)}
    shapes |= {
        "logit_scale": (),
        **blocks,
        **norm("ln_final"),
        **norm("visual.ln_pre"),
        **norm("visual.ln_post"),
    }
    shapes |= {f"visual.{name}": shape for name, shape in blocks.items()}
    shapes |= {"visual.conv1.weight": (64, 3, 8, 8), "visual.class_embedding": (64,), "visual.proj": (64, 8)}
    shapes |= {"visual.positional_embedding": (5, 64)}
    weights = {name: rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}
    return clip.CLIP(weights, eos=19), weights


def clip_batch():
    rng = np.random.default_rng(1)
    tokens = np.array([[18, 3, 19, 0, 0, 0], [18, 5, 6, 7, 8, 19], [18, 19, 0, 0, 0, 0]])
    image = rng.integers(0, 256, (3, 16, 16, 3), np.uint8)
    return image, tokens


def test_clip_ignores_what_follows_the_text(clip):
    model, _ = random_clip(clip)
    tokens = torch.as_tensor(clip_batch()[1])
    other = tokens.clone()
    other[0, 3:], other[2, 2:] = 19, 7
    with torch.inference_mode():
        torch.testing.assert_close(model.embed_text(tokens), model.embed_text(other))
        assert not torch.allclose(model.embed_text(tokens)[0], model.embed_text(tokens)[1])


def test_clip_refuses_other_weights(clip):
    _, weights = random_clip(clip)
    weights["visual.more"] = weights["logit_scale"]
    with pytest.raises(ValueError, match=r"visual\.more.* unexpected"):
        clip.CLIP(weights, eos=19)


def test_clip_loss_equals_numpy(clip):
    rng = np.random.default_rng(0)
    image, text = (rng.normal(size=(5, 4)).astype(np.float32) for _ in range(2))
    loss, image_grad, text_grad, scale_grad = clip.loss_gradients(
        torch.tensor(image), torch.tensor(text), torch.tensor(3.0)
    )

    def value(image, text, scale):
        logits = scale * image @ text.T
        total = np.log(np.exp(logits).sum(1)).mean() + np.log(np.exp(logits).sum(0)).mean()
        return total / 2 - np.diag(logits).mean()

    image, text = image.astype(np.float64), text.astype(np.float64)
    assert float(loss) == pytest.approx(value(image, text, 3.0), rel=1e-5)
    nudge = np.zeros_like(image)
    nudge[2, 1] = 1e-5
    slopes = [
        (value(image + nudge, text, 3.0) - value(image - nudge, text, 3.0)) / 2e-5,
        (value(image, text + nudge, 3.0) - value(image, text - nudge, 3.0)) / 2e-5,
        (value(image, text, 3.0 + 1e-5) - value(image, text, 3.0 - 1e-5)) / 2e-5,
    ]
    np.testing.assert_allclose([image_grad[2, 1], text_grad[2, 1], scale_grad], slopes, rtol=1e-4)


def test_clip_step_learns(clip):
    model, _ = random_clip(clip)
    image, tokens = clip_batch()
    pixels = clip.pixels(image)
    assert pixels.shape == (3, 3, 16, 16)
    step = clip.make_train_step(model, compiled=False, device="cpu", dtype="float32", learning_rate=1e-3)
    losses = [float(step(pixels, tokens)) for _ in range(10)]
    assert losses[-1] < losses[0] - 0.1


def test_ranks_equal_numpy(clip):
    """Small integers tie often; a tie counts against the query."""
    rng = np.random.default_rng(0)
    queries, keys = (rng.integers(-2, 3, (n, 4)).astype(np.float32) for n in (7, 15))
    query_id, key_id = np.arange(7), rng.permutation(np.r_[np.arange(7), rng.integers(0, 7, 8)])
    got = clip.ranks(*map(torch.tensor, (queries, keys, query_id, key_id)), block=3)
    scores, own = queries @ keys.T, query_id[:, None] == key_id
    best = np.where(own, scores, -np.inf).max(1, keepdims=True)
    np.testing.assert_array_equal(got, 1 + ((scores >= best) & ~own).sum(1))
