"""FLOPs counted from the traced program, against counts by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from mmgen_jax.core import flops

A, B = jnp.zeros((3, 4)), jnp.zeros((4, 5))
PRODUCT = 2 * 3 * 4 * 5


def count(function, *args):
    return flops.count(jax.make_jaxpr(function)(*args))


def test_products():
    assert count(jnp.matmul, A, B) == PRODUCT
    assert count(jax.jit(jnp.matmul), A, B) == PRODUCT
    batched = count(lambda x, y: jnp.einsum("bij,bjk->bik", x, y), jnp.zeros((7, 3, 4)), jnp.zeros((7, 4, 5)))
    assert batched == 7 * PRODUCT
    assert count(lambda x: x + 1.0, A) == 0


def test_a_gradient_counts_both_products():
    def loss(a, b):
        return jnp.sum((a @ b) ** 2)

    assert count(jax.grad(loss, argnums=(0, 1)), A, B) == 3 * PRODUCT


def test_loops_and_branches():
    def loop(a, b):
        return lax.scan(lambda c, _: (c + a @ b, None), jnp.zeros((3, 5)), None, length=11)[0]

    assert count(loop, A, B) == 11 * PRODUCT
    branch = count(lambda p: lax.cond(p, lambda: A @ B, lambda: A @ B + (A @ B) @ jnp.zeros((5, 5))), True)
    assert branch == 2 * PRODUCT + 2 * 3 * 5 * 5
    once = count(lambda a, b: lax.while_loop(lambda c: c.sum() < 0, lambda c: a @ b, jnp.zeros((3, 5))), A, B)
    assert once == PRODUCT
    assert count(jax.checkpoint(jnp.matmul), A, B) == PRODUCT


@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 1), (1, 3)])
def test_convolutions(stride, groups):
    image, kernel = jnp.zeros((2, 8, 8, 6)), jnp.zeros((3, 3, 6 // groups, 9))
    numbers = ("NHWC", "HWIO", "NHWC")
    counted = count(
        lambda x, k: lax.conv_general_dilated(
            x, k, (stride, stride), "SAME", dimension_numbers=numbers, feature_group_count=groups
        ),
        image,
        kernel,
    )
    assert counted == 2 * 2 * (8 // stride) ** 2 * 9 * 9 * 6 // groups


def test_a_program_a_device_counts_for_all_devices():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    by_rows = jax.shard_map(
        lambda x, y: x @ y, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"), check_vma=False
    )
    assert count(by_rows, jnp.zeros((16, 4)), B) == 2 * 16 * 4 * 5


def test_peak():
    assert flops.peak(jax.devices()[0]) is None

    class Device:
        device_kind = "NVIDIA H200"

    assert flops.peak(Device()) == 989e12
