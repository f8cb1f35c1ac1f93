"""Text for generators of images: a text tower's words with one vector a sentence, and what lies between two texts.

The generators and discriminators themselves are files of nn/: dcgan, resnet_gan, stackgan, attngan, mlp_gan.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from mmgen_jax.core import registry
from mmgen_jax.nn import text_pooling
from mmgen_jax.nn.text_conditioning import Text

SENTENCES = ("max", "mean", "last")


class TextEncoder(nn.Module):
    """A text tower that gives its words and one vector a sentence.

    Attributes:
      tower: int32 [B, T] -> [B, T, F], built with pool="none"; has the fields `eos` and `max_len`.
      pool: the sentence is the words' "max" or "mean", or "last": the state at the text's end; of a tower that reads both ways,
        the forward state at the end beside the backward one at the start (AttnGAN: Xu et al., 2018, section 3.1).
    """

    tower: nn.Module
    pool: str = "last"

    @nn.compact
    def __call__(self, tokens: jax.Array, *, train: bool) -> Text:
        """tokens: int32 [B, T] -> sentence [B, F], words [B, T, F], mask bool [B, T].

        Raises:
          ValueError: unknown pool; the tower pools; T is more than its max_len.
        """
        if self.pool not in SENTENCES:
            raise ValueError(f'Unknown sentence pool "{self.pool}".{registry.nearest(self.pool, SENTENCES)}')
        length = text_pooling.lengths(tokens, eos=self.tower.eos, max_len=self.tower.max_len)
        words = self.tower(tokens, train=train)
        if words.ndim != 3:
            raise ValueError(f'The text tower gives {list(words.shape)}; set its pool="none", for [B, T, F].')
        return Text(self._sentence(words, length), words, text_pooling.inside(length, tokens.shape[1]))

    def _sentence(self, words: jax.Array, length: jax.Array) -> jax.Array:
        if self.pool == "max":
            return text_pooling.maximum(words, length)
        if self.pool == "mean":
            return text_pooling.mean(words, length)
        end = text_pooling.end(words, length)
        if getattr(self.tower, "bidirectional", False):
            half = words.shape[-1] // 2
            return jnp.concatenate([end[:, :half], words[:, 0, half:]], axis=-1)
        return end


def interpolate(a: Text, b: Text, mix: jax.Array) -> Text:
    """The text that lies `mix` of the way from a to b: exactly a at 0, exactly b at 1. mix: float [B].

    Sentences mix, and the words at a position where both have one; the nearer text says how many words there are.
    (Sentences: Reed et al., 2016, section 4.3.)
    """

    def between(a: jax.Array, b: jax.Array) -> jax.Array:
        share = jnp.expand_dims(mix.astype(a.dtype), range(1, a.ndim))
        return (1 - share) * a + share * b

    nearer_b = mix[:, None] >= 0.5
    words = jnp.where(nearer_b[..., None], b.words, a.words)
    words = jnp.where((a.mask & b.mask)[..., None], between(a.words, b.words), words)
    return Text(between(a.sentence, b.sentence), words, jnp.where(nearer_b, b.mask, a.mask))
