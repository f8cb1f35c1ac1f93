"""FLOPs of a step and the peak of a device: model FLOP/s utilisation."""

import math
from typing import Any

import jax

# Peak dense bfloat16 FLOP/s of one device, from the vendors' data sheets.
PEAK = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}


def peak(device: jax.Device) -> float | None:
    """Peak bfloat16 FLOP/s of a device; None where it is not known, such as for a CPU."""
    return PEAK.get(device.device_kind)


def count(jaxpr: Any) -> float:
    """FLOPs of the matrix products and convolutions of a traced function: two a multiply-add.

    The compiled program's own `cost_analysis()` counts the body of a loop once, however often it runs (checked on
    jax 0.10), which would leave out 19 of a caption's 20 words. Here a scan counts `length` times; a while loop, whose length
    nobody knows before it runs, counts once; of a branch the dearest.

    Args:
      jaxpr: `jax.make_jaxpr(fn)(...)`, or `jax.jit(fn).trace(...).jaxpr`.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    return float(sum(_equation(equation) for equation in jaxpr.eqns))


def _equation(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contract, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2.0 * equation.outvars[0].aval.size * math.prod(shape[i] for i in contract)
    if name == "conv_general_dilated":
        # Each output value is a sum over the kernel's window and its input features.
        kernel = equation.invars[1].aval
        out_features = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
        # A transposed convolution dilates its input with zeros, which no implementation multiplies.
        dilation = math.prod(params["lhs_dilation"])
        return 2.0 * equation.outvars[0].aval.size * kernel.size / out_features / dilation
    if name == "cond":
        return max(count(branch) for branch in params["branches"])
    if name == "shard_map":
        return count(params["jaxpr"]) * params["mesh"].size  # its body is one device's
    inner = sum(
        count(value) for value in params.values() if hasattr(value, "eqns") or hasattr(value, "jaxpr")
    )
    return inner * params["length"] if name == "scan" else inner
