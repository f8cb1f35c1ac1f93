"""Convolutions that keep, halve or double a grid, in the form that the device runs fastest."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from mmgen_jax.nn.spectral_norm import normalised

DIMS = ("NHWC", "HWIO", "NHWC")


def convolution(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """A convolution with one row and column of zeros around the grid: 3x3 keeps it, 4x4 of stride 2 halves it.

    x: [B, H, W, I]; kernel: [k, k, I, O] -> [B, H / stride, W / stride, O].
    """
    return convolve(x, kernel, (stride, stride), ((1, 1), (1, 1)))


def convolve(
    x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Sequence[tuple[int, int]], **plain: Any
) -> jax.Array:
    """A convolution; on CPU as a product of matrices where the result's grid is smaller than the kernel.

    There XLA falls back to plain loops, forwards or in the gradient of x. The last stages of a ResNet on small images meet them:
    ResNet-18 at 64 pixels takes a fifth of the time this way (docs/results.md).

    x: [B, H, W, I]; kernel: [h, w, I, O]; padding: rows and columns of zeros (before, after) -> [B, H', W', O]. `plain` is what
    flax's `nn.Conv(conv_general_dilated=convolve)` hands on beside these, for convolutions without dilation or groups.
    """
    plain.setdefault("dimension_numbers", DIMS)

    def convolution(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, **plain)

    def product(x, kernel):
        x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
        seen = [
            x[:, i : x.shape[1] - height + i + 1 : strides[0], j : x.shape[2] - width + j + 1 : strides[1]]
            for i in range(height)
            for j in range(width)
        ]
        return jnp.concatenate(seen, axis=-1) @ rearrange(kernel, "h w i o -> (h w i) o")

    height, width = kernel.shape[:2]
    _, rows, columns, _ = jax.eval_shape(convolution, x, kernel).shape
    if rows >= height and columns >= width:
        return convolution(x, kernel)
    return jax.lax.platform_dependent(x, kernel, cpu=product, default=convolution)


def transposed_convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A transposed 4x4 convolution of stride 2, PyTorch's ConvTranspose2d(4, 2, padding=1), which doubles the grid.

    An output pixel sees 2x2 inputs, through the four places of the kernel that its row and column being even or odd leave.
    So the result is four 2x2 convolutions, interleaved. On CPU that form is as fast as the plain one and its gradients are
    more than ten times as fast (measured): XLA dilates the input with zeros, and multiplies them, for the kernel's gradient.
    x: [B, H, W, I]; kernel: [4, 4, I, O] -> [B, 2 H, 2 W, O].
    """

    def dilated(x, kernel):
        pad = ((2, 2), (2, 2))
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), pad, lhs_dilation=(2, 2), dimension_numbers=DIMS
        )

    def phases(x, kernel):
        def phase(p, q):
            pad = ((1 - p, p), (1 - q, q))
            return jax.lax.conv_general_dilated(x, kernel[p::2, q::2], (1, 1), pad, dimension_numbers=DIMS)

        parts = jnp.stack([phase(p, q) for p in (0, 1) for q in (0, 1)])
        return rearrange(parts, "(p q) b h w o -> b (h p) (w q) o", p=2, q=2)

    return jax.lax.platform_dependent(x, kernel[::-1, ::-1], cpu=phases, default=dilated)


def pooled(kernel: jax.Array) -> jax.Array:
    """The 4x4 kernel of stride 2 that does what 3x3 does before 2x2 average pooling. [3, 3, I, O] -> [4, 4, I, O]."""
    return 0.25 * _smear(kernel)


def upsampled(kernel: jax.Array) -> jax.Array:
    """The transposed 4x4 kernel of stride 2 that does what a 3x3 convolution does after each pixel became 2x2 of it.

    A transposed convolution has its kernel the other way round. [3, 3, I, O] -> [4, 4, I, O].
    """
    return _smear(kernel[::-1, ::-1])


def _smear(kernel: jax.Array) -> jax.Array:
    """A kernel and its three neighbours one place on, added up. [3, 3, I, O] -> [4, 4, I, O]."""
    rows = jnp.pad(kernel, ((0, 1), (0, 0), (0, 0), (0, 0))) + jnp.pad(
        kernel, ((1, 0), (0, 0), (0, 0), (0, 0))
    )
    return jnp.pad(rows, ((0, 0), (0, 1), (0, 0), (0, 0))) + jnp.pad(rows, ((0, 0), (1, 0), (0, 0), (0, 0)))


# (side of the kernel, resample) -> function of x and kernel.
FORMS = {
    (1, "none"): lambda x, kernel: x @ kernel[0, 0],
    (3, "none"): convolution,
    (3, "down"): lambda x, kernel: convolution(x, pooled(kernel), 2),
    (3, "up"): lambda x, kernel: transposed_convolution(x, upsampled(kernel)),
    (4, "down"): lambda x, kernel: convolution(x, kernel, 2),
    (4, "up"): transposed_convolution,
}


class Convolution(nn.Module):
    """A convolution that keeps the grid, halves it or doubles it. [B, H, W, D] -> [B, H', W', features].

    Attributes:
      features: of the result.
      kernel: 3 or 1 where the grid stays; 4 with a stride of 2; or 3 before 2x2 average pooling, or after each pixel became 2x2.
      resample: "none", "down" or "up".
      use_bias: add a bias.
      spectral: divide the kernel by its spectral norm (Miyato et al., 2018); see nn/spectral_norm.py.
      kernel_init: of the kernel [kernel, kernel, D, features].
      dtype: of the computation; parameters are float32.
    """

    features: int
    kernel: int
    resample: str = "none"
    use_bias: bool = False
    spectral: bool = False
    kernel_init: Callable = nn.initializers.normal(0.02)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """train: let the spectral norm's vector follow the kernel."""
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        if self.spectral:
            kernel = normalised(self, kernel, train=train)
        x = FORMS[self.kernel, self.resample](x.astype(self.dtype), kernel.astype(self.dtype))
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32)
            x = x + bias.astype(self.dtype)[None, None, None]
        return x
