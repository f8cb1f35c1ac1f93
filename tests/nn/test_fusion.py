"""Every fusion against plain numpy in float64, from its own parameters; masks; missing modalities; any number of them."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmgen_jax.nn import fusion
from mmgen_jax.nn.fusion import Stream

B, D, HEADS = 3, 8, 2
SIZES = ((4, 6), (3, 5), (1, 7))  # tokens and features of three streams, the last one pooled
FIELDS = {
    "concatenation": {},
    "mfb": {"features": D, "rank": 3, "dropout": 0.0},
    "mutan": {"features": D, "rank": 3, "hidden": 5},
    "film": {"features": D, "blocks": 2},
    "mac": {"features": D, "steps": 2},
    **{name: {"features": D} for name in ("sum", "multiplicative_gate", "additive_gate")},
    **{
        name: {"features": D, "layers": 2, "heads": HEADS}
        for name in ("cross_attention", "co_attention", "merged")
    },
}
rng = np.random.default_rng(0)
TOKENS = [rng.normal(size=(B, *size)) for size in SIZES]
MASKS = [np.array([[1, 1, 0, 1], [1, 1, 1, 1], [1, 0, 0, 0]], bool), np.array([[1, 1, 0], [1, 1, 1], [1, 0, 0]], bool),
         np.ones((B, 1), bool)]  # fmt: skip


def streams(count=3, masks=MASKS, tokens=TOKENS):
    return [Stream(np.float32(x), mask) for x, mask in zip(tokens[:count], masks[:count], strict=True)]


@functools.cache
def model(name, count=3):
    """Parameters drawn at random, none of them zero or one, and the compiled module."""
    module = fusion.build({"name": name, **FIELDS[name]}, "here", dtype=jnp.float32)
    init = functools.partial(module.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), streams(count)).get("params", {})
    draw = np.random.default_rng(1)
    params = jax.tree.map(lambda x: np.float32(0.4 * draw.normal(size=x.shape)), shapes)
    return params, jax.jit(lambda params, given: module.apply({"params": params}, given, train=False))


def apply(name, given):
    params, run = model(name, len(given))
    return run(params, given)


# Plain numpy, example by example: x is [P, D], a mask has been applied by leaving rows out.


def dense(p, x):
    return x @ np.float64(p["kernel"]) + (np.float64(p["bias"]) if "bias" in p else 0.0)


def norm(p, x):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    return x * np.float64(p["scale"]) + np.float64(p["bias"])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))


def attend(q, k, v):
    """[T, D], [P, D], [P, D] -> [T, D], the mean weights over heads [T, P]."""
    out, weights = [], []
    for h in range(HEADS):
        part = slice(h * D // HEADS, (h + 1) * D // HEADS)
        weights.append(softmax(q[:, part] @ k[:, part].T / np.sqrt(D // HEADS)))
        out.append(weights[-1] @ v[:, part])
    return np.concatenate(out, axis=1), np.mean(weights, axis=0)


def block(p, x, look=None):
    q, k, v = np.split(dense(p["qkv"], norm(p["attention_norm"], x)), 3, axis=1)
    x = x + dense(p["out"], attend(q, k, v)[0])
    if look:
        x = look(x)
    return x + dense(p["mlp_out"], gelu(dense(p["mlp_in"], norm(p["mlp_norm"], x))))


def guided(p, x, memory):
    weights = None
    for i in (1, 2):

        def look(y, i=i):
            nonlocal weights
            g = p[f"guide{i}"]
            tokens = norm(g["memory_norm"], memory)
            query = dense(g["query"], norm(g["norm"], y))
            seen, weights = attend(query, dense(g["key"], tokens), dense(g["value"], tokens))
            return y + dense(g["out"], seen)

        x = block(p[f"block{i}"], x, look if memory is not None else None)
    return x, weights


def stacked(p, x):
    return block(p["block2"], block(p["block1"], x))


def concatenation(p, xs):
    return np.concatenate([x.mean(0) for x in xs]), None


def projected(p, xs):
    return [dense(p[f"project{i + 1}"], x.mean(0)) for i, x in enumerate(xs)]


def plain_sum(p, xs):
    return np.sum(projected(p, xs), axis=0), None


def multiplicative_gate(p, xs):
    parts = projected(p, xs)
    gates = [sigmoid(dense(p[f"gate{i + 1}"], np.concatenate(parts))) for i in range(len(xs))]
    return sum(part * gate for part, gate in zip(parts, gates, strict=True)), None


def additive_gate(p, xs):
    return np.float64(p["weights"]) @ np.stack(projected(p, xs)), None


def mfb(p, xs):
    factors = [dense(p[f"factor{i + 1}"], x.mean(0)).reshape(D, 3) for i, x in enumerate(xs)]
    z = np.prod(factors, axis=0).sum(1)
    z = np.sign(z) * (np.sqrt(np.abs(z) + 1e-6) - 1e-3)
    return z / np.linalg.norm(z), None


def mutan(p, xs):
    hidden = [np.tanh(dense(p[f"project{i + 1}"], x.mean(0))) for i, x in enumerate(xs)]
    factors = [dense(p[f"factor{i + 1}"], x).reshape(3, D) for i, x in enumerate(hidden)]
    return np.prod(factors, axis=0).sum(0), None


def film(p, xs):
    x = np.maximum(dense(p["project"], xs[0]), 0)
    for i in (1, 2):
        y = dense(p[f"out{i}"], np.maximum(dense(p[f"in{i}"], x), 0))
        y = norm(p[f"norm{i}"], y)
        if xs[1:]:
            gamma, beta = np.split(dense(p[f"film{i}"], np.concatenate([s.mean(0) for s in xs[1:]])), 2)
            y = (1 + gamma) * y + beta
        x = x + np.maximum(y, 0)
    return x.max(0), None


def common(p, xs):
    return [dense(p[f"project{i + 1}"], x) for i, x in enumerate(xs)]


def cross_attention(p, xs):
    first, *others = common(p, xs)
    asking, weights = guided(p, np.concatenate([np.float64(p["summary"])[None], *others]), first)
    return norm(p["norm"], asking[0]), weights[0]


def co_attention(p, xs):
    first, *others = common(p, xs)
    others = [stacked(p[f"encoder{i + 2}"], x) for i, x in enumerate(others)]
    first, _ = guided(p, first, np.concatenate(others) if others else None)
    total, looked = 0.0, []
    for i, x in enumerate([first, *others], 1):
        x = norm(p[f"norm{i}"], x)
        scores = dense(p[f"reduce{i}_out"], np.maximum(dense(p[f"reduce{i}_in"], x), 0))
        looked.append(softmax(scores[:, 0]))
        total = total + dense(p[f"merge{i}"], looked[-1] @ x)
    return norm(p["norm"], total), looked[0]


def merged(p, xs):
    x = stacked(p, np.concatenate([np.float64(p["summary"])[None], *common(p, xs)]))
    return norm(p["norm"], x[0]), None


def elu(x):
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def mac(p, xs):
    first, *others = common(p, xs)
    words = np.concatenate([np.float64(p["word"])[None], *others])
    control, memory = np.float64(p["control0"]), np.float64(p["memory0"])
    question = np.tanh(dense(p["question"], words.mean(0)))
    for i in (1, 2):
        ask = dense(p["control"], np.concatenate([control, dense(p[f"question{i}"], question)]))
        control = softmax(dense(p["word_score"], ask * words)[:, 0]) @ words
        met = dense(p["memory"], memory) * dense(p["known"], first)
        met = elu(control * elu(dense(p["relate"], np.concatenate([met, first], axis=1))))
        weights = softmax(dense(p["place_score"], met)[:, 0])
        memory = dense(p["write"], np.concatenate([weights @ first, memory]))
    return np.concatenate([question, memory]), weights


PLAIN = {"sum": plain_sum} | {
    f.__name__: f
    for f in (concatenation, multiplicative_gate, additive_gate, mfb, mutan, film, cross_attention, co_attention, merged, mac)
}  # fmt: skip
NAMES = sorted(fusion.FUSIONS)


def test_all_are_here():
    assert NAMES == sorted(PLAIN) == sorted(FIELDS)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_against_numpy(name, count):
    """One stream and three; padding is left out on the plain side."""
    fused, (params, _) = apply(name, streams(count)), model(name, count)
    for row in range(B):
        given = [x[row][mask[row]] for x, mask in zip(TOKENS[:count], MASKS[:count], strict=True)]
        vector, weights = PLAIN[name](params, given)
        np.testing.assert_allclose(fused.vector[row], vector, rtol=2e-5, atol=2e-5)
        assert (fused.attention is None) == (weights is None)
        if weights is not None:
            np.testing.assert_allclose(fused.attention[row][MASKS[0][row]], weights, rtol=2e-5, atol=1e-6)
            assert not np.asarray(fused.attention[row])[~MASKS[0][row]].any()


def without(which, filled=np.nan):
    """All three streams, of which row 0 lacks one; what stands in its place must not matter."""
    masks, tokens = [mask.copy() for mask in MASKS], [x.copy() for x in TOKENS]
    masks[which][0] = False
    tokens[which][0] = filled
    return streams(masks=masks, tokens=tokens)


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_missing_does_not_matter(name, which):
    """Not the values there, NaN too, nor their gradient; the other rows stay as they were."""
    fused, other = apply(name, without(which)), apply(name, without(which, 5.0))
    np.testing.assert_array_equal(fused.vector, other.vector)
    assert np.isfinite(np.asarray(fused.vector)).all()
    np.testing.assert_allclose(fused.vector[1:], apply(name, streams()).vector[1:], rtol=1e-6, atol=1e-6)
    if fused.attention is not None:
        assert np.isfinite(np.asarray(fused.attention)).all()
        assert bool(fused.attention[0].any()) == (which != 0)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_one_equals_the_others_alone(name):
    """The same parameters without those of the third stream, on the first two, give the row that lacks the third."""
    params, _ = model(name)
    alone = dict(params)
    if name in ("multiplicative_gate", "film"):  # their inner layers read all streams side by side
        inner = [key for key in params if key.startswith(("gate", "film"))]
        width = 2 * D if name == "multiplicative_gate" else SIZES[1][1]
        alone |= {key: {**params[key], "kernel": params[key]["kernel"][:width]} for key in inner}
    if name == "additive_gate":
        alone["weights"] = params["weights"][:2]
    if name == "co_attention":
        alone.pop("encoder3")
    module = fusion.build({"name": name, **FIELDS[name]}, "here", dtype=jnp.float32)
    expected = jax.jit(functools.partial(module.apply, train=False))({"params": alone}, streams(2)).vector[0]
    vector = apply(name, without(2)).vector[0]
    if name == "concatenation":
        assert not np.asarray(vector[-SIZES[2][1] :]).any()
        vector = vector[: -SIZES[2][1]]
    np.testing.assert_allclose(vector, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_finite_with_nothing_there(name):
    params, run = model(name)
    given = streams(masks=[np.zeros_like(mask) for mask in MASKS], tokens=[np.zeros_like(x) for x in TOKENS])
    grads = jax.jit(jax.grad(lambda params: jnp.sum(jnp.square(run(params, given).vector))))(params)
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("name", NAMES)
def test_half_precision(name):
    module = fusion.build({"name": name, **FIELDS[name]}, "here", dtype=jnp.bfloat16)
    half = [Stream(jnp.zeros(stream.tokens.shape, jnp.bfloat16), stream.mask) for stream in streams()]
    (fused, _) = jax.eval_shape(
        functools.partial(module.init_with_output, train=False), jax.random.key(0), half
    )
    assert fused.vector.dtype == jnp.bfloat16
    assert fused.attention is None or fused.attention.dtype == jnp.float32


def test_bad_specs():
    with pytest.raises(ValueError, match=r'Unknown fusion in task.model.fusion "fim".*Did you mean "film"'):
        fusion.build({"name": "fim"}, "task.model.fusion", dtype=jnp.float32)
    with pytest.raises(ValueError, match=r'Unknown key "block" in task.model.fusion. Did you mean "blocks"'):
        fusion.build({"name": "film", "features": 8, "block": 2}, "task.model.fusion", dtype=jnp.float32)
