"""Recurrent cells as functions of the summed gates, so that whatever can be computed for all words at once is."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


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


def scan(body: Callable, kernels: dict[str, jax.Array], shared: Any, carry: Any, xs: Any) -> tuple[Any, Any]:
    """`lax.scan` whose matrix products' gradients are taken once, after the loop.

    Differentiating a plain scan adds `h_t^T delta_t` into every kernel's gradient at every step: T small products, and T times
    a read and a write of the kernel's size. Here the backward loop only stacks delta_t, and one product over all steps
    gives the gradient, accumulated in float32.

    Args:
      body: (dot, shared, carry, x) -> (carry, y), where dot(name, v) is v @ kernels[name], v: [N, F], and is called once a name.
      kernels: {name: [F, G]}.
      shared: arrays that every step reads; their gradients are added up step by step.
      carry, xs: as for `lax.scan`.

    Returns:
      The last carry and the stacked ys.
    """

    def plain(kernels, shared, carry, xs):
        def step(carry, x):
            return body(lambda name, v: v @ kernels[name], shared, carry, x)

        return jax.lax.scan(step, carry, xs)

    def forward(kernels, shared, carry, xs):
        # Each product gets a zero added to it, whose gradient is delta_t, and hands out its left side.
        def probed(shared, carry, xs, probes):
            def step(carry, inputs):
                x, probe = inputs
                left = {}

                def dot(name, v):
                    left[name] = v
                    return v @ kernels[name] + probe[name]

                carry, y = body(dot, shared, carry, x)
                return carry, (y, left)

            last, (ys, left) = jax.lax.scan(step, carry, (xs, probes))
            return (last, ys), left

        x = jax.tree.map(lambda leaf: leaf[0], xs)
        rows: dict[str, jax.Array] = {}

        def record(name, v):
            rows[name] = v @ kernels[name]
            return rows[name]

        shapes = jax.eval_shape(lambda: (body(record, shared, carry, x), dict(rows))[1])
        length = len(jax.tree.leaves(xs)[0])
        probes = {name: jnp.zeros((length, *s.shape), s.dtype) for name, s in shapes.items()}
        out, vjp, left = jax.vjp(probed, shared, carry, xs, probes, has_aux=True)
        return out, (vjp, left, kernels)

    def backward(residuals, gradient):
        vjp, left, kernels = residuals
        shared, carry, xs, delta = vjp(gradient)
        kernels = {
            name: jnp.einsum("tnf,tng->fg", left[name], delta[name], preferred_element_type=jnp.float32).astype(k.dtype)
            for name, k in kernels.items()
        }
        return kernels, shared, carry, xs

    deferred = jax.custom_vjp(plain)
    deferred.defvjp(forward, backward)
    return deferred(kernels, shared, carry, xs)
