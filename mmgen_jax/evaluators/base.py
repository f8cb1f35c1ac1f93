"""What every evaluator does: run a named prediction over a whole data set, on any number of processes."""

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from mmgen_jax.data import sources
from mmgen_jax.data.loader import loader
from mmgen_jax.data.pipeline import Pipeline
from mmgen_jax.scores import classification
from mmgen_jax.scores.signature import sign

ENDLESS = 10**7  # examples of a source that nobody wants to see all of
LARGE = ("image", "video", "answer")  # inputs that nobody wants to keep of all examples


class Predict(Protocol):
    """What an evaluator is given to ask a run, and its judges: see `Predictor` in judges.py."""

    def __call__(self, name: str, batch: Mapping[str, np.ndarray]) -> tuple[dict, dict]:
        """(name, this process's batch) -> (predictions, whole batch), the rows of all processes, on the host."""

    def fingerprint(self, name: str = "") -> str:
        """What changes with the weights: of the judge that `name` begins with, else of the run itself."""

    def resize(self, name: str) -> str:
        """How the prediction `name` brings images to its own size; "none" where it wants them as they are."""

    def tokenise(self, name: str, texts: Sequence[str]) -> np.ndarray:
        """Texts as the prediction `name` reads them. n strings -> int32 [n, 1, T]."""


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
        self.transforms = pipeline.parse(transforms)

    @functools.cached_property
    def source(self) -> sources.Source:
        """The data set; opened when it is first asked for, since what else a run can do needs none."""
        return sources.make(self.spec)

    @property
    def split(self) -> str:
        """What is scored, in words: the source's split, or its name where there is none, and the part of it."""
        split = self.spec.get("split") or self.spec["name"]
        return f"{split}, {self.spec['part']}" if self.spec.get("part") else split

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

    def image(self, index: int, source: sources.Source | None = None) -> np.ndarray:
        """The image of an example, of the evaluator's source or another, as the model gets it, uint8 [H, W, 3]; or its clip,
        [F, H, W, 3]."""
        example = (self.source if source is None else source)[index]
        for transform in self.transforms:
            example = transform(example, np.random.default_rng(0))
        return example["video" if "video" in example else "image"]

    def outputs(self, predict: Predict, name: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """(predictions, inputs without what is large) of every example that is not broken, in the source's order."""
        outputs: list[dict] = []
        inputs: list[dict] = []
        for batch in loader(
            self.source,
            self.transforms,
            self.batch_size,
            process=self.pipeline.process,
            quarantine=self.pipeline.quarantine(self.source, self.split),
        ):
            output, given = predict(name, batch)
            keep = given["mask"] > 0
            outputs.append({key: value[keep] for key, value in output.items()})
            inputs.append({key: value[keep] for key, value in given.items() if key not in LARGE})
        return _concatenate(outputs), _concatenate(inputs)


class Labelled(Evaluator):
    """A data set whose images have classes: its source has `classes`, their names, and its examples have "label"."""

    @functools.cached_property
    def source(self) -> sources.Source:
        source = sources.make(self.spec)
        if not hasattr(source, "classes"):
            raise ValueError(
                f'The source "{self.spec["name"]}" has no classes, which {type(self).__name__} needs. Sources with labels are '
                "idx, parquet with its argument label, and scenes with max_objects=1."
            )
        return source

    def outputs(self, predict: Predict, name: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        outputs, inputs = super().outputs(predict, name)
        if "label" not in inputs:
            raise ValueError(
                f'The examples of "{self.spec["name"]}" come without "label": leave caption(...) out of the transforms.'
            )
        return outputs, inputs


class Classification(Labelled):
    """Scores of whoever gives each image scores over the source's classes; a subclass has `kind`, `judge` and `how`.

    Scores: those of scores/classification.py.
    """

    kind: str

    def judge(self, predict: Predict) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """-> ("index" and "label" [N] of every example that is not broken, scores float [N, K])."""
        raise NotImplementedError

    def how(self) -> dict[str, Any]:
        """What the signature says beside the numbers of examples and classes."""
        raise NotImplementedError

    def run(self, predict: Predict, figure: Path) -> dict[str, float]:
        """Classify and score; there is no picture. The answers stay until the next run."""
        del figure
        inputs, self._scores = self.judge(predict)
        self._index, self._label = inputs["index"], inputs["label"]
        return classification.score(self._label, self._scores)

    def table(self, scores: dict[str, float]) -> dict[str, Row]:
        """The scores x 100; shares with Wilson's interval; as floor always the most frequent class, where that has the score."""
        floor = classification.floor(self._label, len(self.source.classes))
        rows = {}
        for name, value in scores.items():
            interval = None
            if name.startswith("top"):
                low, high = classification.wilson(value, len(self._label))
                interval = 100 * low, 100 * high
            rows[name] = Row(100 * value, interval, 100 * floor[name] if name in floor else None)
        return rows

    def signature(self, **how: Any) -> str:
        counts = {"classes": len(self.source.classes), "n": len(self._label)}
        return sign(self.kind, **self.how(), **counts, split=self.split, **how)

    def write(self, path: Path) -> None:
        """The answers as JSON lines (index, label, predicted), and beside them scikit-learn's report as text."""
        path.parent.mkdir(parents=True, exist_ok=True)
        names, predicted = self.source.classes, self._scores.argmax(axis=1)
        with path.open("w", encoding="utf-8") as file:
            for index, label, answer in zip(self._index, self._label, predicted, strict=True):
                record = {"index": int(index), "label": names[label], "predicted": names[answer]}
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        report = classification.report(self._label, predicted, names)
        path.with_suffix(".txt").write_text(report, encoding="utf-8")


class Chosen:
    """`count` examples of a source: evenly spaced, or where it has fewer, all of them again and again."""

    def __init__(self, source: Any, count: int):
        self._source, self._count = source, count
        if hasattr(source, "classes"):
            self.classes = source.classes

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._source[self.place(index)]

    def place(self, index: int) -> int:
        """Which example of the source stands there."""
        there, length = range(self._count)[index], len(self._source)
        return there * length // self._count if self._count < length else there % length

    def captions(self, index: int) -> list[str]:
        return self._source.captions(self.place(index))

    def name(self, index: int) -> str:
        """What messages call the example."""
        place = self.place(index)
        return self._source.name(place) if hasattr(self._source, "name") else f"example {place}"


class Generator(Evaluator):
    """Samples of a generator: one for each of n examples of a data set, whose captions say what is wanted.

    Where a model draws without a caption the examples only count. A sample's noise depends on its place among the n alone, so
    that all evaluations of a run, on any number of processes, compare the same draws.

    Args:
      source, transforms, batch_size, pipeline: see `Evaluator`; the transforms make "tokens" of the captions, with text(...).
      n: how many samples, default one an example. More than the data set has go through it again, with other noise; fewer are
        spread evenly over it.
      predict: which prediction makes the images.
    """

    def __init__(
        self,
        *,
        source: Mapping[str, Any],
        transforms: str,
        batch_size: int,
        n: int | None = None,
        predict: str = "generate",
        pipeline: Pipeline,
    ):
        super().__init__(source=source, transforms=transforms, batch_size=batch_size, pipeline=pipeline)
        if n is not None and n < 1:
            raise ValueError(f"n is {n}: an evaluation of samples needs at least one.")
        self._n, self._predict = n, predict

    @property
    def n(self) -> int:
        """How many samples are drawn; those for examples that cannot be read do not count."""
        length = len(self.source)
        if self._n is None and length > ENDLESS:
            raise ValueError(
                f'The source "{self.spec["name"]}" has {length:,} examples: say with n how many to draw.'
            )
        return self._n or length

    def samples(self, predict: Predict) -> Iterator[dict[str, np.ndarray]]:
        """Batches of the examples with a sample (uint8, or float32 of points) as "image", whole on every process."""
        for batch in self.batches(Chosen(self.source, self.n), "samples"):
            output, given = predict(self._predict, {key: x for key, x in batch.items() if key != "image"})
            yield {**given, "image": output["image"]}

    def own(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """This process's rows of a whole batch, with which a judge is asked."""
        process, count = self.pipeline.process
        rows = len(batch["mask"]) // count
        return {key: x[process * rows : (process + 1) * rows] for key, x in batch.items()}

    def real(
        self, source: sources.Source | None = None, count: int | None = None
    ) -> Iterator[dict[str, np.ndarray]]:
        """This process's rows of real examples: at most `count` (n) of a source (the evaluator's own), each once."""
        source = self.source if source is None else source
        return self.batches(Chosen(source, min(count or self.n, len(source))), "real")

    def said(self, tokens: np.ndarray) -> list[str]:
        """The captions that were asked for. tokens: int32 [N, C, T], of which the first of each row counts."""
        return [self.pipeline.tokenizer.decode(row) for row in tokens[:, 0]]

    def batches(self, source: sources.Source, what: str) -> Iterator[dict[str, np.ndarray]]:
        return loader(
            source,
            self.transforms,
            self.batch_size,
            process=self.pipeline.process,
            quarantine=self.pipeline.quarantine(source, f"{self.split} ({what})"),
        )


def _concatenate(batches: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
