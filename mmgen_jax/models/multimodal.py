"""A classifier of any number of modalities: a tower each, what fuses them, and heads; early, late, or both."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from flax.core import FrozenDict

from mmgen_jax.core import registry
from mmgen_jax.models.captioner import waves
from mmgen_jax.nn import fusion as fusion_lib
from mmgen_jax.nn import pixels, text_pooling
from mmgen_jax.nn.fusion import Stream

LEVELS = ("early", "late", "hybrid")
COMBINE = ("mean", "product", "weights")
PROBABILITY = ("softmax", "sigmoid")


class Outputs(NamedTuple):
    """What is said of B examples.

    Attributes:
      logits: float32 [B, K].
      heads: float32 [B, M, K], what each modality says by itself, or None where there are no such heads.
      attention: float32 [B, P], where the fusion looked among the first modality's places, or None.
      there: bool [B, M], which modalities a row had, those left out in training not among them.
    """

    logits: jax.Array
    heads: jax.Array | None = None
    attention: jax.Array | None = None
    there: jax.Array | None = None


def combine(
    logits: jax.Array,
    there: jax.Array,
    how: str,
    probability: str,
    weights: jax.Array | None = None,
) -> jax.Array:
    """The decision of several heads (Kittler et al., 1998, equations 7 and 11): logits of their combined probabilities.

    Args:
      logits: float32 [B, N, K] of N heads.
      there: bool [B, N], false for a head that has seen nothing; where that is so of all, all count.
      how: "mean" of the probabilities, "product" (of the odds, for "sigmoid"), or "weights", a mean with softmax(weights).
      probability: "softmax" over the K classes, or "sigmoid" of each.
      weights: float32 [N].

    Returns:
      float32 [B, K].
    """
    there = there | ~jnp.any(there, axis=1, keepdims=True)
    if how == "product":
        return jnp.sum(jnp.where(there[..., None], logits, 0.0), axis=1)
    weights = jnp.zeros(there.shape[1]) if weights is None else weights
    log_weight = jax.nn.log_softmax(jnp.where(there, weights[None], jnp.finfo(jnp.float32).min))[..., None]

    def log_mean(log_probability: jax.Array) -> jax.Array:
        return jax.nn.logsumexp(log_probability + log_weight, axis=1)

    if probability == "softmax":
        return log_mean(jax.nn.log_softmax(logits))
    return log_mean(jax.nn.log_sigmoid(logits)) - log_mean(jax.nn.log_sigmoid(-logits))


class Head(nn.Module):
    """Logits of a vector, by way of a hidden layer if `hidden` is not 0. [B, D] -> float32 [B, classes]."""

    classes: int
    hidden: int
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        if self.hidden:
            x = nn.relu(nn.Dense(self.hidden, dtype=self.dtype, name="hidden")(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.classes, dtype=self.dtype, name="logits")(x).astype(jnp.float32)


class Places(nn.Module):
    """A learned vector a row and one a column, so that tokens can tell where they are. [B, H, W, D] -> [B, H * W, D]."""

    dtype: Any

    @nn.compact
    def __call__(self, grid: jax.Array) -> jax.Array:
        _, height, width, features = grid.shape
        rows = self.param("rows", waves, (height, features), 0)
        columns = self.param("columns", waves, (width, features), 1)
        grid = grid + (rows[:, None] + columns[None])[None].astype(self.dtype)
        return rearrange(grid, "b h w d -> b (h w) d")


class Towers(nn.Module):
    """A tower a modality: what a network of several modalities begins with.

    What a modality is shows its input: uint8 is pixels, [B, H, W, 3] or a clip's [B, F, H, W, 3], of which "frame_mask" bool
    [B, F] may say what only pads it; int32 [B, T] is a text; float32 goes to its tower as it is. A modality may have fewer rows
    than another, B / Q of them: its tower sees each once, for Q rows in turn, such as the questions about one picture.

    Attributes:
      towers: {modality: a tower}, each with the result [B, D], tokens [B, P, D] or a grid [B, H, W, D].
      modalities: their order, which is the fusion's; the first is the one that others look at.
      modality_dropout: rate at which a row goes without a modality in training, never without all (Neverova et al., 2016,
        section 4.2); needs the rng "dropout".
      position: grids get a learned vector a row and one a column.
      pixels: how pixels are normalised, see nn/pixels.py.
      eos: the token that ends a text.
      dtype: of the computation; parameters and logits are float32.
    """

    towers: Mapping[str, nn.Module]
    modalities: tuple[str, ...]
    modality_dropout: float = 0.0
    position: bool = True
    pixels: str = "imagenet"
    eos: int = 0
    dtype: Any = jnp.float32

    def setup(self):
        self.places = {name: Places(self.dtype) for name in self.modalities}

    def streams(
        self, inputs: Mapping[str, jax.Array], present: jax.Array | None, train: bool
    ) -> list[Stream]:
        """What the towers say, modality by modality, each of B rows.

        Raises:
          ValueError: an input is not there, or its rows do not divide those of another.
        """
        absent = [name for name in self.modalities if name not in inputs]
        if absent:
            raise ValueError(
                f"The examples have no {' and no '.join(absent)}, which task.model.modalities names; they have "
                f"{', '.join(inputs)}. The transforms question(...) and description(...) make texts; for rows without a "
                'modality give zeros in its place, and false in its column of "present".'
            )
        counts = {name: len(inputs[name]) for name in self.modalities}
        rows = max(counts.values()) if present is None else len(present)
        if any(rows % count for count in counts.values()):
            raise ValueError(
                f"There are {rows} rows, but of the modalities {counts}: one with fewer has each for equally many of them."
            )
        if present is None:
            present = jnp.ones((rows, len(self.modalities)), jnp.bool_)
        if train and self.modality_dropout:
            keep = jax.random.bernoulli(self.make_rng("dropout"), 1.0 - self.modality_dropout, present.shape)
            keep = keep & present
            present = jnp.where(jnp.any(keep, axis=1, keepdims=True), keep, present)
        frames = inputs.get("frame_mask")
        return [
            self._stream(name, inputs[name], present[:, i : i + 1], frames, train)
            for i, name in enumerate(self.modalities)
        ]

    def placed(self, weights: jax.Array, inputs: Mapping[str, jax.Array]) -> jax.Array:
        """Weights on the first modality's tokens, [B, ..., P], as they are, or on a video's frames' places, [B, ..., F, S]."""
        name = self.modalities[0]
        if inputs[name].ndim != 5:
            return weights
        return self.towers[name].over_frames(weights, inputs[name].shape[1])

    def _stream(
        self, name: str, x: jax.Array, present: jax.Array, frames: jax.Array | None, train: bool
    ) -> Stream:
        """present: bool [B, 1]; frames: bool [B, F], of a clip."""
        padded = x.ndim == 5 and frames is not None
        is_text = x.ndim == 2 and jnp.issubdtype(x.dtype, jnp.integer)
        if x.dtype == jnp.uint8:
            x = pixels.normalise(x, self.pixels, self.dtype)
        tower = self.towers[name]
        y = tower(x, frames, train=train) if padded else tower(x, train=train)
        pooled = y.ndim == 2
        if pooled:
            y = y[:, None]
        if y.ndim == 4:
            y = self.places[name](y) if self.position else rearrange(y, "b h w d -> b (h w) d")
        mask = jnp.ones(y.shape[:2], jnp.bool_)
        if is_text and not pooled:
            length = text_pooling.lengths(x, eos=self.eos, max_len=x.shape[1])
            mask = text_pooling.inside(length, x.shape[1])
        if padded and not pooled:
            mask = tower.token_mask(frames, y.shape[1])
        rows = len(present) // len(y)
        return Stream(jnp.repeat(y, rows, axis=0), present & jnp.repeat(mask, rows, axis=0))


class Multimodal(Towers, kw_only=True):
    """Towers, fusion and heads. With one modality it is that modality's baseline.

    Attributes:
      classes: K.
      fusion: see nn/fusion.py; None at the level "late".
      level: "early": one head on the fused vector; "late": a head a modality on the mean of its tokens, combined; "hybrid": the
        fused head is combined with those.
      combine, probability: see `combine`.
      heads: the level "early" has a head a modality too, beside the decision, for losses of their own.
      probes: modalities whose head, at the level "early", only watches: its gradient stops before the tower.
      hidden, dropout: of the heads; 0 hidden features: one layer.
    """

    classes: int
    fusion: nn.Module | None = None
    level: str = "early"
    combine: str = "mean"
    probability: str = "softmax"
    heads: bool = False
    probes: tuple[str, ...] = ()
    hidden: int = 0
    dropout: float = 0.0

    def setup(self):
        super().setup()
        head = (self.classes, self.hidden, self.dropout, self.dtype)
        self.head = None if self.level == "late" else Head(*head)
        own = self.heads or self.level != "early"
        self.own = {name: Head(*head) for name in self.modalities} if own else {}
        self.weights = None
        if self.level != "early" and self.combine == "weights":
            count = len(self.modalities) + (self.level == "hybrid")
            self.weights = self.param("weights", nn.initializers.zeros_init(), (count,), jnp.float32)

    def __call__(
        self, inputs: Mapping[str, jax.Array], present: jax.Array | None = None, *, train: bool = False
    ) -> Outputs:
        """inputs: {modality: [B, ...]}, which may hold more; present: bool [B, M], which a row has, default all.

        Raises:
          ValueError: an input is not there.
        """
        streams = self.streams(inputs, present, train)
        there = jnp.concatenate([fusion_lib.there(stream) for stream in streams], axis=1)
        heads = None
        if self.own:
            said = []
            for name, stream in zip(self.modalities, streams, strict=True):
                vector = fusion_lib.mean(stream)
                if self.level == "early" and name in self.probes:
                    vector = jax.lax.stop_gradient(vector)
                said.append(self.own[name](vector, train=train))
            heads = jnp.stack(said, axis=1)
        if self.level == "late":
            return Outputs(self._combine(heads, there), heads, None, there)
        fused = self.fusion(streams, train=train)
        logits = self.head(fused.vector, train=train)
        if self.level == "hybrid":
            every = jnp.concatenate([heads, logits[:, None]], axis=1)
            logits = self._combine(every, jnp.concatenate([there, jnp.any(there, 1, keepdims=True)], axis=1))
        return Outputs(logits, heads, fused.attention, there)

    def _combine(self, logits: jax.Array, there: jax.Array) -> jax.Array:
        return combine(logits, there, self.combine, self.probability, self.weights)


def make(
    *,
    towers: Mapping[str, Mapping[str, Any]],
    modalities: tuple[str, ...],
    fusion: Mapping[str, Any] | None = None,
    level: str = "early",
    combine: str = "mean",
    hidden: int = 0,
    dropout: float = 0.0,
    modality_dropout: float = 0.0,
    position: bool = True,
    pixels: str = "imagenet",
    tokenizer: Any,
    classes: int,
    heads: bool = False,
    probes: tuple[str, ...] = (),
    probability: str = "softmax",
    dtype: Any = jnp.float32,
    axis: str | None = None,
) -> Multimodal:
    """The model that a config describes.

    Args:
      towers: {modality: {"name": a file in nn/, fields}}; more than `modalities` may be there, and are not built.
      modalities: which, in the fusion's order: ("question",) alone is the baseline that sees no picture.
      fusion: {"name": one of nn/fusion.py's, fields}.
      level, combine, hidden, dropout, modality_dropout, position, pixels: see `Multimodal`.
      tokenizer, classes, heads, probes, probability, dtype, axis: given by the task.

    Raises:
      ValueError: a name or field that is unknown, or one that is missing.
    """
    for options, value, what in ((LEVELS, level, "level"), (COMBINE, combine, "combine")):
        registry.choose(dict.fromkeys(options), value, f"task.model.{what}")
    if (fusion is None) != (level == "late"):
        raise ValueError(
            f'task.model.level is "{level}": "late" has no fusion, "early" and "hybrid" need task.model.fusion.'
        )
    if fusion is not None:
        fusion = fusion_lib.build(fusion, "task.model.fusion", dtype=dtype)
    return Multimodal(
        **build_towers(towers, modalities, tokenizer=tokenizer, dtype=dtype, axis=axis),
        classes=classes,
        fusion=fusion,
        level=level,
        combine=combine,
        probability=probability,
        heads=heads,
        probes=tuple(probes),
        hidden=hidden,
        dropout=dropout,
        modality_dropout=modality_dropout,
        position=position,
        pixels=pixels,
    )


def build_towers(
    towers: Mapping[str, Mapping[str, Any]],
    modalities: Sequence[str],
    *,
    tokenizer: Any,
    dtype: Any,
    axis: str | None,
) -> dict[str, Any]:
    """The fields of `Towers` that a config's towers make; for the arguments see `make`.

    Raises:
      ValueError: a name or field that is unknown, or one that is missing.
    """
    modalities = tuple(modalities)
    if not modalities or len(set(modalities)) < len(modalities):
        raise ValueError(f"task.model.modalities is {modalities}: at least one, and none twice.")
    built = {}
    for name in modalities:
        tower = registry.choose(towers, name, "modality in task.model.towers")
        built[name] = registry.build("nn", tower, dtype=dtype, **_given(tower, tokenizer, axis))
    return {"towers": FrozenDict(built), "modalities": modalities, "eos": tokenizer.eos, "dtype": dtype}


def _given(tower: Mapping[str, Any], tokenizer: Any, axis: str | None) -> dict[str, Any]:
    """What the program adds to a tower's fields: towers of pixels take the axis of the batch's statistics, texts' the tokens."""
    make = registry.lookup("nn", tower["name"]).make if "name" in tower else None
    if make is None or "axis_name" in inspect.signature(make).parameters:
        return {"axis_name": axis}
    return {"vocab_size": tokenizer.vocab_size, "eos": tokenizer.eos}
