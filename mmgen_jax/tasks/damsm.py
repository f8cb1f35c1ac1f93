"""DAMSM: image regions and words, images and sentences, that belong together come close (Xu et al., 2018, section 3.2)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange, repeat

from mmgen_jax.core import parallel, registry
from mmgen_jax.core.metrics import Mean
from mmgen_jax.core.optimizer import Optimizer
from mmgen_jax.core.sharding import Layout
from mmgen_jax.losses import damsm as losses
from mmgen_jax.models import damsm
from mmgen_jax.models.dual_encoder import unit
from mmgen_jax.tasks.base import DTYPES, Batch, Matcher, Task, take_init_from
from mmgen_jax.tasks.contrastive import text_ids

NEXT = """
Next:
  python scripts/evaluate.py --workdir {workdir} --split test  # score another split
  python scripts/train.py --config configs/attngan_scenes.py:matcher={workdir} --workdir runs/attngan_scenes
"""


def loss_options(
    *, gamma1: float = 5.0, gamma2: float = 5.0, gamma3: float = 10.0, block_size: int = 1
) -> dict[str, Any]:
    """What `task.loss` may hold, with the paper's numbers; see `losses.damsm.terms`."""
    return dict(gamma1=gamma1, gamma2=gamma2, gamma3=gamma3, block_size=block_size)


def make_matcher(
    *, tokenizer: Any, dtype: Any, loss: Mapping[str, Any] | None = None, **model: Any
) -> Matcher:
    """AttnGAN's: words and regions, the sentence and the image, among those of the batch. loss: see `loss_options`."""
    options = registry.call(loss_options, loss or {}, "task.matchers.damsm.loss")
    # Its batch statistics are those of its training, on any number of devices.
    network = registry.call(damsm.make, model, "task.matchers.damsm", tokenizer=tokenizer, dtype=dtype)

    def match(variables, image, tokens, **ids):
        text = network.apply(variables, tokens, method="embed_text")
        return damsm.match(network, variables, image, text, **ids, **options)

    return Matcher(network.init, match)


class Matching(Task):
    """Tell each image's text among a batch's texts, and each text's image among its images, by words and as a whole.

    Args:
      model: see `models.damsm.make`; `init_from` in it, or in a tower's part of it, starts that from other weights.
      loss: see `loss_options`.
      dtype: "float32" or "bfloat16", of the towers.
    """

    def __init__(
        self,
        *,
        model: Mapping[str, Any],
        loss: Mapping[str, Any] | None = None,
        dtype: str = "float32",
        optimizer: Optimizer,
        layout: Layout,
        context: Mapping[str, Any],
    ):
        super().__init__(optimizer, layout)
        model, self.init_from = take_init_from(model)
        self.model = registry.call(
            damsm.make,
            model,
            "task.model",
            tokenizer=context["tokenizer"],
            dtype=registry.choose(DTYPES, dtype, "dtype"),
            axis_name=self.axis,
        )
        self._options = registry.call(loss_options, loss or {}, "task.loss")
        self._told = False
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

    def loss(self, params, variables, batch, rng, step):
        del step
        (image, text), variables = self.model.apply(
            {"params": params["model"], **variables["model"]},
            batch["image"],
            batch["tokens"],
            train=True,
            mutable=list(variables["model"]),
            rngs={"dropout": rng},
        )
        captions = batch["tokens"].shape[1]
        # An image with C captions is C pairs, which the index tells are equal.
        image, index = jax.tree.map(
            lambda x: repeat(x, "b ... -> (b c) ...", c=captions), (image, batch["index"])
        )
        weight = rearrange(batch["mask"][:, None] * batch["text_mask"], "b c -> (b c)")
        rows = {
            "regions": image.regions,
            "image": image.whole,
            "words": text.words,
            "words_mask": text.mask,
            "sentence": text.sentence,
            "weight": weight,
            "image_id": index,
            "text_id": rearrange(text_ids(batch["tokens"]), "b c -> (b c)"),
        }

        def on_rows(rows, shared, axis):
            return losses.terms(**rows, **shared, **self._options, axis=axis)

        terms = parallel.by_rows(on_rows, self.layout)(rows, {})
        metrics = {"loss": Mean.of(sum(terms), weight)}
        metrics |= {name: Mean.of(term, weight) for name, term in terms._asdict().items()}
        # The loss of a model that cannot tell any pair from another.
        count = parallel.total(jnp.sum(weight), self.axis)
        metrics["chance"] = Mean.of(len(terms) * jnp.log(jnp.maximum(count, 1.0)))
        metrics["cut_texts"] = Mean.of(rearrange(batch["cut"], "b c -> (b c)"), weight)
        return metrics["loss"].compute(), (metrics, {"model": variables})

    def advise(self, step: int, report: Mapping[str, float]) -> str | None:
        """Name a loss that does not move."""
        chance, loss = report["train/chance"], report["train/loss"]
        stuck = step >= 100 and chance > 0 and loss > 0.99 * chance
        told, self._told = self._told, stuck
        if not stuck or told:
            return None
        return (
            f"stuck: the loss {loss:.3f} is 4 log(N) = {chance:.3f}, as if every pair were drawn by chance. Look whether images "
            "and captions still belong together in the data, whether the learning rate is too high or too low, and raise "
            "task.loss.gamma3 if all scores are nearly equal."
        )

    def _apply(self, params, variables, x, method):
        return self.model.apply({"params": params["model"], **variables["model"]}, x, method=method)

    def _predict_embed(self, params, variables, batch, rng):
        """-> {"image" [B, F], "text" [B, C, F]}, float32, unit length: images and sentences as a whole."""
        image = self._predict_image(params, variables, batch, rng)
        return image | self._predict_text(params, variables, batch, rng)

    def _predict_image(self, params, variables, batch, rng):
        """-> {"image" [B, F]}."""
        del rng
        return {"image": unit(self._apply(params, variables, batch["image"], "embed_image").whole)}

    def _predict_text(self, params, variables, batch, rng):
        """-> {"text" [B, C, F]}."""
        del rng
        tokens = rearrange(batch["tokens"], "b c t -> (b c) t")
        text = self._apply(params, variables, tokens, "embed_text")
        return {"text": rearrange(unit(text.sentence), "(b c) f -> b c f", b=len(batch["tokens"]))}

    def _predict_features(self, params, variables, batch, rng):
        """What the image tower says of the whole image, before the projection. -> {"features" float32 [B, D]}."""
        del rng
        whole = self._apply(params, variables, batch["image"], "grid")[1]
        return {"features": whole.astype(jnp.float32)}


make = Matching
