"""Augmentation of what a discriminator sees, real or generated, through which gradients flow (Zhao et al., 2020)."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp

from mmgen_jax.core import registry

Images = tuple[jax.Array, ...]


def diff_augment(images: Images, rng: jax.Array, policy: Sequence[str], strength: float = 1.0) -> Images:
    """Change each example's images at random, all of its stages alike: the paper's ranges at strength 1, nothing at 0.

    This commutes with average pooling, so real images may be pooled to a pyramid before or after: places are drawn on the
    smallest stage's grid, of which a pixel is a square of the larger ones.

    Args:
      images: float [B, H, W, C] in [-1, 1], one a stage, the smallest first, of whose size all others are multiples. The
        result may go beyond [-1, 1], as a bound would stop gradients.
      rng: key of the draws; another one on each device where the batch is spread over a mapped axis.
      policy: what to do, in this order (the paper's is the one here):
        "colour" adds up to +-0.5 to all values, multiplies by 0 to 2 what sets a pixel's channels apart, and by 0.5 to 1.5
          what sets the image's values apart;
        "translation" moves by up to 1/8 of either side, leaving 0 behind;
        "cutout" sets a rectangle of half of either side to 0; its middle lies anywhere, so that part of it may be outside.
      strength: a plain number that scales these ranges.

    Returns:
      images of the same sizes and dtypes; at strength 0 the very same.

    Raises:
      ValueError: an unknown policy, the message naming the nearest one, or a size that is no multiple of the first.
    """
    steps = [registry.choose(POLICIES, name, "policy of diff_augment") for name in policy]
    height, width = images[0].shape[1:3]
    for image in images:
        if image.shape[1] % height or image.shape[2] % width:
            raise ValueError(
                "diff_augment needs sizes that are multiples of the first, but "
                f"{image.shape[1]}x{image.shape[2]} is none of {height}x{width}."
            )
    if not strength or not steps:
        return images
    augmented = tuple(image.astype(jnp.float32) for image in images)
    for step, key in zip(steps, jax.random.split(rng, len(steps)), strict=True):
        augmented = step(augmented, key, strength)
    return tuple(new.astype(old.dtype) for new, old in zip(augmented, images, strict=True))


def _colour(images: Images, rng: jax.Array, strength: float) -> Images:
    """Brightness, saturation, contrast."""
    draws = jax.random.uniform(rng, (3, len(images[0]), 1, 1, 1), jnp.float32, -strength, strength)
    brightness, saturation, contrast = draws

    def change(x):
        # A sum of slices: on CPU a tenth of the time, there and back, of a reduction over three values.
        grey = sum(x[..., i] for i in range(x.shape[3])) / x.shape[3]
        mean = grey.mean(axis=(1, 2))[:, None, None, None]
        x = x + saturation * (x - grey[..., None])
        return x + 0.5 * contrast * (x - mean) + 0.5 * brightness

    return tuple(change(x) for x in images)


def _translation(images: Images, rng: jax.Array, strength: float) -> Images:
    most = [_round(side * strength / 8) for side in images[0].shape[1:3]]
    low, high = -jnp.array(most, jnp.int32), jnp.array(most, jnp.int32) + 1
    shift = jax.random.randint(rng, (len(images[0]), 2), low[None, :], high[None, :], jnp.int32)

    def move(x):
        factors = _factors(x, images)
        margins = tuple(m * factor for m, factor in zip(most, factors, strict=True))
        return _move(x, shift * jnp.array(factors, jnp.int32)[None, :], margins)

    return tuple(move(x) for x in images)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _move(x: jax.Array, shift: jax.Array, margins: tuple[int, int]) -> jax.Array:
    """x [B, H, W, C] moved down and right by shift int32 [B, 2], which is at most `margins` either way."""
    margin = jnp.array(margins, jnp.int32)
    padded = jnp.pad(x, ((0, 0), *((m, m) for m in margins), (0, 0)))

    def cut(image, shift):
        row, column = margin - shift
        return jax.lax.dynamic_slice(image, (row, column, jnp.int32(0)), x.shape[1:])

    return jax.vmap(cut)(padded, shift)


# A gradient moves back the same way: a tenth of the time of the scatter that JAX would make of it.
_move.defvjp(
    lambda x, shift, margins: (_move(x, shift, margins), shift),
    lambda margins, shift, gradient: (_move(gradient, -shift, margins), None),
)


def _cutout(images: Images, rng: jax.Array, strength: float) -> Images:
    sides = images[0].shape[1:3]
    hole = [_round(side * strength / 2) for side in sides]
    # The middle of a hole is a pixel, or of an even one an edge between pixels, of which there is one more.
    places = [side + 1 - size % 2 for side, size in zip(sides, hole, strict=True)]
    first = jax.random.randint(rng, (len(images[0]), 2), 0, jnp.array(places, jnp.int32)[None, :], jnp.int32)
    first = first - jnp.array([size // 2 for size in hole], jnp.int32)[None, :]

    def inside(x, axis):
        factor = _factors(x, images)[axis]
        offset = jnp.arange(x.shape[1 + axis], dtype=jnp.int32)[None, :] - factor * first[:, axis, None]
        return (offset >= 0) & (offset < factor * hole[axis])

    def cut(x):
        return jnp.where(inside(x, 0)[:, :, None, None] & inside(x, 1)[:, None, :, None], 0.0, x)

    return tuple(cut(x) for x in images)


def _factors(x: jax.Array, images: Images) -> tuple[int, int]:
    """How many of this stage's rows and columns are one of the smallest's."""
    return x.shape[1] // images[0].shape[1], x.shape[2] // images[0].shape[2]


def _round(x: float) -> int:
    """To the nearest whole number, halves upwards."""
    return int(x + 0.5)


POLICIES = {"colour": _colour, "translation": _translation, "cutout": _cutout}
