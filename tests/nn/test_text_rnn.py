"""Recurrent text towers against a plain numpy loop and against PyTorch; padding; pools."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmgen_jax.nn import text_rnn

V, EOS, E, F = 9, 2, 4, 6
# Texts of 3, 5 (no end: all of it), 1 and 4 tokens; a second end and other tokens may follow the first end.
TOKENS = np.array([[1, 3, 2, 0, 0], [1, 4, 5, 6, 7], [2, 8, 8, 2, 3], [1, 7, 7, 2, 2]], np.int32)
LENGTHS = (3, 5, 1, 4)


def make(**fields):
    fields = {"features": F, "embed_features": E, "layers": 2, "bidirectional": True, **fields}
    return text_rnn.make(**{"vocab_size": V, "eos": EOS, "max_len": 5, "dtype": jnp.float32, **fields})


def run(variables, tokens=TOKENS, train=False, **fields):
    return jax.jit(lambda variables, tokens: make(**fields).apply(variables, tokens, train=train))(
        variables, jnp.asarray(tokens)
    )


@pytest.fixture(scope="module", params=["gru", "lstm"])
def cell(request):
    return request.param


@pytest.fixture(scope="module")
def variables(cell):
    variables = jax.jit(lambda: make(cell=cell).init(jax.random.key(0), jnp.asarray(TOKENS), train=False))()
    noise = np.random.default_rng(0)
    return jax.tree.map(lambda x: x + jnp.float32(0.3 * noise.normal(size=x.shape)), variables)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def read(p, x, cell, backward):
    """One direction over one text in float64. x: [T, E] -> [T, F] in the text's order, and the last state."""
    hidden, memory, states = np.zeros(F), np.zeros(F), []
    for word in x[::-1] if backward else x:
        inputs, recurrent = word @ p["input_kernel"] + p["bias"], hidden @ p["recurrent_kernel"]
        if cell == "lstm":
            i, f, g, o = np.split(inputs + recurrent, 4)
            memory = sigmoid(f) * memory + sigmoid(i) * np.tanh(g)
            hidden = sigmoid(o) * np.tanh(memory)
        else:
            (ri, zi, ni), (rr, zr, nr) = np.split(inputs, 3), np.split(recurrent + p["recurrent_bias"], 3)
            z = sigmoid(zi + zr)
            hidden = (1 - z) * np.tanh(ni + sigmoid(ri + rr) * nr) + z * hidden
        states.append(hidden)
    return np.stack(states[::-1] if backward else states), hidden


@pytest.mark.parametrize("bidirectional", [True, False])
def test_equals_numpy(cell, variables, bidirectional):
    names = ("forward", "backward") if bidirectional else ("forward",)
    fields = {"cell": cell, "bidirectional": bidirectional, "layers": 2 if bidirectional else 1}
    got = {pool: run(variables, pool=pool, **fields) for pool in text_rnn.POOLS}
    params = jax.tree.map(np.float64, variables["params"])
    for n, length in enumerate(LENGTHS):
        x = params["embed"][TOKENS[n, :length]]
        for i in range(fields["layers"]):
            parts = [read(params[f"layer{i + 1}_{name}"], x, cell, name == "backward") for name in names]
            x, final = (np.concatenate(part, axis=-1) for part in zip(*parts, strict=True))
        expected = {"last": final, "mean": x.mean(axis=0), "max": x.max(axis=0)}
        for pool, value in expected.items():
            np.testing.assert_allclose(got[pool][n], value, rtol=1e-5, atol=1e-6, err_msg=pool)
        np.testing.assert_allclose(got["none"][n, :length], x, rtol=1e-5, atol=1e-6)


def test_equals_pytorch(cell, variables):
    torch = pytest.importorskip("torch")
    theirs = {"gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[cell](E, F, 2, bidirectional=True, batch_first=True)
    params = jax.tree.map(np.asarray, variables["params"])
    state = {}
    for i in range(2):
        for name, suffix in (("forward", ""), ("backward", "_reverse")):
            p, end = params[f"layer{i + 1}_{name}"], f"l{i}{suffix}"
            state[f"weight_ih_{end}"] = torch.tensor(p["input_kernel"].T)
            state[f"weight_hh_{end}"] = torch.tensor(p["recurrent_kernel"].T)
            state[f"bias_ih_{end}"] = torch.tensor(p["bias"])
            state[f"bias_hh_{end}"] = torch.tensor(p.get("recurrent_bias", np.zeros_like(p["bias"])))
    theirs.load_state_dict(state)
    words = torch.tensor(params["embed"][TOKENS])
    packed = torch.nn.utils.rnn.pack_padded_sequence(words, LENGTHS, batch_first=True, enforce_sorted=False)
    with torch.no_grad():
        states, final = theirs(packed)
    states, _ = torch.nn.utils.rnn.pad_packed_sequence(states, batch_first=True)
    final = final[0] if cell == "lstm" else final
    expected = np.concatenate([final[-2].numpy(), final[-1].numpy()], axis=-1)
    np.testing.assert_allclose(run(variables, cell=cell), expected, rtol=1e-5, atol=1e-6)
    got = run(variables, cell=cell, pool="none")
    for n, length in enumerate(LENGTHS):
        np.testing.assert_allclose(got[n, :length], states[n, :length].numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pool", text_rnn.POOLS)
def test_padding_changes_nothing(cell, variables, pool):
    other = np.where(np.arange(5) < np.array(LENGTHS)[:, None], TOKENS, 8)
    got, expected = (run(variables, tokens, cell=cell, pool=pool) for tokens in (other, TOKENS))
    np.testing.assert_array_equal(got, expected)
    if pool != "none":
        np.testing.assert_allclose(
            run(variables, TOKENS[2:, :4], cell=cell, pool=pool), expected[2:], rtol=1e-5, atol=1e-6
        )


def test_bfloat16(cell, variables):
    fields = {"cell": cell, "pool": "mean"}
    got = run(variables, dtype=jnp.bfloat16, **fields)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(got), run(variables, **fields), rtol=0.05, atol=0.05)

    def value(variables):
        return run(variables, train=True, dtype=jnp.bfloat16, **fields).astype(jnp.float32).sum()

    gradients = jax.jit(jax.grad(value))(variables)
    assert all(leaf.dtype == jnp.float32 and bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(gradients))


def test_dropout_only_in_training(cell, variables):
    module, tokens = make(cell=cell, dropout=0.5), jnp.asarray(TOKENS)
    plain = run(variables, train=True, cell=cell)
    np.testing.assert_array_equal(run(variables, cell=cell, dropout=0.5), plain)
    dropped = module.apply(variables, tokens, train=True, rngs={"dropout": jax.random.key(0)})
    assert not np.allclose(dropped, plain)


def test_first_values(variables, cell):
    """An LSTM remembers from the start; the parameters' names and shapes are what weight maps rely on."""
    params = make(cell=cell, layers=1, bidirectional=False).init(
        jax.random.key(0), jnp.asarray(TOKENS), train=False
    )["params"]
    shapes = jax.tree.map(jnp.shape, params)
    gates = {"gru": 3, "lstm": 4}[cell] * F
    layer = {"input_kernel": (E, gates), "recurrent_kernel": (F, gates), "bias": (gates,)}
    more = {"recurrent_bias": (gates,)} if cell == "gru" else {}
    assert shapes == {"embed": (V, E), "layer1_forward": {**layer, **more}}
    bias = np.zeros(gates)
    if cell == "lstm":
        bias[F : 2 * F] = 1.0
    np.testing.assert_array_equal(params["layer1_forward"]["bias"], bias)


def test_errors():
    def init(**fields):
        make(**fields).init(jax.random.key(0), jnp.asarray(TOKENS), train=False)

    with pytest.raises(ValueError, match=r"text of 5 tokens.*max_len is 4.*text\(4\), or set max_len=5"):
        init(max_len=4)
    with pytest.raises(ValueError, match=r'Unknown text RNN pool "maxi"\. Did you mean "max"'):
        init(pool="maxi")
    with pytest.raises(ValueError, match=r'Unknown text RNN cell "ltsm"\. Did you mean "lstm"'):
        init(cell="ltsm")
    with pytest.raises(ValueError, match='no variants such as "gru"'):
        make(variant="gru")
    with pytest.raises(ValueError, match=r'Unknown key "layer" in text_rnn\. Did you mean "layers"'):
        make(layer=2)
