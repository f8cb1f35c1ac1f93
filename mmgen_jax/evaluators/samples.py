"""Samples of a generator as a picture: the same captions and noise at every evaluation, and an animation of them at the end."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmgen_jax import figures
from mmgen_jax.data.pipeline import Pipeline
from mmgen_jax.evaluators.base import Chosen, Generator, Predict

FRAMES = 60  # of the animation, at most


class Samples(Generator):
    """A grid of samples, which shows what no score does: whether they look right, and whether they differ.

    Scores: spread, the mean difference between two samples of one caption, as a share of white; near 0 the noise does nothing.

    Args:
      source, transforms, batch_size, predict, pipeline: see `Generator`.
      captions: one a row; default the first caption of each of `rows` examples. A model that draws without them has none.
      rows: how many, where the captions are not given.
      columns: samples of each.
      words: of so many rows' first samples a second picture shows which words their parts looked at; for models with attention.
    """

    def __init__(
        self,
        *,
        source: Mapping[str, Any],
        transforms: str,
        batch_size: int,
        captions: Sequence[str] = (),
        rows: int = 8,
        columns: int = 8,
        words: int = 0,
        predict: str = "generate",
        pipeline: Pipeline,
    ):
        self._captions, self._rows = list(captions), len(captions) or rows
        self._columns, self._words = columns, words
        if min(self._rows, columns) < 1 or not 0 <= words <= self._rows:
            raise ValueError(
                f"samples: {self._rows} rows of {columns}, and the words of {words} of them: at least one row and column, and "
                "words of no more rows than there are."
            )
        super().__init__(
            source=source,
            transforms=transforms,
            batch_size=batch_size,
            n=self._rows * columns,
            predict=predict,
            pipeline=pipeline,
        )
        self._figure: Path | None = None

    def run(self, predict: Predict, figure: Path) -> dict[str, float]:
        """Draw the grid into `figure`, and the words beside it."""
        grid = _Grid(self.source, self._captions, self._rows, self._columns)
        samples: dict[int, np.ndarray] = {}
        tokens: dict[int, np.ndarray] = {}
        weights: dict[int, np.ndarray] = {}
        for batch in self.batches(grid, "samples"):
            wanted = {key: x for key, x in batch.items() if key != "image"}
            output, given = predict(self._predict, wanted)
            if output["image"].dtype != np.uint8:
                raise ValueError("samples draws pictures; for points there is the evaluation modes.")
            index = given["index"]
            samples |= {int(i): image for i, image in zip(index, output["image"], strict=True)}
            tokens |= {int(i): row for i, row in zip(index, given.get("tokens", index), strict=True)}
            if self._words:
                maps, _ = predict("attend", wanted)
                last = maps[max(maps)]  # the finest
                weights |= {int(i): x for i, x in zip(index, last, strict=True)}
        rows = [[samples[i * self._columns + k] for k in range(self._columns)] for i in range(self._rows)]
        first = [i * self._columns for i in range(self._rows)]
        captions = self.said(np.stack([tokens[i] for i in first])) if np.ndim(tokens[0]) else None
        self._figure = figure
        if self.pipeline.process[0] == 0:
            figures.sample_grid(figure, rows, captions)
            if self._words:
                shown = first[: self._words]
                self._draw_words(
                    figure,
                    [samples[i] for i in shown],
                    [tokens[i][0] for i in shown],
                    [weights[i] for i in shown],
                )
        return {"spread": _spread(np.array(rows))}

    def _draw_words(
        self, figure: Path, images: list[np.ndarray], tokens: list[np.ndarray], weights: list[np.ndarray]
    ) -> None:
        """images: uint8 [H, W, 3]; tokens: [T]; weights: float [h, w, T]."""
        tokenizer = self.pipeline.tokenizer
        said, maps = [], []
        for row, x in zip(tokens, weights, strict=True):
            places = range(1, int(np.argmax(row == tokenizer.eos)))
            said.append(["".join(tokenizer.pieces(row[k : k + 1])) or "?" for k in places])
            maps.append(x.reshape(-1, x.shape[-1]).T[1 : len(places) + 1])
        figures.attention(figure.with_name(f"{figure.stem}_words.png"), images, said, maps)

    def write(self, path: Path) -> None:
        """The animation of training: the pictures of this evaluation and of all before it, as figures/<its name>.gif."""
        del path
        name, _, last = self._figure.stem.rpartition("_")
        found = {}
        for file in self._figure.parent.glob(f"{name}_*.png"):
            match = re.fullmatch(rf"{re.escape(name)}_(\d+)", file.stem)
            if match and int(match[1]) <= int(last):
                found[int(match[1])] = file
        steps = sorted(found)
        steps = [steps[k] for k in np.unique(np.linspace(0, len(steps) - 1, FRAMES).round().astype(int))]
        figures.animation(
            self._figure.with_name(f"{name}.gif"),
            [found[step] for step in steps],
            [f"step {step:,}" for step in steps],
        )


class _Grid(Chosen):
    """A row of examples that differ in nothing but their place, for each caption."""

    def __init__(self, source: Any, captions: Sequence[str], rows: int, columns: int):
        super().__init__(source, rows * columns)
        self._rows, self._columns, self._captions = Chosen(source, rows), columns, captions

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = index // self._columns
        example = self._rows[row]
        if not example.get("captions"):
            return example
        # One: a pipeline that draws among them would give each column another.
        return {**example, "captions": [self._captions[row] if self._captions else example["captions"][0]]}


def _spread(grid: np.ndarray) -> float:
    """Mean absolute difference of two samples in a row, 0 to 1. uint8 [R, C, H, W, 3]."""
    differences = [
        np.abs(row.astype(np.float32) - np.roll(row, k, axis=0)).mean() / 255
        for row in grid
        for k in range(1, grid.shape[1] // 2 + 1)
    ]
    return float(np.mean(differences)) if differences else 0.0


make = Samples
