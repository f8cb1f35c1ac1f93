"""How many modes a generator has found of a toy set whose modes are known: points in the plane, and stacked digits."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmgen_jax import figures
from mmgen_jax.data.pipeline import Pipeline
from mmgen_jax.evaluators.base import Generator, Predict, Row
from mmgen_jax.scores import images as scores_lib
from mmgen_jax.scores.classification import wilson
from mmgen_jax.scores.signature import sign

SIDE = 8  # digits in a row and in a column of the picture


class Modes(Generator):
    """Modes found, and the divergence of their shares from the data's (kl); see scores/images.py.

    Of points (the source "gaussians") the modes are the source's own, and high_quality is the share of samples near one of them.
    Of stacked digits a judge reads each sample; as its mistakes find modes too, what it reads in real stacks stands beside.

    Args:
      source, transforms, batch_size, n, predict, pipeline: see `Generator`.
      judge: of digits, the prediction that gives "logits" [B, L, K].
    """

    def __init__(
        self,
        *,
        source: Mapping[str, Any],
        transforms: str,
        batch_size: int,
        n: int | None = None,
        judge: str = "reader.classify",
        predict: str = "generate",
        pipeline: Pipeline,
    ):
        common = dict(transforms=transforms, batch_size=batch_size, predict=predict, pipeline=pipeline)
        super().__init__(source=source, n=n, **common)
        self._judge = judge
        self._real: dict[str, float] = {}

    def run(self, predict: Predict, figure: Path) -> dict[str, float]:
        """Draw and count, with a picture in `figure`: the points over the modes, or the first stacks of digits."""
        points = hasattr(self.source, "modes")
        return self._points(predict, figure) if points else self._digits(predict, figure)

    def _points(self, predict: Predict, figure: Path) -> dict[str, float]:
        self._how: dict[str, str] = {}
        modes, std = self.source.modes, self.source.std
        points = np.concatenate([batch["image"][batch["mask"] > 0] for batch in self.samples(predict)])
        points = points.reshape(-1, 2)
        self._drawn = len(points)
        if not self._real:  # the same at every evaluation of a run
            count = min(self.n, len(self.source))
            real = np.reshape([self.source[i]["image"] for i in range(count)], (-1, 2))
            self._real = scores_lib.gaussian_modes(real, modes, std)
        scores = scores_lib.gaussian_modes(points, modes, std)
        if self.pipeline.process[0] == 0:
            distance, nearest = scores_lib.neighbours(points, modes)
            found = np.isin(np.arange(len(modes)), nearest[distance <= 3 * std])
            figures.scatter(figure, points, modes, std, found)
        return scores

    def _digits(self, predict: Predict, figure: Path) -> dict[str, float]:
        self._how = {"judge": self._judge, "weights": predict.fingerprint(self._judge)}
        if not self._real:
            digits, classes, _ = self._read(predict, self.real())
            self._real = scores_lib.digit_modes(digits, classes=classes)
        digits, classes, shown = self._read(predict, map(self.own, self.samples(predict)))
        self._drawn = len(digits)
        if self.pipeline.process[0] == 0:
            parts = [slice(first, first + SIDE) for first in range(0, len(shown), SIDE)]
            read = ["  ".join("".join(map(str, number)) for number in digits[part]) for part in parts]
            figures.sample_grid(figure, [shown[part] for part in parts], read)
        return scores_lib.digit_modes(digits, classes=classes)

    def _read(
        self, predict: Predict, batches: Iterable[Mapping[str, np.ndarray]]
    ) -> tuple[np.ndarray, int, np.ndarray]:
        """-> (digits int [n, L] that the judge sees in images, K, the first images), of all processes' rows."""
        digits, images, classes = [], [], 0
        for batch in batches:
            output, given = predict(self._judge, batch)
            logits, keep = output["logits"], given["mask"] > 0
            if logits.ndim != 3:
                raise ValueError(
                    f'The judge "{self._judge}" gives one label an image, and a stack has several digits: take one that '
                    "configs/classifier_digits.py trains."
                )
            classes = logits.shape[-1]
            digits.append(logits.argmax(axis=-1)[keep])
            if sum(map(len, images)) < SIDE**2:
                images.append(given["image"][keep])
        return np.concatenate(digits), classes, np.concatenate(images)[: SIDE**2]

    def table(self, scores: dict[str, float]) -> dict[str, Row]:
        """The scores, high_quality x 100 with Wilson's interval; kl's floor and the others' ceiling are of real examples."""
        rows = {}
        for name, value in scores.items():
            real = self._real[name]
            if name == "high_quality":
                low, high = wilson(value, self._drawn)
                rows[name] = Row(100 * value, (100 * low, 100 * high), ceiling=100 * real)
            else:
                rows[name] = Row(value, floor=real) if name == "kl" else Row(value, ceiling=real)
        return rows

    def signature(self, **how: Any) -> str:
        kind = str(self.spec.get("layout", self.spec["name"]))
        return sign("modes", kind, **self._how, n=self._drawn, seed=self.pipeline.seed, **how)


make = Modes
