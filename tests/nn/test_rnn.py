"""The cells' updates against their equations, in float64."""

import jax.numpy as jnp
import numpy as np

from mmgen_jax.nn import rnn

N, F = 3, 5
rng = np.random.default_rng(0)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_lstm():
    gates, cell = rng.normal(size=(N, 4 * F)), rng.normal(size=(N, F))
    i, f, g, o = (gates[:, k * F : (k + 1) * F] for k in range(4))
    new = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
    got = rnn.lstm(jnp.asarray(gates, jnp.float32), jnp.asarray(cell, jnp.float32))
    np.testing.assert_allclose(got[0], sigmoid(o) * np.tanh(new), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got[1], new, rtol=1e-5, atol=1e-6)


def test_gru():
    inputs, recurrent, hidden = (
        rng.normal(size=(N, 3 * F)),
        rng.normal(size=(N, 3 * F)),
        rng.normal(size=(N, F)),
    )
    (ri, zi, ni), (rr, zr, nr) = ([x[:, k * F : (k + 1) * F] for k in range(3)] for x in (inputs, recurrent))
    z, r = sigmoid(zi + zr), sigmoid(ri + rr)
    expected = (1 - z) * np.tanh(ni + r * nr) + z * hidden
    got = rnn.gru(*(jnp.asarray(x, jnp.float32) for x in (inputs, recurrent, hidden)))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_a_full_update_gate_keeps_the_state():
    hidden = jnp.asarray(rng.normal(size=(N, F)), jnp.float32)
    gates = jnp.zeros((N, 3 * F)).at[:, F : 2 * F].set(50.0)
    np.testing.assert_array_equal(rnn.gru(gates, jnp.zeros((N, 3 * F)), hidden), hidden)
