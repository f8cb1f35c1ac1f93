"""What writes an answer word by word: a tower a modality, and a captioner's decoder that looks at the tokens of all of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmgen_jax.models import captioner, multimodal
from mmgen_jax.nn import fusion as fusion_lib
from mmgen_jax.nn.fusion import Stream


class AnswerGenerator(multimodal.Towers, captioner.Writer, kw_only=True):
    """Towers and a decoder, whose memory has every modality's tokens in turn, each kind by a projection of its own.

    What pads a text or a clip, and a modality that a row lacks, is hidden from it.

    Attributes:
      decoder: one of models/captioner.py.
      features: D, of the memory.
      fusion: see nn/fusion.py; its vector is one more token, the last. None: there is no such token, and the decoder's own
        attention is what brings the modalities together.
    """

    decoder: nn.Module
    features: int
    fusion: nn.Module | None = None

    def setup(self):
        super().setup()
        self.project = {name: self._dense() for name in self.modalities}
        self.project_fused = None if self.fusion is None else self._dense()

    def _dense(self) -> nn.Dense:
        return nn.Dense(self.features, dtype=self.dtype)

    def _memory(self, streams: Sequence[Stream], train: bool) -> captioner.Memory:
        parts = [
            Stream(self.project[name](fusion_lib.visible(stream).tokens), stream.mask)
            for name, stream in zip(self.modalities, streams, strict=True)
        ]
        if self.fusion is not None:
            fused = self.project_fused(self.fusion(streams, train=train).vector)[:, None]
            parts.append(Stream(fused, jnp.ones(fused.shape[:2], jnp.bool_)))
        return self.decoder.prepare(*fusion_lib.joined(parts))

    def encode(self, seen: Mapping[str, jax.Array], train: bool = False) -> captioner.Memory:
        """What the decoder looks at. seen: {modality: [B, ...]}, and "present" bool [B, M], which a row has; default all.

        Raises:
          ValueError: an input is not there.
        """
        return self._memory(self.streams(seen, seen.get("present"), train), train)

    def __call__(
        self, seen: Mapping[str, jax.Array], tokens: jax.Array, train: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """Teacher forcing; the weights are those on the first modality's P places only, and sum to 1 or less.

        tokens: int32 [B, C, T] -> logits [B, C, T, V], weights [B, C, T, H, P].
        """
        streams = self.streams(seen, seen.get("present"), train)
        logits, weights = self.write(self._memory(streams, train), tokens, train)
        return logits, weights[..., : streams[0].tokens.shape[1]]


def make(
    *,
    towers: Mapping[str, Mapping[str, Any]],
    modalities: tuple[str, ...],
    decoder: Mapping[str, Any],
    features: int,
    fusion: Mapping[str, Any] | None = None,
    modality_dropout: float = 0.0,
    position: bool = True,
    pixels: str = "imagenet",
    tokenizer: Any,
    dtype: Any = jnp.float32,
    axis: str | None = None,
) -> AnswerGenerator:
    """The model that a config describes.

    Args:
      towers, modalities: see `multimodal.make`.
      decoder: {"name": one of captioner.DECODERS, fields}.
      fusion: {"name": one of nn/fusion.py's, fields}, or None.
      features, modality_dropout, position, pixels: see `AnswerGenerator`.
      tokenizer, dtype, axis: given by the task.

    Raises:
      ValueError: a name or field that is unknown, or one that is missing.
    """
    return AnswerGenerator(
        **multimodal.build_towers(towers, modalities, tokenizer=tokenizer, dtype=dtype, axis=axis),
        decoder=captioner.make_decoder(decoder, vocab_size=tokenizer.vocab_size, dtype=dtype),
        features=features,
        fusion=None if fusion is None else fusion_lib.build(fusion, "task.model.fusion", dtype=dtype),
        modality_dropout=modality_dropout,
        position=position,
        pixels=pixels,
    )
