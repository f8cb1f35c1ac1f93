"""What labels and answers ask of logits: losses of one label, of several, and of soft scores; balance between modalities."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mmgen_jax.core.metrics import Mean
from mmgen_jax.losses.sequence import cross_entropy

Batch = Mapping[str, jax.Array]


def binary_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """-t log sigmoid(l) - (1 - t) log sigmoid(-l) of each class. logits, targets in [0, 1]: float32 [..., K] -> nats [..., K]."""
    return -targets * jax.nn.log_sigmoid(logits) - (1.0 - targets) * jax.nn.log_sigmoid(-logits)


class Labels:
    """One label of an example, L labels, or any number of K classes at once.

    Args:
      classes: K.
      labels: L; the batch's "label" is int32 [B], or [B, L] of several.
      smoothing: the share of the target that is spread over the classes (of several at once: over yes and no).
      weights: K numbers, for classes of unequal size: an example counts as much as its label's (King and Zeng, 2001); of several
        at once, a yes of the class counts so much more than a no. Empty: all 1.
      several: the batch's "label" is [B, K] of 0 and 1: each class is a question of its own.

    Raises:
      ValueError: numbers that are out of range or do not belong together.
    """

    def __init__(
        self,
        classes: int,
        labels: int = 1,
        smoothing: float = 0.0,
        weights: Sequence[float] = (),
        several: bool = False,
    ):
        if not 0 <= smoothing < 1:
            raise ValueError(f"task.label_smoothing is {smoothing}: a share, at least 0 and below 1.")
        if labels > 1 and (several or weights):
            raise ValueError(
                f"task.model.labels is {labels}: then there are neither class_weights nor multi_label, which are of one label."
            )
        if weights and (len(weights) != classes or min(weights) <= 0):
            raise ValueError(
                f"task.class_weights are {len(weights)} numbers: one above 0 for each of the {classes} classes."
            )
        self.shape = (classes,) if several else () if labels == 1 else (labels,)
        self.probability = "sigmoid" if several else "softmax"
        self.classes, self._smoothing, self._several = classes, smoothing, several
        self._weights = jnp.asarray(weights, jnp.float32) if weights else None

    def check(self, batch: Batch) -> None:
        """Raises ValueError where the examples' labels are of another shape, or not there."""
        if "label" not in batch:
            raise ValueError(
                'The examples come without "label". Sources with labels are idx, parquet with its argument label, '
                "stacked_digits, and scenes with cells=True or max_objects=1; caption(...) in the transforms drops them."
            )
        if batch["label"].shape[1:] != self.shape:
            what = (
                f"task.multi_label with {self.shape[0]} classes"
                if self._several
                else f"task.model.labels={(*self.shape, 1)[0]}"
            )
            raise ValueError(
                f"An example's label has the shape {list(batch['label'].shape[1:])}, {what} expects {list(self.shape)}."
            )

    def losses(self, logits: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Nats of each example, of several labels or classes their mean, and how much it counts. [B, ..., K] -> [B], [B]."""
        label, mask = batch["label"], batch["mask"]
        if self._several:
            target = label.astype(jnp.float32)
            losses = binary_cross_entropy(logits, (1.0 - self._smoothing) * target + 0.5 * self._smoothing)
            if self._weights is not None:
                losses = losses * jnp.where(target > 0.5, self._weights[None], 1.0)
            return jnp.mean(losses, axis=1), mask
        # A label that is no class takes no logit: the loss is NaN, and the run stops.
        losses = cross_entropy(logits, label, self._smoothing)
        if self.shape:
            return jnp.mean(losses, axis=1), mask
        return losses, mask if self._weights is None else mask * self._weights[label]

    def watch(self, logits: jax.Array, batch: Batch) -> dict[str, Mean]:
        """accuracy: the share of labels that are right; all_right: of examples with no label wrong, where there are several."""
        said = logits > 0 if self._several else jnp.argmax(logits, axis=-1)
        right = (said == batch["label"].astype(said.dtype)).astype(jnp.float32)
        if not self.shape:
            return {"accuracy": Mean.of(right, batch["mask"])}
        return {
            "accuracy": Mean.of(jnp.mean(right, axis=1), batch["mask"]),
            "all_right": Mean.of(jnp.min(right, axis=1), batch["mask"]),
        }

    def confidence(self, logits: jax.Array, batch: Batch) -> jax.Array:
        """The probability of the truth, of several labels or classes the mean. -> [B]."""
        if self._several:
            return jnp.mean(
                jnp.exp(-binary_cross_entropy(logits, batch["label"].astype(jnp.float32))), axis=1
            )
        chosen = jnp.exp(-cross_entropy(logits, batch["label"]))
        return jnp.mean(chosen, axis=1) if self.shape else chosen


class Scores:
    """Soft scores of all answers: "answer" float32 [B, K] in [0, 1], the accuracy that each would get.

    Args:
      probability: "sigmoid": binary cross-entropy of each answer, summed (Teney et al., 2018, section 3.6); "softmax":
        cross-entropy with the scores divided by their sum, where a question of which no answer is known does not count.
    """

    def __init__(self, probability: str):
        self.probability = probability

    def check(self, batch: Batch) -> None:
        """Raises ValueError where the examples have no scores."""
        if "answer" not in batch:
            raise ValueError('The examples come without "answer": write answers() in the transforms.')

    def losses(self, logits: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Nats of each question, and how much it counts. logits: [B, K] -> [B], [B]."""
        target, mask = batch["answer"], batch["mask"]
        if self.probability == "sigmoid":
            return jnp.sum(binary_cross_entropy(logits, target), axis=1), mask
        total = jnp.sum(target, axis=1)
        share = target / jnp.maximum(total, 1e-6)[:, None]
        return -jnp.sum(share * jax.nn.log_softmax(logits), axis=1), jnp.where(total > 0, mask, 0.0)

    def watch(self, logits: jax.Array, batch: Batch) -> dict[str, Mean]:
        """accuracy: the score of the likeliest answer; outside: the share of questions to which no known answer is right."""
        target, mask = batch["answer"], batch["mask"]
        score = jnp.take_along_axis(target, jnp.argmax(logits, axis=1)[:, None], axis=1)[:, 0]
        outside = (jnp.sum(target, axis=1) == 0).astype(jnp.float32)
        return {"accuracy": Mean.of(score, mask), "outside": Mean.of(outside, mask)}

    def confidence(self, logits: jax.Array, batch: Batch) -> jax.Array:
        """The mean probability of right answers, weighted by their scores; 0 where none is known. -> [B]."""
        target = batch["answer"]
        probability = jax.nn.sigmoid(logits) if self.probability == "sigmoid" else jax.nn.softmax(logits)
        return jnp.sum(target * probability, axis=1) / jnp.maximum(jnp.sum(target, axis=1), 1e-6)


def slow_down(confidence: jax.Array, alpha: float) -> jax.Array:
    """How much of its gradient each modality's tower keeps (Peng et al., 2022, OGM-GE, equations 8 to 10).

    rho is a modality's confidence over the mean of the others' (the paper has two), and the factor is 1 - tanh(alpha rho) where
    rho is above 1, else 1.

    confidence: float32 [M], M at least 2 -> float32 [M].
    """
    others = (jnp.sum(confidence) - confidence) / (len(confidence) - 1)
    rho = confidence / jnp.maximum(others, 1e-12)
    return jnp.where(rho > 1.0, 1.0 - jnp.tanh(alpha * rho), 1.0)


def modulated(grads: Any, factor: jax.Array, rng: jax.Array | None) -> Any:
    """A tower's gradient x factor; with a key, plus normal noise (Peng et al., 2022, section 3.3, "generalization enhancement").

    The noise of an array has the standard deviation of its gradient; vectors, such as biases, get none.
    """
    leaves, tree = jax.tree.flatten(grads)
    scaled = [leaf * factor for leaf in leaves]
    if rng is not None:
        scaled = [
            new + jnp.std(leaf) * jax.random.normal(key, leaf.shape) if leaf.ndim > 1 else new
            for leaf, new, key in zip(leaves, scaled, jax.random.split(rng, len(leaves)), strict=True)
        ]
    return jax.tree.unflatten(tree, scaled)
