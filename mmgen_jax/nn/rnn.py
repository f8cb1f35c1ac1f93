"""Recurrent cells as functions of the summed gates, so that whatever can be computed for all words at once is."""

import jax
import jax.numpy as jnp

GATES = {"lstm": 4, "gru": 3}


def gates_bias(cell: str):
    """Initialiser of the gates' bias: zeros, but 1 for the LSTM's forget gate, which then remembers from the start.

    (Jozefowicz et al., 2015, section 2.2.)
    """

    def init(rng: jax.Array, shape: tuple[int], dtype=jnp.float32) -> jax.Array:
        del rng
        features = shape[0] // GATES[cell]
        bias = jnp.zeros(shape, dtype)
        return bias.at[features : 2 * features].set(1.0) if cell == "lstm" else bias

    return init


def lstm(gates: jax.Array, cell: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One LSTM update (Hochreiter and Schmidhuber, 1997; with forget gate, Gers et al., 2000).

    gates: [N, 4 F], input, forget, candidate, output, before their nonlinearities; cell: [N, F] -> hidden [N, F], cell [N, F].
    """
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(cell), cell


def gru(inputs: jax.Array, recurrent: jax.Array, hidden: jax.Array) -> jax.Array:
    """One GRU update (Cho et al., 2014; the reset gate after the product, as cuDNN has it).

    inputs, recurrent: [N, 3 F], the parts of reset, update and candidate that come from the input and from the hidden
    state; hidden: [N, F] -> [N, F].
    """
    r_in, z_in, n_in = jnp.split(inputs, 3, axis=-1)
    r_rec, z_rec, n_rec = jnp.split(recurrent, 3, axis=-1)
    z = jax.nn.sigmoid(z_in + z_rec)
    n = jnp.tanh(n_in + jax.nn.sigmoid(r_in + r_rec) * n_rec)
    return (1.0 - z) * n + z * hidden
