"""Contrastive learning: matching images and texts come to lie close together, all others apart."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange

from mmgen_jax.core import parallel, registry
from mmgen_jax.core.metrics import Mean
from mmgen_jax.core.optimizer import Optimizer
from mmgen_jax.core.sharding import Layout
from mmgen_jax.losses import contrastive
from mmgen_jax.models import dual_encoder
from mmgen_jax.nn import pixels as pixels_lib
from mmgen_jax.tasks.base import DTYPES, Batch, Matcher, Metrics, Task, take_init_from

MAX_SCALE = 100.0  # CLIP's bound of the learned scale (section 2.5 of the paper)
SAMPLE = (
    256  # rows on which uniformity and the batch's own recall are measured: enough to see, cheap to compute
)

NEXT = """
Next:
  python scripts/search.py --workdir {workdir} index FOLDER                        # embed a folder of images once
  python scripts/search.py --workdir {workdir} query "a red square above a circle" # then ask for one
  python scripts/evaluate.py --workdir {workdir} --split test                      # score another split
  ls {workdir}/figures                                                             # what it found for some texts
"""


def make_model(
    *,
    image: Mapping[str, Any],
    text: Mapping[str, Any],
    embed_dim: int,
    image_head: str = "linear",
    text_head: str = "linear",
    temperature: float = 0.07,
    bias: float = 0.0,
    pixels: str = "imagenet",
    context: Mapping[str, Any],
    dtype: Any = jnp.float32,
    axis: str | None = None,
) -> dual_encoder.DualEncoder:
    """Build the dual encoder that a config describes; `name` says which tower, a file in nn/."""
    tokenizer = context["tokenizer"]
    image = registry.build("nn", image, dtype=dtype, axis_name=axis)
    text = registry.build("nn", text, dtype=dtype, vocab_size=tokenizer.vocab_size, eos=tokenizer.eos)
    return dual_encoder.DualEncoder(
        image, text, embed_dim, image_head, text_head, temperature, bias, pixels, dtype
    )


def info_nce(
    *,
    tau: float = 0.0,
    symmetric: bool = True,
    equal: str = "negative",
    block_size: int = 0,
    exchange: str = "gather",
) -> Callable:
    """InfoNCE with the model's learned scale, or with a fixed temperature tau; see losses/contrastive.py."""
    options = dict(symmetric=symmetric, equal=equal, block_size=block_size, exchange=exchange)

    def loss(image, text, scale, bias, **where):
        del bias
        if tau:
            scale = jnp.float32(1.0 / tau)
        elif scale is None:
            raise ValueError(
                "The loss info_nce needs task.model.temperature (learned) or task.loss.tau (fixed)."
            )
        return contrastive.info_nce(image, text, scale, **options, **where)

    return loss


def sigmoid(*, equal: str = "negative", block_size: int = 0, exchange: str = "gather") -> Callable:
    """SigLIP's loss, which needs the model's learned scale and bias; see losses/contrastive.py."""
    options = dict(equal=equal, block_size=block_size, exchange=exchange)

    def loss(image, text, scale, bias, **where):
        if scale is None or bias is None:
            raise ValueError(
                "The loss sigmoid needs task.model.temperature and task.model.bias (0.1 and -10 in the paper)."
            )
        return contrastive.sigmoid(image, text, scale, bias, **options, **where)

    return loss


def triplet(
    *, margin: float = 0.2, negatives: str = "sum", distance: str = "cosine", equal: str = "ignore"
) -> Callable:
    """VSE++'s loss, which uses no scale; see losses/contrastive.py."""
    options = dict(margin=margin, negatives=negatives, distance=distance, equal=equal)

    def loss(image, text, scale, bias, **where):
        del scale, bias
        return contrastive.triplet(image, text, **options, **where)

    return loss


LOSSES = {"info_nce": info_nce, "sigmoid": sigmoid, "triplet": triplet}


def make_loss(loss: Mapping[str, Any], where: str) -> Callable:
    """The loss that a config describes: `name`, one of LOSSES, and its options."""
    loss = {"name": "info_nce", **loss}
    return registry.call(registry.choose(LOSSES, loss.pop("name"), "loss"), loss, where)


def make_matcher(
    *, tokenizer: Any, dtype: Any, loss: Mapping[str, Any] | None = None, image_size: int = 0, **model: Any
) -> Matcher:
    """Each image tells its text among the batch's and is told by it, as the dual encoder learned to (Zhou et al., 2022, LAFITE).

    loss: see `make_loss`. image_size: side in pixels of the images that it was trained with; 0: that of what is drawn.
    """
    where = "task.matchers.contrastive"
    network = registry.call(make_model, model, where, context={"tokenizer": tokenizer}, dtype=dtype)
    objective = make_loss(loss or {}, f"{where}.loss")

    def init(rng, image, tokens):
        return network.init(rng, pixels_lib.resized(image.astype(jnp.float32), image_size), tokens)

    def losses(variables, image, tokens, **ids):
        image = pixels_lib.resized(127.5 * (image + 1.0), image_size)
        image, text = network.apply(variables, image, tokens[:, None])
        return objective(image, text[:, 0], **learned(variables["params"]), **ids)

    return Matcher(init, losses)


def learned(params: Mapping[str, Any]) -> dict[str, jax.Array | None]:
    """What a loss takes from the model beside embeddings: {"scale", "bias"}, None for what it does not learn."""
    scale = jnp.exp(params["logit_scale"]) if "logit_scale" in params else None
    return {"scale": scale, "bias": params.get("logit_bias")}


class Contrastive(Task):
    """Tell each image's text among a batch's texts, and each text's image among its images.

    Args:
      model: see `make_model`; `init_from` in it, or in a tower's part of it, starts that from other weights.
      loss: `name` and options of one of LOSSES.
      slices: embed the batch in so many slices and compute each once more on the way back, so that only one slice's activations
        are ever held. The step equals that of the whole batch (Gao et al., 2021, GradCache), since the loss still sees all of it;
        batch statistics are a slice's.
      dtype: "float32" or "bfloat16", of the towers.
    """

    def __init__(
        self,
        *,
        model: Mapping[str, Any],
        loss: Mapping[str, Any],
        slices: int = 1,
        dtype: str = "float32",
        optimizer: Optimizer,
        layout: Layout,
        context: Mapping[str, Any],
    ):
        super().__init__(optimizer, layout)
        dtype = registry.choose(DTYPES, dtype, "dtype")
        model, self.init_from = take_init_from(model)
        self.model = registry.call(
            make_model, model, "task.model", context=context, dtype=dtype, axis=self.axis
        )
        self._has_chance = loss.get("name", "info_nce") == "info_nce"
        self._loss = make_loss(loss, "task.loss")
        self._slices = slices
        self._told: set[str] = set()
        self.predict = {
            "embed": self._predict_embed,
            "embed_image": self._predict_image,
            "embed_text": self._predict_text,
            "features": self._predict_features,
        }

    def networks(self, rng: jax.Array, batch: Batch) -> dict[str, dict]:
        rows, captions = batch["tokens"].shape[:2]
        if rows * captions * jax.process_count() < 2:
            raise ValueError(
                "A batch of one has no negatives to learn from; set data.batch_size to 2 or more."
            )
        return {"model": self.model.init(rng, batch["image"], batch["tokens"])}

    def constrain(self, params):
        """CLIP's bounds of the learned scale: between 1 and 100."""
        model = params["model"]
        if "logit_scale" not in model:
            return params
        scale = jnp.clip(model["logit_scale"], 0.0, math.log(MAX_SCALE))
        return {**params, "model": {**model, "logit_scale": scale}}

    def loss(self, params, variables, batch, rng, step):
        del step
        params, variables = params["model"], variables["model"]
        image, text, variables = self._embed(params, variables, batch, rng)
        captions = text.shape[1]
        weight = batch["mask"][:, None] * batch["text_mask"]  # [B, C]
        rows = {
            # An image with C captions is C pairs, which the index tells are equal.
            "image": jnp.repeat(image, captions, axis=0),
            "text": rearrange(text, "b c f -> (b c) f"),
            "weight": rearrange(weight, "b c -> (b c)"),
            "image_id": jnp.repeat(batch["index"], captions),
            "text_id": rearrange(text_ids(batch["tokens"]), "b c -> (b c)"),
        }
        shared = learned(params)

        def on_rows(rows, shared, axis):
            return self._loss(**rows, **shared, axis=axis)

        losses = parallel.by_rows(on_rows, self.layout)(rows, shared)
        metrics = {"loss": Mean.of(losses, rows["weight"]), **self._watch(image, text, weight, batch)}
        if shared["scale"] is not None:
            metrics["logit_scale"] = Mean.of(shared["scale"])
        return metrics["loss"].compute(), (metrics, {"model": variables})

    def _embed(self, params, variables, batch, rng) -> tuple[jax.Array, jax.Array, dict]:
        """Both embeddings and the new variables, in slices of the batch: [B, F], [B, C, F]."""

        def embed(variables, inputs):
            index, part = inputs
            (image, text), variables = self.model.apply(
                {"params": params, **variables},
                part["image"],
                part["tokens"],
                train=True,
                mutable=list(variables),
                rngs={"dropout": jax.random.fold_in(rng, index)},
            )
            return variables, (image, text)

        inputs = {name: batch[name] for name in ("image", "tokens")}
        if self._slices == 1:
            variables, embeddings = embed(variables, (jnp.int32(0), inputs))
            return *embeddings, variables
        if len(batch["mask"]) % self._slices:
            raise ValueError(
                f"A batch of {len(batch['mask'])} does not divide into task.slices={self._slices}."
            )
        # Every slice takes rows from each device, so that no row moves.
        parts = jax.tree.map(lambda x: rearrange(x, "(b s) ... -> s b ...", s=self._slices), inputs)
        variables, embeddings = jax.lax.scan(
            jax.checkpoint(embed), variables, (jnp.arange(self._slices), parts)
        )
        image, text = (rearrange(x, "s b ... -> (b s) ...") for x in embeddings)
        return image, text, variables

    def _watch(self, image, text, weight, batch) -> Metrics:
        """What tells a run that learns from one that is stuck (Wang and Isola, 2020): alignment is the squared distance
        of a pair; uniformity the logarithm of the mean Gaussian potential of two examples, 0 where all are one point,
        about -4 where
        they are spread; of images and of texts."""
        image, text = jax.lax.stop_gradient((image, text))
        apart = jnp.sum(jnp.square(image[:, None] - text), axis=-1)
        metrics = {
            "alignment": Mean.of(apart, weight),
            "uniformity_image": Mean.of(_uniformity(image[:SAMPLE], batch["mask"][:SAMPLE])),
            "uniformity_text": Mean.of(_uniformity(text[:SAMPLE, 0], weight[:SAMPLE, 0])),
            "cut_texts": Mean.of(batch["cut"], weight),
        }
        if self._has_chance:
            # The loss of a model that cannot tell any pair from another.
            count = parallel.total(jnp.sum(weight), self.axis)
            metrics["chance"] = Mean.of(jnp.log(jnp.maximum(count, 1.0)))
        return metrics

    def advise(self, step: int, report: Mapping[str, float]) -> str | None:
        """Name a loss that does not move, and embeddings that have become one point."""
        chance, loss = report.get("train/chance"), report["train/loss"]
        flat = max(report["train/uniformity_image"], report["train/uniformity_text"])
        advice = None
        if flat > -0.02:
            which = "image" if flat == report["train/uniformity_image"] else "text"
            advice = (
                f"collapse: all {which} embeddings are nearly one point (uniformity {flat:.4f}; spread out it is below -2). "
                f"Lower optimizer.learning_rate or lengthen optimizer.warmup, look whether the {which} tower's pool and "
                "normalisation see the input at all, and for triplet with the hardest negatives begin with the sum."
            )
        elif chance and step >= 100 and loss > 0.99 * chance:
            advice = (
                f"stuck: the loss {loss:.3f} is log(N) = {chance:.3f}, as if every pair were drawn by chance. Look whether "
                "images and captions still belong together in the data, whether the learning rate is too high or too "
                f"low, and whether logit_scale ({report.get('train/logit_scale', math.nan):.1f}) has moved at all."
            )
        kind = advice and advice.partition(":")[0]
        if kind in self._told:
            return None
        self._told = {kind} if kind else set()
        return advice

    def _apply(self, params, variables, *inputs, method=None):
        return self.model.apply({"params": params["model"], **variables["model"]}, *inputs, method=method)

    def _predict_embed(self, params, variables, batch, rng):
        """-> {"image" [B, F], "text" [B, C, F]}, float32, unit length."""
        del rng
        image, text = self._apply(params, variables, batch["image"], batch["tokens"])
        return {"image": image, "text": text}

    def _predict_image(self, params, variables, batch, rng):
        """-> {"image" [B, F]}."""
        del rng
        return {"image": self._apply(params, variables, batch["image"], method="embed_image")}

    def _predict_text(self, params, variables, batch, rng):
        """-> {"text" [B, C, F]}."""
        del rng
        return {"text": self._apply(params, variables, batch["tokens"], method="embed_text")}

    def _predict_features(self, params, variables, batch, rng):
        """What the image tower pools, before the projection. -> {"features" float32 [B, D]}."""
        del rng
        features = self._apply(params, variables, batch["image"], method="features")
        return {"features": features.astype(jnp.float32)}


def text_ids(tokens: jax.Array) -> jax.Array:
    """A number a text, equal for equal texts (and, once in 2^32, for two others). int32 [..., T] -> int32 [...]."""
    odd = 2 * jax.random.bits(jax.random.key(0), tokens.shape[-1:], jnp.uint32) + jnp.uint32(1)
    odd = jnp.expand_dims(odd, tuple(range(tokens.ndim - 1)))
    mixed = (tokens.astype(jnp.uint32) + jnp.uint32(1)) * odd
    return jax.lax.bitcast_convert_type(jnp.sum(mixed ^ (mixed >> 15), axis=-1, dtype=jnp.uint32), jnp.int32)


def _uniformity(x: jax.Array, mask: jax.Array) -> jax.Array:
    """log mean exp(-2 |x_i - x_j|^2) over pairs i != j of examples that are there. x: [B, F]; mask: [B] -> scalar."""
    squared = 2.0 - 2.0 * (x @ x.T)
    pairs = (mask[:, None] * mask[None, :]) * (1.0 - jnp.eye(len(x)))
    return jnp.log(jnp.maximum(jnp.sum(pairs * jnp.exp(-2.0 * squared)), 1e-30)) - jnp.log(
        jnp.maximum(jnp.sum(pairs), 1.0)
    )


make = Contrastive
