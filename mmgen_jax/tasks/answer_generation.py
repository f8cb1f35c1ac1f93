"""Answers to questions about what is seen, written word by word by a decoder: no vocabulary of answers, any length."""

from collections.abc import Mapping
from typing import Any

from mmgen_jax.core import registry
from mmgen_jax.core.optimizer import Optimizer
from mmgen_jax.core.sharding import Layout
from mmgen_jax.models import answer_generator
from mmgen_jax.tasks.base import DTYPES, Batch
from mmgen_jax.tasks.captioning import Writing
from mmgen_jax.tasks.classification import take_init_from_towers
from mmgen_jax.tasks.question_answering import NEXT

__all__ = ["NEXT", "AnswerGeneration", "make"]


class AnswerGeneration(Writing):
    """Maximise the probability of the annotators' answers, one drawn each time by the transform `written_answer`.

    Args:
      model: see models/answer_generator.py's `make`; `init_from` in it, in a part or in a tower starts that from other weights.
      decode: how "answer" writes, see `Writing.search`; label_smoothing: see `Writing`.
      dtype: "float32" or "bfloat16", of the computation.
    """

    def __init__(
        self,
        *,
        model: Mapping[str, Any],
        decode: Mapping[str, Any],
        label_smoothing: float = 0.0,
        dtype: str = "float32",
        optimizer: Optimizer,
        layout: Layout,
        context: Mapping[str, Any],
    ):
        super().__init__(decode=decode, label_smoothing=label_smoothing, optimizer=optimizer, layout=layout)
        model, self.init_from = take_init_from_towers(model)
        dtype = registry.choose(DTYPES, dtype, "dtype")
        fixed = {"tokenizer": context["tokenizer"], "dtype": dtype, "axis": self.axis}
        self.predict["answer"] = self.predict.pop("generate")
        self.model = registry.call(answer_generator.make, model, "task.model", **fixed)

    def seen(self, batch: Batch) -> Batch:
        """All of it: the model knows its modalities."""
        return batch


make = AnswerGeneration
