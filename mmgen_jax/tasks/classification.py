"""Classification: one label of an image, or several; of an image with text, or any modalities that towers read.

A finished classifier of images is also a judge of generated ones.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mmgen_jax.core import parallel, registry
from mmgen_jax.core.metrics import Mean
from mmgen_jax.core.optimizer import Optimizer
from mmgen_jax.core.sharding import Layout
from mmgen_jax.losses import classification as losses_lib
from mmgen_jax.models import multimodal
from mmgen_jax.models.classifier import Classifier
from mmgen_jax.models.multimodal import Outputs
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


class Decision(Task):
    """Logits of an example, and a loss of them: what classification and question answering share.

    A subclass sets `model`: a Multimodal, see `make_multimodal`, or what it calls itself in a `_forward` of its own.

    Args:
      objective: `Labels` or `Scores` of losses/classification.py.
      own_loss: {modality: weight}: the loss of what the modality says by itself is added with this weight. At the level "early"
        such heads are there where own_loss or modulate says anything; one of weight 0 only watches.
      modulate: {"alpha": 0.3, "noise": True}: slow the tower of the modality that is ahead (Peng et al., 2022, OGM-GE); {}: not.

    Metrics beside the objective's: gradient_share/<modality>, the norm of its tower's gradient over the sum of all towers' norms;
    with heads also loss/<modality> and confidence/<modality>; with modulate also kept/<modality>, the share of its gradient.
    """

    model: Any

    def __init__(
        self,
        *,
        objective: losses_lib.Labels | losses_lib.Scores,
        own_loss: Mapping[str, float],
        modulate: Mapping[str, Any],
        optimizer: Optimizer,
        layout: Layout,
    ):
        super().__init__(optimizer, layout)
        self._objective, self._own_loss = objective, dict(own_loss)
        self._alpha, self._noise = registry.call(_modulation, modulate, "task.modulate")

    def make_multimodal(
        self, model: Mapping[str, Any], *, classes: int, dtype: str, context: Mapping[str, Any]
    ) -> multimodal.Multimodal:
        """The model that a config describes for `multimodal.make`, with heads as the losses want them; what `init_from` in it, in
        its fusion or in a tower names is taken out."""
        model, self.init_from = take_init_from_towers(model)
        modalities = tuple(model.get("modalities", ()))
        for name in self._own_loss:
            registry.choose(dict.fromkeys(modalities), name, "modality in task.own_loss")
        return registry.call(
            multimodal.make,
            model,
            "task.model",
            tokenizer=context["tokenizer"],
            classes=classes,
            heads=bool(self._own_loss) or self._alpha is not None,
            probes=tuple(name for name in modalities if not self._own_loss.get(name)),
            probability=self._objective.probability,
            dtype=registry.choose(DTYPES, dtype, "dtype"),
            axis=self.axis,
        )

    def networks(self, rng: jax.Array, batch: Batch) -> dict[str, dict]:
        self._objective.check(batch)
        return {"model": self.model.init(rng, batch, batch.get("present"))}

    def _forward(self, params, variables, batch, train=False, rngs=None) -> tuple[Outputs, dict]:
        """-> what the model says, and its new variables."""
        return self.model.apply(
            {"params": params["model"], **variables["model"]},
            batch,
            batch.get("present"),
            train=train,
            mutable=list(variables["model"]) if train else [],
            rngs=rngs,
        )

    def loss(self, params, variables, batch, rng, step):
        del step
        outputs, variables = self._forward(params, variables, batch, train=True, rngs={"dropout": rng})
        losses, weight = self._objective.losses(outputs.logits, batch)
        metrics = {"loss": Mean.of(losses, weight), **self._objective.watch(outputs.logits, batch)}
        scalar = metrics["loss"].compute()
        if outputs.heads is not None:
            watched = self.model.level == "early"
            for i, name in enumerate(self.model.modalities):
                logits, seen = outputs.heads[:, i], jnp.where(outputs.there[:, i], weight, 0.0)
                own = Mean.of(self._objective.losses(logits, batch)[0], seen)
                metrics[f"loss/{name}"] = own
                metrics[f"confidence/{name}"] = Mean.of(self._objective.confidence(logits, batch), seen)
                # A head that only watches learns at the full rate. Divided by the rows of the decision's loss, as their number is
                # the weight of a slice or a device.
                rate = self._own_loss.get(name) or float(watched)
                scalar = scalar + rate * own.total / jnp.maximum(metrics["loss"].count, 1e-12)
        return scalar, (metrics, {"model": variables})

    def gradients(self, params, variables, batch, rng, step):
        """As of any task; then the towers' are slowed as `modulate` says, and compared."""
        grads, metrics, variables = super().gradients(params, variables, batch, rng, step)
        model, names = dict(grads["model"]), getattr(self.model, "modalities", ())
        towers = {name: f"towers_{name}" for name in names}
        if self._alpha is not None and len(names) > 1:
            kept = losses_lib.slow_down(
                jnp.stack([metrics[f"confidence/{name}"].compute() for name in names]), self._alpha
            )
            # The same noise on all devices, which add it to one gradient.
            own = parallel.gather(jax.random.key_data(rng)[None], self.axis)[0]
            rng = jax.random.wrap_key_data(own, impl=jax.random.key_impl(rng))
            for i, (name, tower) in enumerate(towers.items()):
                metrics[f"kept/{name}"] = Mean.of(kept[i])
                noise = jax.random.fold_in(rng, i) if self._noise else None
                model[tower] = losses_lib.modulated(model[tower], kept[i], noise)
        norms = {name: optax.tree.norm(model[tower]) for name, tower in towers.items()}
        for name, norm in norms.items():
            metrics[f"gradient_share/{name}"] = Mean.of(norm / jnp.maximum(sum(norms.values()), 1e-12))
        return {**grads, "model": model}, metrics, variables


class Classification(Decision):
    """Say an example's label, or each of its labels.

    Args:
      model: of images alone see `make_model`; of any modalities, with `towers` and `classes`, models/multimodal.py's `make`.
        `init_from` in it, or in its tower or towers, starts that from other weights.
      label_smoothing: this share of the target is spread evenly over the classes.
      class_weights, multi_label: weights and several of `losses.classification.Labels`.
      own_loss, modulate: see `Decision`.
      dtype: "float32" or "bfloat16", of the network.
    """

    def __init__(
        self,
        *,
        model: Mapping[str, Any],
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] = (),
        multi_label: bool = False,
        own_loss: Mapping[str, float] | None = None,
        modulate: Mapping[str, Any] | None = None,
        dtype: str = "float32",
        optimizer: Optimizer,
        layout: Layout,
        context: Mapping[str, Any],
    ):
        model = dict(model)
        objective = losses_lib.Labels(
            model.get("classes", 0), model.get("labels", 1), label_smoothing, class_weights, multi_label
        )
        super().__init__(
            objective=objective,
            own_loss=own_loss or {},
            modulate=modulate or {},
            optimizer=optimizer,
            layout=layout,
        )
        self.predict = {"classify": self._predict_classify}
        self._image_alone = "towers" not in model
        if not self._image_alone:
            if model.pop("classes", 0) < 2:
                raise ValueError("task.model.classes: at least two classes.")
            classes = objective.classes
            self.model = self.make_multimodal(model, classes=classes, dtype=dtype, context=context)
            return
        if own_loss or modulate:
            raise ValueError(
                "task.own_loss and task.modulate balance modalities: give task.model towers and modalities."
            )
        dtype = registry.choose(DTYPES, dtype, "dtype")
        model, self.init_from = take_init_from(model)
        self.model = registry.call(make_model, model, "task.model", dtype=dtype, axis=self.axis)
        self.predict["features"] = self._predict_features

    def networks(self, rng: jax.Array, batch: Batch) -> dict[str, dict]:
        if not self._image_alone:
            return super().networks(rng, batch)
        self._objective.check(batch)
        return {"model": self.model.init(rng, batch["image"])}

    def _forward(self, params, variables, batch, train=False, rngs=None):
        if not self._image_alone:
            return super()._forward(params, variables, batch, train, rngs)
        logits, variables = self.model.apply(
            {"params": params["model"], **variables["model"]},
            batch["image"],
            train=train,
            mutable=list(variables["model"]) if train else [],
            rngs=rngs,
        )
        return Outputs(logits), variables

    def _predict_classify(self, params, variables, batch, rng):
        """-> {"logits" float32 [B, K]}, or [B, L, K] of several labels."""
        del rng
        return {"logits": self._forward(params, variables, batch)[0].logits}

    def _predict_features(self, params, variables, batch, rng):
        """What the tower pools. -> {"features" float32 [B, D]}."""
        del rng
        features = self.model.apply(
            {"params": params["model"], **variables["model"]}, batch["image"], method="features"
        )
        return {"features": features.astype(jnp.float32)}


make = Classification


def _modulation(*, alpha: float | None = None, noise: bool = True) -> tuple[float | None, bool]:
    if alpha is not None and alpha <= 0:
        raise ValueError(f"task.modulate.alpha is {alpha}: above 0, or leave modulate empty.")
    return alpha, noise


def take_init_from_towers(model: Mapping[str, Any]) -> tuple[dict, dict]:
    """As `take_init_from`, of a model whose parameters have "towers_image" where its config has towers.image; towers that are
    not built need no weights."""
    model, parts = take_init_from(model)
    found = {}
    for (network, *path), source in parts.items():
        if path[:1] == ["towers"]:
            _, name, *rest = path
            if name not in model.get("modalities", ()):
                continue
            path = [f"towers_{name}", *rest]
        found[network, *path] = source
    return model, found
