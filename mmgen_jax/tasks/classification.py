"""Image classification: one label of an image, or several. A finished classifier is also a judge of generated images."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mmgen_jax.core import registry
from mmgen_jax.core.metrics import Mean
from mmgen_jax.core.optimizer import Optimizer
from mmgen_jax.core.sharding import Layout
from mmgen_jax.losses.sequence import cross_entropy
from mmgen_jax.models.classifier import Classifier
from mmgen_jax.tasks.base import DTYPES, Batch, Task, take_init_from

NEXT = """
Next:
  python scripts/evaluate.py --workdir {workdir}    # score it again
  ls {workdir}/predictions                          # what it said of each image
As a judge of generated images it stands in another config: judges = {{"reader": {{"name": "run", "workdir": "{workdir}"}}}}
"""


def make_model(
    *,
    tower: Mapping[str, Any],
    classes: int,
    labels: int = 1,
    apart: bool = False,
    pixels: str = "half",
    dtype: Any = jnp.float32,
    axis: str | None = None,
) -> Classifier:
    """Build the classifier that a config describes; the tower's `name` is a file in nn/."""
    if classes < 2 or labels < 1:
        raise ValueError(
            f"task.model has classes={classes} and labels={labels}: at least two classes and one label."
        )
    if apart and labels != 3:
        raise ValueError(
            f"task.model.apart gives each of the three colours a label: labels is 3, not {labels}."
        )
    tower = registry.build("nn", tower, dtype=dtype, axis_name=axis)
    return Classifier(tower, classes, labels, apart, pixels, dtype)


class Classification(Task):
    """Say an image's label, or each of its labels.

    Args:
      model: see `make_model`; `init_from` in it, or in its tower, starts that from other weights.
      label_smoothing: this share of the target is spread evenly over the classes.
      dtype: "float32" or "bfloat16", of the network.
    """

    def __init__(
        self,
        *,
        model: Mapping[str, Any],
        label_smoothing: float = 0.0,
        dtype: str = "float32",
        optimizer: Optimizer,
        layout: Layout,
        context: Mapping[str, Any],
    ):
        del context
        super().__init__(optimizer, layout)
        dtype = registry.choose(DTYPES, dtype, "dtype")
        model, self.init_from = take_init_from(model)
        self.model = registry.call(make_model, model, "task.model", dtype=dtype, axis=self.axis)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"task.label_smoothing is {label_smoothing}: a share, at least 0 and below 1.")
        self._smoothing = label_smoothing
        self.predict = {"classify": self._predict_classify, "features": self._predict_features}

    def networks(self, rng: jax.Array, batch: Batch) -> dict[str, dict]:
        if "label" not in batch:
            raise ValueError(
                'The examples come without "label". Sources with labels are idx, parquet with its argument label, '
                "stacked_digits, and scenes with cells=True or max_objects=1; caption(...) in the transforms drops them."
            )
        labels = self.model.labels
        expected = () if labels == 1 else (labels,)
        if batch["label"].shape[1:] != expected:
            raise ValueError(
                f"An example's label has the shape {list(batch['label'].shape[1:])}, task.model.labels={labels} expects "
                f"{list(expected)}."
            )
        return {"model": self.model.init(rng, batch["image"])}

    def loss(self, params, variables, batch, rng, step):
        del step
        logits, variables = self.model.apply(
            {"params": params["model"], **variables["model"]},
            batch["image"],
            train=True,
            mutable=list(variables["model"]),
            rngs={"dropout": rng},
        )
        # A label that is no class takes no logit: the loss is NaN, and the run stops.
        losses = cross_entropy(logits, batch["label"], self._smoothing)
        right = (jnp.argmax(logits, axis=-1) == batch["label"]).astype(jnp.float32)
        mask = batch["mask"]
        if self.model.labels == 1:
            metrics = {"loss": Mean.of(losses, mask), "accuracy": Mean.of(right, mask)}
        else:
            metrics = {
                "loss": Mean.of(jnp.mean(losses, axis=1), mask),
                "accuracy": Mean.of(jnp.mean(right, axis=1), mask),
                "all_right": Mean.of(jnp.min(right, axis=1), mask),
            }
        return metrics["loss"].compute(), (metrics, {"model": variables})

    def _apply(self, params, variables, batch, method=None):
        return self.model.apply(
            {"params": params["model"], **variables["model"]}, batch["image"], method=method
        )

    def _predict_classify(self, params, variables, batch, rng):
        """-> {"logits" float32 [B, K]}, or [B, L, K] of several labels."""
        del rng
        return {"logits": self._apply(params, variables, batch)}

    def _predict_features(self, params, variables, batch, rng):
        """What the tower pools. -> {"features" float32 [B, D]}."""
        del rng
        return {"features": self._apply(params, variables, batch, "features").astype(jnp.float32)}


make = Classification
