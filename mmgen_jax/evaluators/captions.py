"""Write captions for a data set and score them: BLEU, ROUGE-L, CIDEr-D, truth; a picture of eight of them."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmgen_jax import __version__, figures
from mmgen_jax.data.pipeline import Pipeline
from mmgen_jax.evaluators.base import Evaluator, Predict, Row
from mmgen_jax.scores import captions as scores_lib

# How the field prints them: all but the truth (a share, printed in per cent too) times 100.
NAMES = ("bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "cider")


class Captions(Evaluator):
    """Captions of a data set, scored against its references.

    Scores: bleu1..4, rouge_l and cider, as coco-caption computes them; of a source with `is_true`: truth, the share of true captions;
    length, the mean number of words, and finished, the share that ended before the longest length.

    Args:
      source, transforms, batch_size, pipeline: see `Evaluator`.
      predict: which prediction writes the captions.
      pictures: how many captions to draw.
    """

    def __init__(
        self,
        *,
        source: Mapping[str, Any],
        transforms: str,
        batch_size: int,
        predict: str = "generate",
        pictures: int = 8,
        pipeline: Pipeline,
    ):
        super().__init__(source=source, transforms=transforms, batch_size=batch_size, pipeline=pipeline)
        self._predict, self._pictures = predict, pictures
        self.references: list[list[str]] = []
        self.hypotheses: list[str] = []
        self.records: list[dict] = []

    def run(self, predict: Predict, figure: Path | None = None) -> dict[str, float]:
        """Caption, score, and draw into `figure`. The captions stay in `records` until the next run."""
        outputs, inputs = self.outputs(predict, self._predict)
        tokens, decode = outputs["tokens"][:, 0], self.pipeline.tokenizer.decode
        index = [int(i) for i in inputs["index"]]
        self.hypotheses = [decode(row) for row in tokens]
        self.references = [self.source.captions(i) for i in index]
        self.records = [
            {"index": i, "caption": hypothesis, "log_prob": round(float(log_prob), 5), "references": references}
            for i, hypothesis, log_prob, references in zip(
                index, self.hypotheses, outputs["log_prob"][:, 0], self.references, strict=True
            )
        ]
        scores = scores_lib.score(self.references, self.hypotheses)
        scores = {name: scores[name] for name in NAMES}
        if hasattr(self.source, "is_true"):
            true = [self.source.is_true(i, text) for i, text in zip(index, self.hypotheses, strict=True)]
            scores["truth"] = float(np.mean(true))
            for record, value in zip(self.records, true, strict=True):
                record["true"] = bool(value)
        scores["length"] = float(np.mean([len(text.split()) for text in self.hypotheses]))
        scores["finished"] = float(np.mean(outputs["finished"][:, 0]))
        if figure is not None:
            self.draw(predict, index[: self._pictures], tokens[: self._pictures], figure)
        return scores

    def draw(self, predict: Predict, index: list[int], tokens: np.ndarray, path: Path) -> None:
        """The first captions with an attention map a word."""
        images, weights = attend(predict, self, index, tokens)
        words = [[self.pipeline.tokenizer.decode([t]) for t in row if t > 2] for row in tokens]
        figures.attention(path, images, words, weights)

    @functools.cached_property
    def _floor(self) -> tuple[str, dict[str, float]]:
        train = self.pipeline.source
        # The best constant caption is found on a few thousand training images; an endless source has no more to say.
        sample = [train.captions(i) for i in range(min(len(train), 6000))]
        return scores_lib.floor(sample, self.references)

    def table(self, scores: dict[str, float]) -> dict[str, Row]:
        """The scores x 100 with bootstrap intervals, floor and ceiling; the last run's captions are resampled."""
        intervals = scores_lib.bootstrap(self.references, self.hypotheses)
        floor = self._floor[1]
        ceiling = scores_lib.ceiling(self.references) if min(map(len, self.references)) > 1 else {}
        rows = {}
        for name in NAMES:
            low, high = intervals[name]
            above = ceiling.get(name)
            rows[name] = Row(
                100 * scores[name],
                (100 * low, 100 * high),
                100 * floor[name],
                None if above is None else 100 * above,
            )
        if "truth" in scores:
            share, n = scores["truth"], len(self.hypotheses)
            low, high = _wilson(share, n)
            truth = [self.source.is_true(record["index"], self._floor[0]) for record in self.records]
            rows["truth"] = Row(100 * share, (100 * low, 100 * high), 100 * float(np.mean(truth)), 100.0)
        return rows

    def signature(self, **how: Any) -> str:
        """A line that says how the numbers were made."""
        split = self.spec.get("split", self.spec["name"])
        return scores_lib.signature(
            tok="ptb", **how, split=split, n=len(self.hypotheses), refs=len(self.references[0]), v=__version__
        )

    def write(self, path: Path) -> None:
        """The last run's captions as JSON lines."""
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in self.records)
        path.write_text("".join(lines), encoding="utf-8")


def attend(
    predict: Predict, evaluator: Evaluator, index: list[int], tokens: np.ndarray
) -> tuple[list[np.ndarray], np.ndarray]:
    """Images and attention maps of written captions. tokens: [n, L] -> n images, weights [n, L, P]."""
    n, size = len(index), evaluator.batch_size // evaluator.pipeline.process[1]
    rng = np.random.default_rng(0)
    images = []
    for i in index:
        example = evaluator.source[i]
        for transform in evaluator.transforms:
            example = transform(example, rng)
        images.append(example["image"])
    # One batch of the evaluation's own size: it divides over any mesh that the evaluation ran on.
    batch = {
        "image": np.stack([images[i % n] for i in range(size)]),
        "tokens": np.stack([np.concatenate([[1], tokens[i % n]]) for i in range(size)])[:, None].astype(np.int32),
    }
    return images, predict("attend", batch)[0]["weights"][:n, 0]


def _wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share of n (Wilson, 1927); a bootstrap of 1000 true captions in 1000 would claim no doubt."""
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


make = Captions
