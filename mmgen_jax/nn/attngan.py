"""AttnGAN (Xu et al., 2018): StackGAN-v2's stages, before each of which every position looks at the words."""

from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from mmgen_jax.core import registry
from mmgen_jax.nn import stackgan
from mmgen_jax.nn.text_conditioning import ConditioningAugmentation, Generated, Text, glu


class WordAttention(nn.Module):
    """Each position's mean of the words, weighted by how well they go with what is drawn there (section 3.1, eq. 2)."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, words: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x: [B, h, w, D]; words: [B, T, F]; mask: bool [B, T], false on padding -> [B, h, w, D], weights float32 [B, h, w, T].

        The weights of a position sum to one; padding has none.
        """
        _, height, width, features = x.shape
        project = nn.Dense(features, use_bias=False, dtype=self.dtype, name="words")
        words = project(jnp.where(mask[..., None], words, jnp.zeros((), words.dtype)))
        queries = rearrange(x, "b h w d -> b (h w) d")
        scores = jnp.einsum("bpd,btd->bpt", queries, words).astype(jnp.float32)
        weights = jax.nn.softmax(jnp.where(mask[:, None], scores, -jnp.inf), axis=-1)
        context = jnp.einsum("bpt,btd->bpd", weights.astype(self.dtype), words)
        grid = {"h": height, "w": width}
        return (
            rearrange(context, "b (h w) d -> b h w d", **grid),
            rearrange(weights, "b (h w) t -> b h w t", **grid),
        )


class AttnganGenerator(nn.Module):
    """A first stage from noise and sentence; each further one from the grid before and what its positions see of the words.

    Attributes:
      image_sizes: sides in pixels, one a stage.
      width: N_g, features of each stage's last grid.
      blocks: residual blocks of a further stage.
      channels: of the images.
      z_features: Z, of the noise.
      augmented: features of the conditioning augmentation.
      dtype: of the computation; parameters, batch statistics, weights of words and images are float32.
      axis_name: mapped axis over which batch statistics are averaged, in the per-device mode; else None.
    """

    image_sizes: Sequence[int] = (64, 128, 256)
    width: int = 32
    blocks: int = 2
    channels: int = 3
    z_features: int = 100
    augmented: int = 100
    dtype: Any = jnp.float32
    axis_name: str | None = None

    attends: ClassVar[bool] = True  # its attention can be asked for

    @nn.compact
    def __call__(self, z: jax.Array, text: Text | None, *, train: bool) -> Generated:
        """z: [B, Z] -> one image a stage, [B, image_size, image_size, channels] in [-1, 1]; attention of all but the first.

        Raises:
          ValueError: there is no text, or image sizes that it cannot make.
        """
        if text is None:
            raise ValueError(
                "AttnGAN attends to words: set task.text, or take the generator stackgan with joint=True, which is AttnGAN "
                "without attention, for images without text."
            )
        times = stackgan.doublings(self.image_sizes)
        fields = {"dtype": self.dtype, "axis_name": self.axis_name}
        augmentation = ConditioningAugmentation(self.augmented, self.dtype, name="text")
        condition, statistics = augmentation(text.sentence)
        vector = jnp.concatenate([condition, z.astype(self.dtype)], axis=-1)
        first = stackgan.FirstStage(self.image_sizes[0], self.width, glu, **fields, name="stage1")
        x = first(vector, train=train)
        images, attention = [stackgan.draw(x, self.channels, self.dtype, "stage1_image")], []
        for i, doubled in enumerate(times, 2):
            look = WordAttention(self.dtype, name=f"stage{i}_attention")
            seen, weights = look(x, text.words, text.mask)
            x = jnp.concatenate([x, seen], axis=-1)
            x = stackgan.refine(x, self.blocks, doubled, self.width, f"stage{i}", train=train, **fields)
            images.append(stackgan.draw(x, self.channels, self.dtype, f"stage{i}_image"))
            attention.append(weights)
        return Generated(tuple(images), statistics, tuple(attention))


def make_generator(*, dtype: Any, axis_name: str | None = None, **fields: Any) -> AttnganGenerator:
    """A generator from `fields`.

    Raises:
      ValueError: an unknown field; the message names the nearest one.
    """
    return registry.call(AttnganGenerator, fields, "the attngan generator", dtype=dtype, axis_name=axis_name)


def make_discriminator(
    *, dtype: Any, axis_name: str | None = None, **fields: Any
) -> stackgan.StackganDiscriminator:
    """StackGAN's discriminator from `fields`, of three stages with unconditional logits too unless they say otherwise.

    Raises:
      ValueError: an unknown field; the message names the nearest one.
    """
    fields = {"stages": 3, "unconditional": True, **fields}
    what = "the attngan discriminator"
    return registry.call(stackgan.StackganDiscriminator, fields, what, dtype=dtype, axis_name=axis_name)
