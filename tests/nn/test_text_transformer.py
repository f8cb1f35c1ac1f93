"""Transformer text towers: published parameter counts, what is added and pooled, what padding may change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmgen_jax.nn import text_transformer
from mmgen_jax.nn.transformer import EncoderBlock

V, EOS, D, H, T = 9, 2, 8, 2, 6
# Texts of 3, 6 (no end: all of it), 1 and 4 tokens; a second end and other tokens may follow the first end.
TOKENS = np.array([[1, 3, 2, 0, 0, 0], [1, 4, 5, 6, 7, 3], [2, 8, 8, 2, 3, 1], [1, 7, 7, 2, 2, 2]], np.int32)
LENGTHS = np.array([3, 6, 1, 4])
TEXT = np.arange(T) < LENGTHS[:, None]
OTHER = np.where(TEXT, TOKENS, 8)  # the same texts with other padding
TINY = {"width": D, "depth": 2, "heads": H, "max_len": 7, "vocab_size": V, "eos": EOS}
# A bit of everything, on the smallest of the published shapes.
KINDS = {
    "clip": {"variant": "clip_b"},
    "siglip": {"variant": "siglip_b"},
    "bert": {"variant": "bert_base"},
    "mean": {"pool": "mean"},
}


def make(kind="mean", **fields):
    return text_transformer.make(**{"dtype": jnp.float32, **TINY, **KINDS[kind], **fields})


def run(variables, kind, tokens=TOKENS, train=False, rng=None, **fields):
    def apply(variables, tokens):
        rngs = None if rng is None else {"dropout": rng}
        return make(kind, **fields).apply(variables, tokens, train=train, rngs=rngs)

    return jax.jit(apply)(variables, jnp.asarray(tokens))


@pytest.fixture(scope="module")
def variables():
    """Of each kind, with scales and biases that are not what they start as."""

    def init(kind):
        module = make(kind)
        variables = jax.jit(lambda: module.init(jax.random.key(0), jnp.asarray(TOKENS), train=False))()
        noise = np.random.default_rng(0)
        return jax.tree.map(lambda x: x + jnp.float32(0.3 * noise.normal(size=x.shape)), variables)

    return {kind: init(kind) for kind in KINDS}


@pytest.mark.parametrize(
    ("variant", "vocab_size", "count"),
    [
        # CLIP's whole published networks, without image towers, projections and the scale.
        ("clip_b", 49_408, 151_277_313 - 87_849_216 - 512 * 512 - 1),
        ("clip_l", 49_408, 427_616_513 - 303_179_776 - 1024 * 768 - 768 * 768 - 1),
        # SigLIP B/16 without its image tower, the text tower's head, scale and bias.
        ("siglip_b", 32_000, 203_155_970 - 92_884_224 - 769 * 768 - 2),
        ("bert_base", 30_522, 109_482_240),
    ],
)
def test_published_counts(variant, vocab_size, count):
    fields = {"variant": variant, "vocab_size": vocab_size, "eos": 2, "dtype": jnp.bfloat16}
    tokens = jax.ShapeDtypeStruct((2, 16), jnp.int32)
    sizes = []
    for scan in (False, True):
        module = text_transformer.make(**fields, scan=scan, remat=scan)
        pooled, variables = jax.eval_shape(
            lambda tokens: module.init_with_output(jax.random.key(0), tokens, train=False), tokens
        )
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
        assert (pooled.shape, pooled.dtype) == ((2, module.width), jnp.bfloat16)
        sizes.append(sum(leaf.size for leaf in jax.tree.leaves(variables)))
    assert sizes == [count, count]


def norm(x, p, epsilon):
    x = x - x.mean(axis=-1, keepdims=True)
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + epsilon) * p["scale"] + p["bias"]


BLOCKS = {
    "clip": {"causal": True, "activation": "quick_gelu", "epsilon": 1e-5},
    "siglip": {"activation": "gelu_tanh", "epsilon": 1e-6},
    "bert": {"norm": "post", "epsilon": 1e-12},
    "mean": {},
}


@pytest.mark.parametrize("kind", KINDS)
def test_equals_its_parts(variables, kind):
    """The blocks have a test of their own; here tables, mask, norms and pools."""
    p = jax.tree.map(np.asarray, variables[kind]["params"])
    x = p["embed"][TOKENS] + p["position"][:T]
    if kind == "bert":
        x = norm(x + p["segment"][0], p["embed_norm"], 1e-12)
    block = EncoderBlock(heads=H, mlp=4 * D, **BLOCKS[kind])
    mask = TEXT[:, None, None] if kind in ("bert", "mean") else None
    for name in ("block1", "block2"):
        x = block.apply({"params": p[name]}, jnp.float32(x), mask, train=False)
    x = np.asarray(x)
    if kind != "bert":
        x = norm(x, p["norm"], block.epsilon)
    got = run(variables[kind], kind, pool="none")
    np.testing.assert_allclose(got, x, rtol=1e-4, atol=1e-5)
    expected = {
        "clip": x[np.arange(4), LENGTHS - 1],
        "siglip": x[:, -1],
        "bert": np.tanh(x[:, 0] @ p["pooler"]["kernel"] + p["pooler"]["bias"]) if kind == "bert" else None,
        "mean": np.stack([x[n, :length].mean(axis=0) for n, length in enumerate(LENGTHS)]),
    }[kind]
    np.testing.assert_allclose(run(variables[kind], kind), expected, rtol=1e-4, atol=1e-5)
    if kind == "mean":
        largest = np.stack([x[n, :length].max(axis=0) for n, length in enumerate(LENGTHS)])
        np.testing.assert_allclose(run(variables[kind], kind, pool="max"), largest, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [("clip", {}), ("clip", {"pool": "mean"}), ("bert", {}), ("mean", {}), ("mean", {"pool": "end"})],
    ids=lambda x: str(x),
)
def test_what_follows_the_text_changes_nothing(variables, kind, fields):
    expected = run(variables[kind], kind, **fields)
    np.testing.assert_array_equal(run(variables[kind], kind, OTHER, **fields), expected)
    shorter = run(variables[kind], kind, TOKENS[[0, 3], :4], **fields)
    np.testing.assert_allclose(shorter, expected[jnp.array([0, 3])], rtol=1e-5, atol=1e-5)


def test_siglip_sees_its_padding(variables):
    """It pads with a token of its own and learns from it: pool "last" without a mask."""
    expected = run(variables["siglip"], "siglip")
    got = run(variables["siglip"], "siglip", OTHER)
    np.testing.assert_array_equal(got[1], expected[1])  # no padding in there
    assert not np.allclose(got[0], expected[0], atol=1e-3)


def test_a_causal_token_does_not_see_what_follows(variables):
    tokens = TOKENS.copy()
    tokens[1, 4:] = 8
    got, expected = (run(variables["clip"], "clip", x, pool="none") for x in (tokens, TOKENS))
    np.testing.assert_array_equal(got[1, :4], expected[1, :4])
    assert not np.allclose(got[1, 4:], expected[1, 4:], atol=1e-3)


@pytest.mark.parametrize("kind", ["clip", "bert"])
def test_scan_and_remat_equal_the_loop(variables, kind):
    params = dict(variables[kind]["params"])
    blocks = [params.pop(name) for name in ("block1", "block2")]
    params["blocks"] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
    got = run({"params": params}, kind, scan=True, remat=True)
    np.testing.assert_allclose(got, run(variables[kind], kind), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["clip", "bert"])
def test_bfloat16(variables, kind):
    got = run(variables[kind], kind, dtype=jnp.bfloat16)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(got), run(variables[kind], kind), rtol=0.1, atol=0.2)


def test_dropout_only_in_training(variables):
    plain = run(variables["mean"], "mean", train=True)  # no rate: no rng is asked for
    np.testing.assert_array_equal(run(variables["mean"], "mean", dropout=0.5), plain)
    dropped = run(variables["mean"], "mean", train=True, rng=jax.random.key(0), dropout=0.5)
    assert not np.allclose(dropped, plain, atol=1e-2)


def test_errors():
    def init(**fields):
        jax.eval_shape(lambda: make(**fields).init(jax.random.key(0), jnp.asarray(TOKENS), train=False))

    with pytest.raises(ValueError, match=r"text of 6 tokens.*max_len is 5.*text\(5\), or set max_len=6"):
        init(max_len=5)
    with pytest.raises(ValueError, match="heads = 3 does not divide width = 8"):
        init(heads=3)
    with pytest.raises(ValueError, match=r'Unknown text transformer pool "frist"\. Did you mean "first"'):
        init(pool="frist")
    with pytest.raises(
        ValueError, match=r'Unknown text transformer variant "bert"\. Did you mean "bert_base"'
    ):
        make(variant="bert")
    with pytest.raises(ValueError, match=r'Unknown key "widht" in text_transformer\. Did you mean "width"'):
        make(widht=8)
    with pytest.raises(ValueError, match="text_transformer needs a value for: max_len, width"):
        text_transformer.make(dtype=jnp.float32, vocab_size=V, eos=EOS, depth=1, heads=1)
