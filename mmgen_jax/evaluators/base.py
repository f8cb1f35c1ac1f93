"""What every evaluator does: run a named prediction over a whole data set, on any number of processes."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmgen_jax.data import sources
from mmgen_jax.data.loader import loader
from mmgen_jax.data.pipeline import Pipeline

# (name, this process's batch) -> (predictions, whole batch), the rows of all processes, on the host.
Predict = Callable[[str, Mapping[str, np.ndarray]], tuple[dict, dict]]


class Row(NamedTuple):
    """One score in the final table, in the unit in which it is printed.

    Attributes:
      value: the score; interval: its 95 % bootstrap interval; floor and ceiling: see scores/captions.py. None where there
      is none.
    """

    value: float | None
    interval: tuple[float, float] | None = None
    floor: float | None = None
    ceiling: float | None = None


class Evaluator:
    """A data set, and how to read it.

    Args:
      source, transforms: as in the config's data section.
      batch_size: over all processes; the last batch is padded, and the padding masked.
      pipeline: the run's, for its tokenizer.
    """

    def __init__(self, *, source: Mapping[str, Any], transforms: str, batch_size: int, pipeline: Pipeline):
        self.spec, self.batch_size, self.pipeline = dict(source), batch_size, pipeline
        self.source = sources.make(source)
        self.transforms = pipeline.parse(transforms)

    def run(self, predict: Predict, figure: Path) -> dict[str, float]:
        """Score the data set; a picture, if there is one to make, goes to `figure` (on every process: let the first draw)."""
        raise NotImplementedError

    def table(self, scores: dict[str, float]) -> dict[str, Row]:
        """The last run's scores as rows of the final table."""
        return {name: Row(value) for name, value in scores.items()}

    def signature(self, **how: Any) -> str:
        """A line that says how the last run's numbers were made; `how` is what the task knows of it."""
        del how
        return ""

    def write(self, path: Path) -> None:
        """Write the last run's predictions to `path`, where they are worth keeping."""

    def image(self, index: int) -> np.ndarray:
        """An example's image as the model gets it, uint8 [H, W, 3]."""
        example = self.source[index]
        for transform in self.transforms:
            example = transform(example, np.random.default_rng(0))
        return example["image"]

    def outputs(self, predict: Predict, name: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """(predictions, inputs without images) of every example that is not broken, in the source's order."""
        outputs: list[dict] = []
        inputs: list[dict] = []
        for batch in loader(
            self.source,
            self.transforms,
            self.batch_size,
            process=self.pipeline.process,
            quarantine=self.pipeline.quarantine(self.source, self.spec.get("split") or self.spec["name"]),
        ):
            output, given = predict(name, batch)
            keep = given["mask"] > 0
            outputs.append({key: value[keep] for key, value in output.items()})
            inputs.append({key: value[keep] for key, value in given.items() if key != "image"})
        return _concatenate(outputs), _concatenate(inputs)


def _concatenate(batches: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
