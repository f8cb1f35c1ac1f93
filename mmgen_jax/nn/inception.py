"""Inception-v3 (Szegedy et al., 2016), as the FID papers use it and as torchvision has it, and the pixels that it wants.

Which weights want which pixels: the FID papers' network (variant "fid"; pt_inception-2015-12-05) wants images of 299 px whose
values are (byte - 128) / 128, near -1 .. 1, resized by TensorFlow 1's bilinear rule, `prepare(image, resize="tf1")`; numbers with
"antialias" are cleaner but compare only with their like. torchvision's weights want (byte - 127.5) / 127.5, in -1 .. 1 (its own
transform of ImageNet's statistics ends there too), resized with antialiasing, or as the paper that one follows has it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mmgen_jax.core import registry

# The FID papers' network leaves padding out of its averages, and takes maxima in its last block.
VARIANTS = {
    "fid": {"count_padding": False, "last_pool": "max", "classes": 1008},
    "torchvision": {"count_padding": True, "last_pool": "average", "classes": 1000},
}
OUTPUTS = dict.fromkeys(("all", "grid", "features", "logits"))
SIDE = 299  # of the images that it was trained on
SMALLEST = 75  # of smaller ones nothing is left for the last block

ROW, COLUMN = (1, 7), (7, 1)


class Outputs(NamedTuple):
    """What the network says of images, float32.

    Attributes:
      grid: [B, 17, 17, 768] of images of 299 px, of block mixed_6e; AttnGAN's matching reads words from it.
      features: [B, 2048], means of the last grid, of which FID is made.
      logits: [B, K].
      unbiased_logits: [B, K] without the last bias, as the Inception score was first computed.
    """

    grid: jax.Array
    features: jax.Array
    logits: jax.Array
    unbiased_logits: jax.Array


class Unit(nn.Module):
    """A convolution without bias, batch normalisation in float32, a rectifier. [B, H, W, D] -> [B, H', W', features]."""

    features: int
    kernel: tuple[int, int] | int
    stride: int = 1
    padding: str = "SAME"
    train: bool = False
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = (self.kernel,) * 2 if isinstance(self.kernel, int) else self.kernel
        form = {"use_bias": False, "dtype": self.dtype, "name": "conv"}
        if kernel == (1, 1):
            x = nn.Dense(self.features, **form)(x)
        else:
            x = nn.Conv(self.features, kernel, self.stride, self.padding, **form)(x)
        norm = nn.BatchNorm(not self.train, momentum=0.9, epsilon=1e-3, axis_name=self.axis_name, name="norm")
        return nn.relu(norm(x.astype(jnp.float32))).astype(self.dtype)


Make = Callable[..., Callable[[jax.Array], jax.Array]]
Layout = Callable[[Make, Callable, jax.Array], list[jax.Array]]


class Block(nn.Module):
    """Branches side by side. [B, H, W, D] -> [B, H', W', sum of the branches' features].

    Attributes:
      layout: (unit, pool, x) -> the branches' ends.
      unit: makes a Unit(features, kernel, ...).
      pool: over 3x3, the grid staying as it is.
    """

    layout: Layout
    unit: Make
    pool: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.concatenate(self.layout(self.unit, self.pool, x), axis=-1)


def _chain(unit: Make, x: jax.Array, name: str, *steps: tuple) -> jax.Array:
    """Units name_1, name_2, ... one after the other; steps: (features, kernel)."""
    for i, (features, kernel) in enumerate(steps):
        x = unit(features, kernel, name=f"{name}_{i + 1}")(x)
    return x


def _halve(x: jax.Array) -> jax.Array:
    return nn.max_pool(x, (3, 3), (2, 2), "VALID")


def _average(x: jax.Array, *, count_padding: bool) -> jax.Array:
    """Means over 3x3 in float32, the grid staying as it is; places beyond its edge count as zeros, or not at all."""
    mean = jnp.pad(x.astype(jnp.float32), ((0, 0), (1, 1), (1, 1), (0, 0)))
    for axis in (1, 2):
        length = x.shape[axis]
        places = np.full(length, 3, np.float32)
        if not count_padding:
            places[0] -= 1
            places[-1] -= 1
        mean = sum(jax.lax.slice_in_dim(mean, i, i + length, axis=axis) for i in range(3))
        mean = mean / _along(places, axis)
    return mean.astype(x.dtype)


def _along(values: np.ndarray, axis: int) -> jax.Array:
    """[n] as float32 [1, n, 1, 1] or [1, 1, n, 1], to meet images."""
    return jnp.asarray(np.expand_dims(values, [a for a in range(4) if a != axis]), jnp.float32)


def _fine(unit: Make, pool: Callable, x: jax.Array, *, pooled: int) -> list[jax.Array]:
    """Figure 5 of the paper, with a 5x5: at 35 x 35."""
    return [
        unit(64, 1, name="branch1x1")(x),
        _chain(unit, x, "branch5x5", (48, 1), (64, 5)),
        _chain(unit, x, "branch3x3dbl", (64, 1), (96, 3), (96, 3)),
        unit(pooled, 1, name="branch_pool")(pool(x)),
    ]


def _middle(unit: Make, pool: Callable, x: jax.Array, *, width: int) -> list[jax.Array]:
    """Figure 6: at 17 x 17."""
    return [
        unit(192, 1, name="branch1x1")(x),
        _chain(unit, x, "branch7x7", (width, 1), (width, ROW), (192, COLUMN)),
        _chain(
            unit, x, "branch7x7dbl", (width, 1), (width, COLUMN), (width, ROW), (width, COLUMN), (192, ROW)
        ),
        unit(192, 1, name="branch_pool")(pool(x)),
    ]


def _coarse(unit: Make, pool: Callable, x: jax.Array) -> list[jax.Array]:
    """Figure 7: at 8 x 8, where two branches end in a row and a column side by side."""
    ends = []
    for name, steps in (("branch3x3", ((384, 1),)), ("branch3x3dbl", ((448, 1), (384, 3)))):
        y, last = _chain(unit, x, name, *steps), f"{name}_{len(steps) + 1}"
        ends += [unit(384, (1, 3), name=f"{last}a")(y), unit(384, (3, 1), name=f"{last}b")(y)]
    return [unit(320, 1, name="branch1x1")(x), *ends, unit(192, 1, name="branch_pool")(pool(x))]


def _to_middle(unit: Make, pool: Callable, x: jax.Array) -> list[jax.Array]:
    """Figure 10: 35 x 35 to 17 x 17."""
    y = _chain(unit, x, "branch3x3dbl", (64, 1), (96, 3))
    return [
        unit(384, 3, 2, "VALID", name="branch3x3")(x),
        unit(96, 3, 2, "VALID", name="branch3x3dbl_3")(y),
        _halve(x),
    ]


def _to_coarse(unit: Make, pool: Callable, x: jax.Array) -> list[jax.Array]:
    """Figure 10 again: 17 x 17 to 8 x 8."""
    y = _chain(unit, x, "branch3x3", (192, 1))
    z = _chain(unit, x, "branch7x7x3", (192, 1), (192, ROW), (192, COLUMN))
    return [
        unit(320, 3, 2, "VALID", name="branch3x3_2")(y),
        unit(192, 3, 2, "VALID", name="branch7x7x3_4")(z),
        _halve(x),
    ]


BLOCKS: dict[str, Layout] = {
    "mixed_5b": partial(_fine, pooled=32),
    "mixed_5c": partial(_fine, pooled=64),
    "mixed_5d": partial(_fine, pooled=64),
    "mixed_6a": _to_middle,
    "mixed_6b": partial(_middle, width=128),
    "mixed_6c": partial(_middle, width=160),
    "mixed_6d": partial(_middle, width=160),
    "mixed_6e": partial(_middle, width=192),
    "mixed_7a": _to_coarse,
    "mixed_7b": _coarse,
    "mixed_7c": _coarse,
}


class Inception(nn.Module):
    """Inception-v3 without the auxiliary head and dropout, which only its training had.

    Attributes:
      count_padding: averages over 3x3 count the zeros beyond the edge (torchvision), or leave them out (the FID papers).
      last_pool: of block mixed_7c, "average" (torchvision) or "max" (the FID papers).
      classes: K.
      output: "all" (`Outputs`), or one alone, as towers give it, without what comes after it: "grid", "features", "logits".
      dtype: of the computation; parameters and batch statistics are float32.
      axis_name: mapped axis over which batch statistics are averaged, in the per-device mode; None under jit.
    """

    count_padding: bool = False
    last_pool: str = "max"
    classes: int = 1008
    output: str = "all"
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> Outputs | jax.Array:
        """image: float [B, H, W, 3] in -1 .. 1, at best of 299 px (see the module's docstring) -> `Outputs`, or one of them.

        Raises:
          ValueError: an image of less than 75 px, an unknown pool or output.
        """
        registry.choose(OUTPUTS, self.output, "Inception output")
        if min(image.shape[1:3]) < SMALLEST:
            raise ValueError(
                f"Inception-v3 needs images of {SMALLEST} px or more, these are {image.shape[1]} x {image.shape[2]}: "
                f"resize them to {SIDE} (nn/inception.py has resize and prepare)."
            )
        unit = partial(Unit, train=train, dtype=self.dtype, axis_name=self.axis_name)
        average = partial(_average, count_padding=self.count_padding)
        maximum = partial(nn.max_pool, window_shape=(3, 3), strides=(1, 1), padding="SAME")
        pools = {"average": average, "max": maximum}
        last_pool = registry.choose(pools, self.last_pool, "Inception last_pool")

        x = unit(32, 3, 2, "VALID", name="conv2d_1a_3x3")(image.astype(self.dtype))
        x = unit(32, 3, 1, "VALID", name="conv2d_2a_3x3")(x)
        x = _halve(unit(64, 3, name="conv2d_2b_3x3")(x))
        x = unit(80, 1, name="conv2d_3b_1x1")(x)
        x = _halve(unit(192, 3, 1, "VALID", name="conv2d_4a_3x3")(x))
        for name, layout in BLOCKS.items():
            pool = last_pool if name == "mixed_7c" else average
            x = Block(layout, unit, pool, name=name)(x)
            if name == "mixed_6e":
                grid = x.astype(jnp.float32)
                if self.output == "grid":
                    return grid
        features = x.astype(jnp.float32).mean(axis=(1, 2))
        if self.output == "features":
            return features
        head = nn.Dense(self.classes, name="head")
        logits = head(features)
        if self.output == "logits":
            return logits
        return Outputs(grid, features, logits, logits - head(jnp.zeros_like(features)))


def make(
    *, variant: str | None = "fid", dtype: Any, axis_name: str | None = None, **fields: Any
) -> Inception:
    """An Inception-v3 from a variant's fields, overridden by `fields`.

    Raises:
      ValueError: unknown variant or field; the message names the nearest one.
    """
    known = registry.choose(VARIANTS, variant, "Inception variant") if variant is not None else {}
    return registry.call(Inception, {**known, **fields}, "inception", dtype=dtype, axis_name=axis_name)


# --- pixels ---


def _bilinear_tf1(image: jax.Array, side: int) -> jax.Array:
    """Pixel i of `side` lies at i * H / side (corners neither aligned nor halved), between two pixels whatever the factor."""
    for axis in (2, 1):
        length = image.shape[axis]
        at = np.arange(side, dtype=np.float32) * (np.float32(length) / np.float32(side))
        low = np.minimum(at.astype(int), length - 1)
        first, second = (
            jnp.take(image, jnp.asarray(x, jnp.int32), axis) for x in (low, np.minimum(low + 1, length - 1))
        )
        image = first + (second - first) * _along(at - low, axis)
    return image


def _antialias(image: jax.Array, side: int) -> jax.Array:
    return jax.image.resize(image, (image.shape[0], side, side, image.shape[3]), "cubic", antialias=True)


RESIZES = {"tf1": _bilinear_tf1, "antialias": _antialias}


def resize(image: jax.Array, side: int = SIDE, *, method: str) -> jax.Array:
    """Images of another size. float [B, H, W, C] -> float32 [B, side, side, C], in the same units.

    Args:
      method: "tf1", bilinear between the two nearest pixels as TensorFlow 1 has it, which drops pixels where it shrinks
        (published FIDs); "antialias", bicubic over all pixels that a new one covers (Parmar et al., 2022), which can overshoot.

    Raises:
      ValueError: unknown method; the message names the nearest one.
    """
    return registry.choose(RESIZES, method, "way to resize")(image.astype(jnp.float32), side)


def prepare(image: jax.Array, *, resize: str = "tf1") -> jax.Array:
    """Bytes to what the FID papers' weights want. uint8 [B, H, W, 3] -> float32 [B, 299, 299, 3] of (byte - 128) / 128."""
    return (_resize(image, method=resize) - 128) / 128


_resize = resize  # `prepare` has an argument of its name
