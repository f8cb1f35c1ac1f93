"""Write captions for a data set and score them: BLEU, ROUGE-L, CIDEr-D, truth; a picture of eight of them."""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmgen_jax import figures
from mmgen_jax.data import text
from mmgen_jax.data.pipeline import Pipeline
from mmgen_jax.evaluators.base import Evaluator, Predict, Row
from mmgen_jax.scores import captions as scores_lib
from mmgen_jax.scores.classification import wilson


class Captions(Evaluator):
    """Captions of a data set, scored against its references.

    Scores: bleu1..4, rouge_l and cider, as coco-caption computes them; of a source with `is_true`: truth, the share of true
    captions;
    length, the mean number of words, and finished, the share that ended before the longest length.

    Args:
      source, transforms, batch_size, pipeline: see `Evaluator`.
      predict: which prediction writes the captions.
      pictures: how many captions to draw.
      floor_images: on how many training images the best constant caption is chosen.
      java: METEOR and SPICE in the table too, where Java and pycocoevalcap are there.
    """

    def __init__(
        self,
        *,
        source: Mapping[str, Any],
        transforms: str,
        batch_size: int,
        predict: str = "generate",
        pictures: int = 8,
        floor_images: int = 6000,
        java: bool = False,
        pipeline: Pipeline,
    ):
        super().__init__(source=source, transforms=transforms, batch_size=batch_size, pipeline=pipeline)
        self._predict, self._pictures, self._floor_images, self._java = predict, pictures, floor_images, java
        self.references: list[list[str]] = []
        self.hypotheses: list[str] = []
        self.records: list[dict] = []
        self._index: list[int] | None = None
        self._references: scores_lib.References | None = None

    def run(self, predict: Predict, figure: Path) -> dict[str, float]:
        """Caption, score, and draw into `figure`. The captions stay in `records` until the next run."""
        outputs, inputs = self.outputs(predict, self._predict)
        tokens, decode = outputs["tokens"][:, 0], self.pipeline.tokenizer.decode
        index = [int(i) for i in inputs["index"]]
        self.hypotheses = [decode(row) for row in tokens]
        self.references = [self.source.captions(i) for i in index]
        self.records = [
            {
                "index": i,
                "caption": hypothesis,
                "log_prob": round(float(log_prob), 5),
                "references": references,
            }
            for i, hypothesis, log_prob, references in zip(
                index, self.hypotheses, outputs["log_prob"][:, 0], self.references, strict=True
            )
        ]
        self._count(index)
        self._comparison = self._references.compare(self.hypotheses)
        scores = self._comparison.score()
        if hasattr(self.source, "is_true"):
            true = [self.source.is_true(i, text) for i, text in zip(index, self.hypotheses, strict=True)]
            scores["truth"] = float(np.mean(true))
            for record, value in zip(self.records, true, strict=True):
                record["true"] = bool(value)
        scores["length"] = float(np.mean([len(text.split()) for text in self.hypotheses]))
        scores["finished"] = float(np.mean(outputs["finished"][:, 0]))
        if self._pictures:
            self._draw(predict, index[: self._pictures], tokens[: self._pictures], figure)
        return scores

    def _draw(self, predict: Predict, index: list[int], tokens: np.ndarray, path: Path) -> None:
        """The first captions with an attention map a word; of clips, which take a page each, one."""
        seen = [self.image(i) for i in index]
        weights = attend(predict, seen, tokens, self.batch_size // self.pipeline.process[1])
        if self.pipeline.process[0] != 0:
            return
        words = [self.pipeline.tokenizer.pieces(row) for row in tokens]
        if seen[0].ndim == 4:
            figures.film(path, seen[0], words[0], weights[0], title=self.source.name(index[0]))
        else:
            figures.attention(path, seen, words, weights)

    def _count(self, index: list[int]) -> None:
        """The references' n-grams, counted once for all evaluations of a run."""
        if self._index != index:
            self._index, self._references = index, scores_lib.References(self.references)

    def table(self, scores: dict[str, float]) -> dict[str, Row]:
        """The scores x 100 with bootstrap intervals, floor and ceiling; the last run's captions are resampled."""
        intervals = self._comparison.bootstrap()
        constants = _constants(self.pipeline.source, self._floor_images)
        blind = [
            self._references.compare([caption] * len(self.references)).score()
            for caption in constants.values()
        ]
        floors = {name: max(scores[name] for scores in blind) for name in scores_lib.NAMES}
        ceiling = scores_lib.ceiling(self.references) if min(map(len, self.references)) > 1 else {}
        rows = {}
        for name in scores_lib.NAMES:
            low, high = intervals[name]
            above = 100 * ceiling[name] if ceiling else None
            rows[name] = Row(100 * scores[name], (100 * low, 100 * high), 100 * floors[name], above)
        if "truth" in scores:
            low, high = wilson(scores["truth"], len(self.hypotheses))
            truth = np.mean(
                [self.source.is_true(record["index"], constants["cider"]) for record in self.records]
            )
            rows["truth"] = Row(100 * scores["truth"], (100 * low, 100 * high), 100 * float(truth), 100.0)
        if self._java:
            extra = scores_lib.score_java(self.references, self.hypotheses)
            rows.update({name: Row(None if value is None else 100 * value) for name, value in extra.items()})
        return rows

    def signature(self, **how: Any) -> str:
        return scores_lib.signature(
            **how, split=self.split, n=len(self.hypotheses), refs=len(self.references[0])
        )

    def write(self, path: Path) -> None:
        """The captions as JSON lines: index, caption, log_prob, references, and true where that is known."""
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in self.records)
        path.write_text("".join(lines), encoding="utf-8")


@functools.lru_cache(maxsize=1)
def _constants(train: Any, images: int) -> dict[str, str]:
    """The best constant captions of a training set by CIDEr and by BLEU-4; all evaluations of a run share them."""
    # A few thousand images settle which they are; an endless source has no more to say.
    return scores_lib.constant_captions([train.captions(i) for i in range(min(len(train), images))])


def written(tokens: np.ndarray) -> np.ndarray:
    """Texts that a run has written, as its task reads them: begun with BOS. [n, L] -> int32 [n, 1, L + 1]."""
    starts = np.full((len(tokens), 1), text.BOS, np.int32)
    return np.concatenate([starts, tokens], axis=1).astype(np.int32)[:, None]


def attend(predict: Predict, seen: Sequence[np.ndarray], tokens: np.ndarray, batch_size: int) -> np.ndarray:
    """Where the model looked while it wrote given captions.

    They go through in batches of `batch_size`, the last filled up: that divides over the mesh where their own number may not.

    seen: n x uint8 [H, W, 3], or clips [F, H, W, 3]; tokens: [n, L] -> float [n, L, P], of clips [n, L, F, S].
    """
    key = "video" if seen[0].ndim == 4 else "image"
    tokens, weights = written(tokens), []
    for first in range(0, len(seen), batch_size):
        rows = np.minimum(np.arange(first, first + batch_size), len(seen) - 1)
        batch = {key: np.stack([seen[row] for row in rows]), "tokens": tokens[rows]}
        # Rows of other processes follow this one's.
        weights.append(predict("attend", batch)[0]["weights"][:batch_size, 0])
    return np.concatenate(weights)[: len(seen)]


make = Captions
