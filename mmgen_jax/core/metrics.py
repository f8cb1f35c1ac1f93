"""Mean: a metric as (total, count), so that padding never counts and merging is exact."""

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Mean:
    """A weighted mean that has not been divided yet.

    Attributes:
      total: scalar, the weighted sum.
      count: scalar, the sum of the weights.
    """

    total: jax.Array
    count: jax.Array

    @classmethod
    def of(cls, values: jax.Array, mask: jax.Array | None = None) -> "Mean":
        """The mean of `values` [...] where `mask` (same shape, weights) is not zero."""
        values = jnp.asarray(values, jnp.float32)
        mask = jnp.ones_like(values) if mask is None else jnp.asarray(mask, jnp.float32)
        # A masked value may be inf or nan (an empty row); zero times that would not be zero.
        return cls(jnp.sum(jnp.where(mask > 0, values, 0.0) * mask), jnp.sum(mask))

    def merge(self, other: "Mean") -> "Mean":
        """The mean over both sets of values."""
        return Mean(self.total + other.total, self.count + other.count)

    def compute(self) -> jax.Array:
        """total / count, and 0 where nothing counted."""
        return self.total / jnp.maximum(self.count, 1e-12)


def merge(left: dict[str, Mean], right: dict[str, Mean]) -> dict[str, Mean]:
    """Merge two dicts of metrics name by name."""
    return {name: left[name].merge(right[name]) for name in left}


def compute(metrics: dict[str, Mean]) -> dict[str, float]:
    """Finish a dict of metrics on the host."""
    return {name: float(mean.compute()) for name, mean in metrics.items()}
