"""How often a classifier is right: on one label of an example, on each of several, or on any number of labels at once."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmgen_jax import figures
from mmgen_jax.data.pipeline import Pipeline
from mmgen_jax.evaluators import base
from mmgen_jax.evaluators.base import Predict, Row
from mmgen_jax.scores import classification
from mmgen_jax.scores.signature import sign


class OneLabel(base.Classification):
    """A classifier's own logits over the source's classes.

    Scores: those of scores/classification.py, and ece, how far its confidence is from its success.
    """

    kind = "classification"

    def run(self, predict: Predict, figure: Path) -> dict[str, float]:
        """Classify and score; the picture shows what is taken for what, and the calibration."""
        scores = super().run(predict, figure)
        calibration = classification.calibration(self._label, self._scores)
        if self.pipeline.process[0] == 0:
            names = self.source.classes
            counts = classification.confusion(self._label, self._scores.argmax(axis=1), len(names))
            figures.confusion(figure, counts, names, calibration)
        return {**scores, "ece": calibration.ece}

    def judge(self, predict: Predict) -> tuple[dict[str, np.ndarray], np.ndarray]:
        outputs, inputs = self.outputs(predict, "classify")
        classes, names = outputs["logits"].shape[1], len(self.source.classes)
        if classes != names:
            raise ValueError(f"task.model.classes is {classes}, the source has {names} classes.")
        return inputs, outputs["logits"]

    def how(self) -> dict[str, Any]:
        return {}


class SeveralLabels(base.Evaluator):
    """A classifier of L labels an image.

    Scores: labels_right is the share of all labels that are right; all_right that of the images with no label wrong.
    """

    def run(self, predict: Predict, figure: Path) -> dict[str, float]:
        """Classify and score; there is no picture. The answers stay until the next run."""
        del figure
        outputs, inputs = self.outputs(predict, "classify")
        self._index, self._label = inputs["index"], inputs.get("label")
        self._predicted = outputs["logits"].argmax(axis=-1)
        if self._label is None or self._label.shape != self._predicted.shape:
            found = "no label" if self._label is None else f"the label {list(self._label.shape[1:])}"
            raise ValueError(
                f'An example of "{self.spec["name"]}" has {found}, the classifier gives {list(self._predicted.shape[1:])}: '
                "task.model.labels and this evaluation's labels and source belong together."
            )
        right = self._predicted == self._label
        return {"labels_right": float(right.mean()), "all_right": float(right.all(axis=1).mean())}

    def table(self, scores: dict[str, float]) -> dict[str, Row]:
        """The scores x 100 with Wilson's interval, in which an image's labels count as one: they are wrong together."""
        rows = {}
        for name, value in scores.items():
            low, high = classification.wilson(value, len(self._label))
            rows[name] = Row(100 * value, (100 * low, 100 * high))
        return rows

    def signature(self, **how: Any) -> str:
        images, labels = self._label.shape
        return sign("classification", labels=labels, n=images, split=self.split, **how)

    def write(self, path: Path) -> None:
        """The answers as JSON lines: index, label, predicted."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            for index, label, said in zip(self._index, self._label, self._predicted, strict=True):
                record = {"index": int(index), "label": label.tolist(), "predicted": said.tolist()}
                file.write(json.dumps(record) + "\n")


class AnyLabels(SeveralLabels):
    """A classifier that says of each of K labels whether an example has it: its logit is above 0.

    Scores: those of `score_several` in scores/classification.py.
    """

    def run(self, predict: Predict, figure: Path) -> dict[str, float]:
        """Classify and score; there is no picture. The answers stay until the next run."""
        del figure
        outputs, inputs = self.outputs(predict, "classify")
        logits, self._label = outputs["logits"], inputs.get("label")
        self._index, self._predicted = inputs["index"], (logits > 0).astype(np.int32)
        if self._label is None or self._label.shape != logits.shape:
            found = "no label" if self._label is None else f"the label {list(self._label.shape[1:])}"
            raise ValueError(
                f'An example of "{self.spec["name"]}" has {found}, the classifier gives {list(logits.shape[1:])}: with '
                "multi_label a label is 0 or 1 for each of task.model.classes."
            )
        return classification.score_several(self._label, logits)

    def table(self, scores: dict[str, float]) -> dict[str, Row]:
        """The scores x 100; the shares of right ones with Wilson's interval."""
        shares = {name: value for name, value in scores.items() if name.endswith("right")}
        return {**{name: Row(100 * value) for name, value in scores.items()}, **super().table(shares)}

    def write(self, path: Path) -> None:
        """The answers as JSON lines, and beside them scikit-learn's report on each label as text."""
        super().write(path)
        names = getattr(self.source, "classes", None) or [f"label {k}" for k in range(self._label.shape[1])]
        report = classification.report(self._label, self._predicted, names)
        path.with_suffix(".txt").write_text(report, encoding="utf-8")


def make(
    *,
    source: Mapping[str, Any],
    transforms: str,
    batch_size: int,
    labels: int = 1,
    multi_label: bool = False,
    pipeline: Pipeline,
) -> base.Evaluator:
    """`AnyLabels` with `multi_label`, else `OneLabel` or `SeveralLabels`, by how many `labels` an image has.

    For the other arguments see base.Evaluator.
    """
    kind = AnyLabels if multi_label else OneLabel if labels == 1 else SeveralLabels
    return kind(source=source, transforms=transforms, batch_size=batch_size, pipeline=pipeline)
