"""How much a linear classifier gets out of frozen image features (Radford et al., 2021, section 3.2)."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmgen_jax.data.pipeline import Pipeline
from mmgen_jax.evaluators.base import Chosen, Classification, Labelled, Predict

NEVER = -1e30  # the score of a class that training does not have


class LinearProbe(Classification):
    """Multinomial logistic regression with an L2 penalty on standardised features, by scikit-learn's L-BFGS.

    Args:
      train_source: the labelled data to fit on; its classes are those of `source`.
      source, transforms, batch_size, pipeline: see `Classification`; both data sets are read with these transforms.
      predict: which prediction gives the features.
      c: inverse strength of the penalty; of several the best on a held-out tenth of the training data, then fitted on all of it.
      examples: fit on so many training examples at most, evenly spaced.
      max_iter: of L-BFGS.
    """

    kind = "linear_probe"

    def __init__(
        self,
        *,
        train_source: Mapping[str, Any],
        source: Mapping[str, Any],
        transforms: str,
        batch_size: int,
        predict: str = "features",
        c: float | Sequence[float] = (0.001, 0.01, 0.1, 1.0, 10.0),
        examples: int | None = None,
        max_iter: int = 1000,
        pipeline: Pipeline,
    ):
        common = dict(transforms=transforms, batch_size=batch_size, pipeline=pipeline)
        super().__init__(source=source, **common)
        self._train = _Train(source=train_source, examples=examples, **common)
        self._predict, self._max_iter = predict, max_iter
        self._grid = (c,) if isinstance(c, (int, float)) else tuple(c)
        if not self._grid or min(self._grid) <= 0:
            raise ValueError(
                f"c is {c}: the inverse strength of the penalty is one positive number, or several."
            )
        self._fitted: dict[str, Any] = {}

    def judge(self, predict: Predict) -> tuple[dict[str, np.ndarray], np.ndarray]:
        if self._train.source.classes != self.source.classes:
            raise ValueError(
                "train_source and source have other classes, or in another order: they must be the same."
            )
        outputs, inputs = self._train.outputs(predict, self._predict)
        features, label = outputs["features"].astype(np.float64), inputs["label"]
        c = self._grid[0] if len(self._grid) == 1 else self._choose(features, label)
        self._fitted = {"c": c, "train": len(label)}
        outputs, inputs = self.outputs(predict, self._predict)
        return inputs, self._fit(features, label, outputs["features"].astype(np.float64), c)

    def _choose(self, features: np.ndarray, label: np.ndarray) -> float:
        """The c that is right most often on a tenth that the others are fitted without; of equals the smallest."""
        order = np.random.default_rng(0).permutation(len(label))
        held, kept = np.split(order, [max(len(order) // 10, 1)])
        right = {}
        for c in sorted(self._grid):
            scores = self._fit(features[kept], label[kept], features[held], c)
            right[c] = np.mean(scores.argmax(axis=1) == label[held])
        return max(right, key=right.get)

    def _fit(self, features: np.ndarray, label: np.ndarray, asked: np.ndarray, c: float) -> np.ndarray:
        """Logistic regression on features [n, D] and label [n]; -> the logits of `asked` [N, D], float64 [N, K]."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        if len(np.unique(label)) < 2:
            raise ValueError(
                "The linear probe's training data has examples of one class only: raise `examples`, or look at train_source."
            )
        model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=self._max_iter))
        logits = model.fit(features, label).decision_function(asked)
        if logits.ndim == 1:  # of two classes scikit-learn gives the difference
            logits = np.stack([np.zeros_like(logits), logits], axis=1)
        scores = np.full((len(asked), len(self.source.classes)), NEVER)
        scores[:, model.classes_] = logits
        return scores

    def how(self) -> dict[str, Any]:
        return {"features": self._predict, **self._fitted}


class _Train(Labelled):
    """A labelled data set, or so many of its examples, evenly spaced."""

    def __init__(self, *, examples: int | None, **common: Any):
        super().__init__(**common)
        self._examples = examples

    @functools.cached_property
    def source(self) -> Any:
        source = super().source
        if self._examples is None or self._examples >= len(source):
            return source
        return Chosen(source, self._examples)


make = LinearProbe
