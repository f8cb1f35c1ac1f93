"""Answers to questions about what is seen: the likeliest of a vocabulary, by any towers and fusion."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mmgen_jax.core import registry
from mmgen_jax.core.optimizer import Optimizer
from mmgen_jax.core.sharding import Layout
from mmgen_jax.losses.classification import Scores
from mmgen_jax.models.multimodal import PROBABILITY
from mmgen_jax.nn import fusion
from mmgen_jax.tasks.base import Batch
from mmgen_jax.tasks.classification import Decision

BEST = 5  # how many answers a prediction names

NEXT = """
Next:
  python scripts/answer.py --workdir {workdir} image.png "what colour is the circle?"   # ask it yourself; or clip.gif
  python scripts/evaluate.py --workdir {workdir} --split test                           # score another split
  ls {workdir}/predictions                                                              # what it said to each question
  ls {workdir}/figures                                                                  # some pictures with questions and answers
"""


class QuestionAnswering(Decision):
    """Choose the answer to a question about a picture, a clip, or both, among the K of the run's vocabulary (`data.answers`).

    Args:
      model: see models/multimodal.py's `make`; `init_from` in it, in its fusion or in a tower starts that from other weights.
      loss: "sigmoid" or "softmax", see `losses.classification.Scores`.
      own_loss, modulate: see `Decision`.
      dtype: "float32" or "bfloat16", of the network.
    """

    def __init__(
        self,
        *,
        model: Mapping[str, Any],
        loss: str = "sigmoid",
        own_loss: Mapping[str, float] | None = None,
        modulate: Mapping[str, Any] | None = None,
        dtype: str = "float32",
        optimizer: Optimizer,
        layout: Layout,
        context: Mapping[str, Any],
    ):
        registry.choose(dict.fromkeys(PROBABILITY), loss, "task.loss")
        super().__init__(
            objective=Scores(loss),
            own_loss=own_loss or {},
            modulate=modulate or {},
            optimizer=optimizer,
            layout=layout,
        )
        if "answers" not in context:
            raise ValueError(
                "question_answering chooses from a vocabulary of answers: give the config data.answers=dict(size=...)."
            )
        classes = len(context["answers"])
        self.model = self.make_multimodal(model, classes=classes, dtype=dtype, context=context)
        self._best = min(BEST, classes)
        self.predict = {"answer": self._predict_answer, "score": self._predict_score}
        if isinstance(self.model.fusion, fusion.LOOKS):
            self.predict["attend"] = self._predict_attend

    def networks(self, rng, batch):
        return super().networks(rng, self._apart(batch))

    def _forward(self, params, variables, batch, train=False, rngs=None):
        return super()._forward(params, variables, self._apart(batch), train, rngs)

    def loss(self, params, variables, batch, rng, step):
        return super().loss(params, variables, self._apart(batch), rng, step)

    def _apart(self, batch: Batch) -> Batch:
        """A row a question where examples have Q: "question" [B, Q, T] and "answer" [B, Q, K] become [B * Q, ...], and which rows
        and modalities are there is said of each. What is asked about stays [B, ...], for the model to look at once."""
        if "question" not in batch or batch["question"].ndim == 2:
            return batch
        rows, count = batch["question"].shape[:2]
        each = {name: jnp.concatenate(batch[name]) for name in ("question", "answer")}
        all_there = jnp.ones((rows, len(self.model.modalities)), jnp.bool_)
        said = {"mask": batch["mask"], "present": batch.get("present", all_there)}
        return {**batch, **each, **{name: jnp.repeat(value, count, axis=0) for name, value in said.items()}}

    def _predict_answer(self, params, variables, batch, rng):
        """The best answers, best first. -> {"answer" int32, "probability" float32 [B, 5]}, or [B, K] of fewer; of several
        questions [B, Q, ...], here and below."""
        scores = self._predict_score(params, variables, batch, rng)["score"]
        probability, answer = jax.lax.top_k(scores, self._best)
        return {"answer": answer.astype(jnp.int32), "probability": probability}

    def _predict_score(self, params, variables, batch, rng):
        """The probability of each answer. -> {"score" float32 [B, K]}."""
        del rng
        logits = _each(self._forward(params, variables, batch)[0].logits, batch)
        sigmoid = self._objective.probability == "sigmoid"
        return {"score": jax.nn.sigmoid(logits) if sigmoid else jax.nn.softmax(logits)}

    def _predict_attend(self, params, variables, batch, rng):
        """Where the fusion looks among the first modality's places. -> {"weights" float32 [B, P], of a video [B, F, S]}."""
        del rng
        weights = _each(self._forward(params, variables, batch)[0].attention, batch)
        return {"weights": self.model.placed(weights, batch)}


make = QuestionAnswering


def _each(rows: jax.Array, batch: Batch) -> jax.Array:
    """A row a question -> an example's own together: [B * Q, ...] -> [B, Q, ...], where the batch has several."""
    several = "question" in batch and batch["question"].ndim == 3
    return rows.reshape(*batch["question"].shape[:2], *rows.shape[1:]) if several else rows
