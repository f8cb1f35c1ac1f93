"""Encoder and decoder blocks against plain numpy in float64; stacks in all forms; the cache; shared images; LayerNorm."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mmgen_jax.nn.norm import LayerNorm
from mmgen_jax.nn.transformer import DecoderBlock, EncoderBlock, stack

B, C, T, F, H, P, D = 2, 2, 4, 8, 2, 5, 6
rng = np.random.default_rng(0)
X, IMAGE = rng.normal(size=(B * C, T, F)), rng.normal(size=(B, P, D))
MASK = np.tril(np.ones((1, T, T), bool))


def make(**fields):
    return DecoderBlock(**{"features": F, "heads": H, "mlp_ratio": 2, **fields})


def run(block, x, image, mask, cache=None, train=False):
    return block(x, block.image(image), mask, cache, train)


@pytest.fixture(scope="module")
def variables():
    variables = make().init(jax.random.key(0), jnp.float32(X), jnp.float32(IMAGE), MASK, method=run)
    # Biases and scales that are not what they start as.
    noise = np.random.default_rng(1)
    return jax.tree.map(lambda x: x + jnp.float32(0.3 * noise.normal(size=x.shape)), variables)


def dense(x, p):
    return x @ p["kernel"] + p["bias"]


def norm(x, p, epsilon=1e-6):
    x = x - x.mean(axis=-1, keepdims=True)
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + epsilon) * p["scale"] + p["bias"]


def attend(query, key, value, mask):
    """One row: [T, F], [K, F], [K, F], [T, K] -> [T, F], weights [H, T, K]."""
    outs, all_weights = [], []
    for h in range(H):
        part = slice(h * F // H, (h + 1) * F // H)
        scores = np.where(mask, query[:, part] @ key[:, part].T / np.sqrt(F // H), -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        outs.append(weights @ value[:, part])
        all_weights.append(weights)
    return np.concatenate(outs, axis=-1), np.stack(all_weights)


def reference(p, x, image):
    """One row in float64. x: [T, F]; image: [P, D]."""
    query, key, value = np.split(dense(norm(x, p["self_norm"]), p["self_qkv"]), 3, axis=-1)
    x = x + dense(attend(query, key, value, MASK[0])[0], p["self_out"])
    key, value = np.split(dense(image, p["cross_kv"]), 2, axis=-1)
    attended, weights = attend(dense(norm(x, p["cross_norm"]), p["cross_q"]), key, value, True)
    x = x + dense(attended, p["cross_out"])
    hidden = dense(norm(x, p["mlp_norm"]), p["mlp_in"])
    hidden = 0.5 * hidden * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
    return x + dense(hidden, p["mlp_out"]), weights


def test_equals_numpy(variables):
    got, weights, cache = make().apply(variables, jnp.float32(X), jnp.float32(IMAGE), MASK, method=run)
    assert cache is None
    params = jax.tree.map(np.float64, variables["params"])
    for n in range(B * C):
        expected = reference(params, X[n], IMAGE[n // C])
        np.testing.assert_allclose(got[n], expected[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(weights[n], expected[1], rtol=1e-5, atol=1e-5)


def test_cache_equals_the_whole(variables):
    block, x, image = make(), jnp.float32(X), jnp.float32(IMAGE)
    expected, expected_weights, _ = block.apply(variables, x, image, MASK, method=run)
    # Two slots more than words: what was never written is never read.
    cache = {name: jnp.full((B * C, T + 2, H, F // H), 1e6) for name in ("key", "value")}
    for t in range(T):
        position = jnp.full(B * C, t, jnp.int32)
        mask = (jnp.arange(T + 2)[None, :] <= position[:, None])[:, None]
        one = {**cache, "position": position}
        got, weights, cache = block.apply(variables, x[:, t : t + 1], image, mask, one, method=run)
        np.testing.assert_allclose(got[:, 0], expected[:, t], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(weights[:, :, 0], expected_weights[:, :, t], rtol=1e-5, atol=1e-5)


def test_bfloat16(variables):
    x, image = jnp.bfloat16(X), jnp.bfloat16(IMAGE)
    got, weights, _ = make(dtype=jnp.bfloat16).apply(variables, x, image, MASK, method=run)
    expected, *_ = make().apply(variables, jnp.float32(X), jnp.float32(IMAGE), MASK, method=run)
    assert (got.dtype, weights.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(np.float32(got), expected, rtol=0.1, atol=0.15)


def test_dropout_is_off_without_training(variables):
    block, args = make(dropout=0.5), (jnp.float32(X), jnp.float32(IMAGE), MASK, None)
    still = block.apply(variables, *args, False, method=run)[0]
    np.testing.assert_array_equal(still, make().apply(variables, *args, False, method=run)[0])
    dropped = block.apply(variables, *args, True, method=run, rngs={"dropout": jax.random.key(0)})[0]
    assert not np.allclose(still, dropped)


ACTIVATIONS = {
    "gelu": lambda x: x * np.vectorize(math.erfc)(-x / np.sqrt(2)) / 2,
    "gelu_tanh": lambda x: x / (1 + np.exp(-2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
}
# Some rows are shorter; every head sees the same.
PADDING = (np.arange(T) < np.array([4, 1, 3, 2])[:, None])[:, None, None]


def start(module, x=X):
    """First parameters, all of them off what they start as. In one program: compiled one by one, operations take long."""
    variables = jax.jit(lambda x: module.init(jax.random.key(0), x, train=False))(jnp.float32(x))
    noise = np.random.default_rng(2)
    return jax.tree.map(lambda x: x + jnp.float32(0.3 * noise.normal(size=x.shape)), variables)


@pytest.mark.parametrize(
    ("kind", "activation", "causal", "mask"),
    [("pre", "gelu", False, None), ("pre", "quick_gelu", True, None), ("post", "gelu_tanh", False, PADDING)],
    ids=["pre", "causal", "post"],
)
def test_encoder_block_equals_numpy(kind, activation, causal, mask):
    fields = {"norm": kind, "activation": activation, "causal": causal, "epsilon": 0.1}
    block = EncoderBlock(heads=H, mlp=12, **fields)
    variables = start(block)
    p = jax.tree.map(np.float64, variables["params"])

    def attended(x, may_look):
        query, key, value = np.split(dense(x, p["qkv"]), 3, axis=-1)
        return dense(attend(query, key, value, may_look)[0], p["out"])

    def mlp(x):
        return dense(ACTIVATIONS[activation](dense(x, p["mlp_in"])), p["mlp_out"])

    # No rates: no rng is asked for.
    got = jax.jit(lambda v, x: block.apply(v, x, mask, train=True))(variables, jnp.float32(X))
    for n, x in enumerate(X):
        may_look = MASK[0] if causal else True if mask is None else mask[n, 0]
        if kind == "pre":
            x = x + attended(norm(x, p["attention_norm"], 0.1), may_look)
            x = x + mlp(norm(x, p["mlp_norm"], 0.1))
        else:
            x = norm(x + attended(x, may_look), p["attention_norm"], 0.1)
            x = norm(x + mlp(x), p["mlp_norm"], 0.1)
        np.testing.assert_allclose(got[n], x, rtol=1e-5, atol=1e-5)


class Stack(nn.Module):
    fields: dict

    @nn.compact
    def __call__(self, x, mask=None, *, train):
        return stack(x, mask, **{"depth": 3, "train": train, "heads": H, "mlp": 12, **self.fields})


def apply(variables, fields, x=X, dtype=jnp.float32, mask=PADDING, train=True, rngs=None):
    def function(variables, x):
        return Stack(fields).apply(variables, x, mask, train=train, rngs=rngs)

    return jax.jit(function)(variables, jnp.asarray(x, dtype))


@pytest.fixture(scope="module")
def blocks():
    """The same parameters as a loop and as a scan want them."""
    loop = start(Stack({}))["params"]
    assert loop.keys() == {"block1", "block2", "block3"}
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(loop[f"block{i}"] for i in (1, 2, 3)))
    return {False: {"params": loop}, True: {"params": {"blocks": together}}}


@pytest.fixture(scope="module")
def plain(blocks):
    """What the loop gives, value and gradients."""
    return value_and_grad(blocks[False], {})


def value_and_grad(variables, fields):
    return jax.jit(jax.value_and_grad(lambda variables: jnp.mean(apply(variables, fields) ** 2)))(variables)


@pytest.mark.parametrize(("remat", "scan"), [(True, False), (False, True), (True, True)])
def test_stack_forms_are_equal(blocks, plain, same, remat, scan):
    value, gradients = value_and_grad(blocks[scan], {"remat": remat, "scan": scan})
    np.testing.assert_allclose(value, plain[0], rtol=1e-5)
    gradients = gradients["params"]
    if scan:
        gradients = {f"block{i + 1}": jax.tree.map(lambda x: x[i], gradients["blocks"]) for i in range(3)}
    same(gradients, plain[1]["params"], rtol=1e-4, atol=1e-5)


def test_scanned_blocks_start_differently():
    module = Stack({"scan": True})
    params = jax.jit(lambda x: module.init(jax.random.key(0), x, train=False))(jnp.float32(X))["params"]
    assert {leaf.shape[0] for leaf in jax.tree.leaves(params["blocks"])} == {3}
    kernels = params["blocks"]["qkv"]["kernel"]
    assert not np.allclose(kernels[0], kernels[1])


def test_remat_keeps_less():
    """What the backward pass needs of a block is its input, not what is inside."""
    x = jnp.zeros((8, 32, 8), jnp.float32)

    def kept(fields):
        def residuals():
            module = Stack(fields)
            variables = module.init(jax.random.key(0), x, train=False)
            return jax.vjp(lambda variables: module.apply(variables, x, train=True), variables)[1]

        return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(residuals)))

    assert kept({"remat": True}) < kept({}) / 5


def test_a_flat_shortcut_adds_its_gradients_up_once():
    """On a CPU. What XLA adds up anew for each weight shows as work that grows with the square of the depth."""
    x = jnp.zeros((4, 16, 64), jnp.float32)

    def flops(depth, flat):
        module = Stack({"depth": depth, "mlp": 128, "flat": flat})
        variables = jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=False))
        loss = jax.jit(jax.grad(lambda variables: jnp.sum(module.apply(variables, x, train=True) ** 2)))
        return loss.lower(variables).compile().cost_analysis()["flops"]

    def growth(flat):
        return flops(2, flat) - 2 * flops(4, flat) + flops(6, flat)

    assert growth(True) <= growth(False) / 2


@pytest.mark.parametrize("rates", [{"dropout": 0.5}, {"drop_path": 0.5}], ids=lambda rates: next(iter(rates)))
@pytest.mark.parametrize("scan", [False, True])
def test_stack_dropout(blocks, rates, scan):
    fields = {**rates, "scan": scan, "remat": True}
    still = apply(blocks[scan], fields, train=False)
    np.testing.assert_allclose(still, apply(blocks[False], {}), rtol=1e-5, atol=1e-5)
    dropped = apply(blocks[scan], fields, rngs={"dropout": jax.random.key(0)})
    assert not np.allclose(dropped, still, atol=1e-2)


@pytest.mark.parametrize("scan", [False, True])
def test_drop_path_grows_over_the_depth(blocks, scan):
    """Each branch adds 1 / rate of being kept or 0, so that the sum tells which were kept. The rates are 0, 1/4 and 1/2."""

    def ones(path, leaf):
        adds_one = path[-1].key == "bias" and path[-2].key in ("out", "mlp_out")
        return jnp.full_like(leaf, float(adds_one))

    variables = jax.tree_util.tree_map_with_path(ones, blocks[scan])
    fields, rngs = {"drop_path": 0.5, "scan": scan}, {"dropout": jax.random.key(1)}
    y = np.asarray(apply(variables, fields, np.zeros((400, T, F)), mask=None, rngs=rngs))
    assert np.all(y == y[:, :1, :1]), "an example is kept or left out as a whole"
    possible = [2 + second * 4 / 3 + third * 2 for second in range(3) for third in range(3)]
    np.testing.assert_allclose(np.unique(np.round(y, 4)), np.unique(np.round(possible, 4)), atol=1e-3)
    np.testing.assert_allclose(y.mean(), 6.0, atol=0.3)


@pytest.mark.parametrize("scan", [False, True])
def test_stack_in_bfloat16(blocks, scan):
    fields = {"scan": scan, "dtype": jnp.bfloat16}
    got = apply(blocks[scan], fields, dtype=jnp.bfloat16)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(got), apply(blocks[False], {}), rtol=0.1, atol=0.2)

    def value(variables):
        noise = {"dropout": jax.random.key(0)}
        out = apply(variables, {**fields, "drop_path": 0.1}, dtype=jnp.bfloat16, rngs=noise)
        return out.astype(jnp.float32).sum()

    gradients = jax.eval_shape(jax.grad(value), blocks[scan])
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype(jnp.float32)}


def test_encoder_errors():
    for fields, message in (
        ({"heads": 3}, "heads = 3 does not divide width = 8"),
        ({"norm": "pots"}, 'Unknown norm "pots".*Did you mean "post"'),
        ({"activation": "gelu_tan"}, 'Unknown activation "gelu_tan".*"gelu_tanh"'),
    ):
        with pytest.raises(ValueError, match=message):
            EncoderBlock(**{"heads": H, "mlp": 12, **fields}).init(
                jax.random.key(0), jnp.float32(X), train=False
            )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_layer_norm(dtype):
    x = 3 + 2 * rng.normal(size=(4, 3, F))
    params = {"scale": rng.normal(size=F), "bias": rng.normal(size=F)}
    variables = {"params": jax.tree.map(jnp.float32, params)}
    got = LayerNorm(dtype).apply(variables, jnp.asarray(x, dtype))
    assert got.dtype == dtype
    expected = norm(np.float64(jnp.asarray(x, dtype)), params)
    np.testing.assert_allclose(
        np.float32(got), expected, atol=1e-5 if dtype == jnp.float32 else 0.02, rtol=1e-2
    )
    if dtype == jnp.float32:
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(got, nn.LayerNorm().apply(variables, jnp.float32(x)), rtol=1e-5, atol=1e-5)
