"""Bytes of an image to a tower's input, by the statistics of the pictures that the tower was trained with."""

from typing import Any

import jax
import jax.numpy as jnp

from mmgen_jax.core import registry

# (mean, standard deviation) of red, green and blue, where black is 0 and white is 1.
STATISTICS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


def normalise(image: jax.Array, name: str, dtype: Any) -> jax.Array:
    """Channels of about zero mean and unit variance. image: uint8 [..., 3], pictures or clips -> dtype [..., 3].

    Run on the device: bytes are a quarter of floats to send.

    Raises:
      ValueError: `name` is not in STATISTICS; the message names the nearest one.
    """
    mean, std = (
        jnp.expand_dims(jnp.asarray([255 * x for x in values], jnp.float32), range(image.ndim - 1))
        for values in registry.choose(STATISTICS, name, "statistics of pixels")
    )
    return ((image.astype(jnp.float32) - mean) / std).astype(dtype)


def resized(image: jax.Array, size: int) -> jax.Array:
    """Images with sides of `size`, bilinearly, antialiased where they shrink; 0: as they are. float [B, H, W, 3]."""
    if not size or image.shape[1:3] == (size, size):
        return image
    return jax.image.resize(image, (len(image), size, size, image.shape[-1]), "bilinear")
