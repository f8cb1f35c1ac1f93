"""Choose key frames and score them against those planted: F1, precision, recall, and the share of videos with all right."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmgen_jax.data.pipeline import Pipeline
from mmgen_jax.evaluators.base import Evaluator, Predict, Row
from mmgen_jax.scores import key_frames
from mmgen_jax.scores.signature import sign


class KeyFrames(Evaluator):
    """Key frames of a source whose examples have "key_frames", float32 [F]. Scores: those of scores/key_frames.py.

    Args:
      source, transforms, batch_size, pipeline: see `Evaluator`.
      threshold, apart, most: how frames are chosen, see `key_frames.choose`.
      tolerance: a frame counts as found when one at most so many frames away is chosen.
    """

    def __init__(
        self,
        *,
        source: Mapping[str, Any],
        transforms: str,
        batch_size: int,
        threshold: float = 0.5,
        apart: int = 1,
        most: int | None = None,
        tolerance: int = 0,
        pipeline: Pipeline,
    ):
        super().__init__(source=source, transforms=transforms, batch_size=batch_size, pipeline=pipeline)
        self._how = {"threshold": threshold, "apart": apart, "most": most}
        self._tolerance = tolerance

    def run(self, predict: Predict, figure: Path) -> dict[str, float]:
        """Choose and score; there is no picture. The frames stay until the next run."""
        del figure
        outputs, inputs = self.outputs(predict, "score")
        if "key_frames" not in inputs:
            raise ValueError(
                f'The examples of "{self.spec["name"]}" come without "key_frames"; the source "clips" has them.'
            )
        self._index, self._planted = inputs["index"], _frames(inputs["key_frames"])
        self._chosen = [key_frames.choose(row, **self._how) for row in outputs["score"]]
        self._found = key_frames.counts(self._chosen, self._planted, self._tolerance)
        return key_frames.score(self._found)

    def table(self, scores: dict[str, float]) -> dict[str, Row]:
        """The scores x 100 with bootstrap intervals; the floor of F1 is that of the best constant choice of frames."""
        intervals = key_frames.bootstrap(self._found)
        rows = {}
        for name, value in scores.items():
            low, high = intervals[name]
            floor = 100 * self._floor() if name == "f1" else None
            rows[name] = Row(100 * value, (100 * low, 100 * high), floor, 100.0)
        return rows

    def _floor(self) -> float:
        """The F1 of the frames that are key frames most often, as many of them as is best, of every video."""
        often = np.bincount(np.concatenate(self._planted).astype(int), minlength=1)
        order = np.argsort(-often, kind="stable")
        constants = [sorted(order[: n + 1].tolist()) for n in range(len(order))]
        return max(
            key_frames.score(
                key_frames.counts([frames] * len(self._planted), self._planted, self._tolerance)
            )["f1"]
            for frames in constants
        )

    def signature(self, **how: Any) -> str:
        return sign(
            "key_frames", **self._how, tolerance=self._tolerance, n=len(self._chosen), split=self.split, **how
        )

    def write(self, path: Path) -> None:
        """The frames as JSON lines: index, planted, chosen."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            for index, planted, chosen in zip(self._index, self._planted, self._chosen, strict=True):
                record = {"index": int(index), "planted": planted, "chosen": chosen}
                file.write(json.dumps(record) + "\n")


def _frames(keys: np.ndarray) -> list[list[int]]:
    """float [N, F], 1 at key frames -> their numbers, video by video."""
    return [np.flatnonzero(row > 0.5).tolist() for row in keys]


make = KeyFrames
