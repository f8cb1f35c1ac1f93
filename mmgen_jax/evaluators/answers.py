"""Answer a data set's questions and score them: VQA accuracy, overall and by type; a picture of twelve; what was said."""

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmgen_jax import decoding, figures
from mmgen_jax.data.pipeline import Pipeline
from mmgen_jax.evaluators.base import Evaluator, Predict, Row
from mmgen_jax.scores import vqa
from mmgen_jax.scores.classification import wilson

TYPES = ("answer_type", "question_type")
COLUMNS = 6  # of the picture


class Answers(Evaluator):
    """Answers to a data set's questions, scored against its annotators'.

    Scores: accuracy, as visualqa.org computes it, and accuracy by answer type and question type where the source tells them;
    outside, the share of questions to which no answer of the run's vocabulary is right, or of a run that writes its answers
    finished, the share that ended before the longest length.

    Args:
      source, transforms, batch_size, pipeline: see `Evaluator`; the source has `question(i)` and `answers(i)`.
      multiple_choice: answer with one of each example's own "choices", which the source has as `choices(i)`; for a run that
        chooses from a vocabulary.
      pictures: how many questions to draw.
    """

    def __init__(
        self,
        *,
        source: Mapping[str, Any],
        transforms: str,
        batch_size: int,
        multiple_choice: bool = False,
        pictures: int = 12,
        pipeline: Pipeline,
    ):
        super().__init__(source=source, transforms=transforms, batch_size=batch_size, pipeline=pipeline)
        self._multiple_choice, self._pictures = multiple_choice, pictures
        self.records: list[dict[str, Any]] = []

    def run(self, predict: Predict, figure: Path) -> dict[str, float]:
        """Answer, score, and draw into `figure`. The answers stay in `records` until the next run.

        Raises:
          ValueError: the source has no questions, no choices where these are asked for, or answers that are secret.
        """
        needed = ("question", "answers", *(("choices",) if self._multiple_choice else ()))
        absent = [name for name in needed if not hasattr(self.source, name)]
        if absent:
            raise ValueError(
                f'The source "{self.spec["name"]}" has no {", ".join(absent)}: this evaluation needs one of questions, see '
                "data/questions.py."
            )
        outputs, inputs = self.outputs(predict, "score" if self._multiple_choice else "answer")
        index = inputs["index"].tolist()
        if self._multiple_choice:
            choices = [self.source.choices(i) for i in index]
            said = vqa.choose(outputs["score"], self.pipeline.answers.words, choices)
            probability = [None] * len(said)
        else:
            said, probability = zip(*(best[0] for best in read(outputs, self.pipeline)), strict=True)
        references = [self.source.answers(i) for i in index]
        self._values = vqa.each(said, references)
        self._types = {
            name: [getattr(self.source, name)(i) for i in index]
            for name in TYPES
            if hasattr(self.source, name)
        }
        self._soft = [vqa.soft_scores(answers) for answers in references]
        written = "tokens" in outputs
        self._best = np.array(
            [
                max(
                    (s for word, s in soft.items() if written or self.pipeline.answers.encode(word) >= 0),
                    default=0.0,
                )
                for soft in self._soft
            ]
        )
        # The questions about one image hang together, where the source knows which those are.
        self._groups = [self.source.group(i) for i in index] if hasattr(self.source, "group") else None
        questions = [self.source.question(i) for i in index]
        columns = (index, questions, said, probability, references, self._values.tolist())
        keys = ("index", "question", "answer", "probability", "answers", "score")
        self.records = [dict(zip(keys, row, strict=True)) for row in zip(*columns, strict=True)]
        if self._pictures and self.pipeline.process[0] == 0:
            self._draw(figure)
        scores = vqa.score(self._values, **self._types)
        if written:
            return {**scores, "finished": float(np.mean(outputs["finished"][:, 0]))}
        return {**scores, "outside": float(np.mean(self._best == 0))}

    def _draw(self, path: Path) -> None:
        """The first questions under their pictures; those answered rightly have a frame."""
        chosen = self.records[: self._pictures]
        lines = [chosen[i : i + COLUMNS] for i in range(0, len(chosen), COLUMNS)]
        figures.contact_sheet(
            path,
            [[self._picture(record["index"]) for record in line] for line in lines],
            [f"{line[0]['index']} to {line[-1]['index']}" for line in lines],
            [[_said(record) for record in line] for line in lines],
            [[_right(record) for record in line] for line in lines],
            lines=8,
        )

    def _picture(self, index: int) -> np.ndarray:
        """What the question is about, of a clip the frame in the middle. -> uint8 [H, W, 3]."""
        example = self.source[index]
        for transform in self.transforms:
            example = transform(example, np.random.default_rng(0))
        return example["image"] if "image" in example else example["video"][len(example["video"]) // 2]

    def table(self, scores: dict[str, float]) -> dict[str, Row]:
        """The scores x 100 with bootstrap intervals; floor: the best constant answer; ceiling: the vocabulary's best."""
        intervals = vqa.bootstrap(self._values, self._groups, **self._types)
        total = Counter()
        for soft in self._soft:
            total.update(soft)
        always = max(total, key=total.get)
        floors = vqa.score(np.array([soft.get(always, 0.0) for soft in self._soft]), **self._types)
        ceilings = vqa.score(self._best, **self._types)
        rows = {}
        for name, value in scores.items():
            if name not in intervals:
                low, high = wilson(value, len(self._values))
                rows[name] = Row(100 * value, (100 * low, 100 * high))
                continue
            low, high = intervals[name]
            rows[name] = Row(100 * value, (100 * low, 100 * high), 100 * floors[name], 100 * ceilings[name])
        return rows

    def signature(self, **how: Any) -> str:
        return vqa.signature(
            n=len(self._values), multiple_choice=self._multiple_choice, split=self.split, **how
        )

    def write(self, path: Path) -> None:
        """The answers as JSON lines: index, question, answer, its probability, the annotators' answers, score."""
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in self.records)
        path.write_text("".join(lines), encoding="utf-8")


def read(outputs: Mapping[str, np.ndarray], pipeline: Pipeline) -> list[list[tuple[str, float]]]:
    """What the prediction "answer" says, row by row: pairs of an answer and its probability, best first.

    Args:
      outputs: "answer" and "probability" [B, K] of a run that chooses from its vocabulary; "tokens" [B, K, L] and "log_prob" of
        one that writes: the probability is then that of all words and the end. A beam's places without a sequence are left out.
      pipeline: the run's.
    """
    if "tokens" in outputs:
        log_prob = outputs["log_prob"].astype(np.float64)
        return [
            [
                (pipeline.tokenizer.decode(tokens), round(math.exp(one), 4))
                for tokens, one in zip(*row, strict=True)
                if one > decoding.NEVER / 10
            ]
            for row in zip(outputs["tokens"], log_prob, strict=True)
        ]
    words = pipeline.answers.words
    return [
        [(words[k], round(float(p), 4)) for k, p in zip(*row, strict=True)]
        for row in zip(outputs["answer"], outputs["probability"], strict=True)
    ]


def _right(record: Mapping) -> bool:
    return record["score"] >= 0.5


def _said(record: Mapping) -> str:
    """A question with its answer, and with what was wanted where that is another."""
    said = f"{record['question'].rstrip('?')}? {record['answer']}"
    return said if _right(record) else f"{said}, not {record['answers'][0]}"


make = Answers
