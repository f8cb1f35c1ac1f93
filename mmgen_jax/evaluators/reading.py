"""A judge reads samples: do they show what their captions say? By class, or by what is to be seen in drawn scenes."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmgen_jax import figures
from mmgen_jax.data import scenes
from mmgen_jax.data.pipeline import Pipeline
from mmgen_jax.evaluators.base import Generator, Predict, Row
from mmgen_jax.scores import classification
from mmgen_jax.scores.signature import sign

COLUMNS = 8  # of the picture


class Reading(Generator):
    """What a classifier of real images sees in the samples, against what was asked for.

    Scores of a judge with one label an image: agree, the share of samples that show the caption's class. Of a judge of the
    cells of scenes: true, the share of samples of which the caption is true; objects, of which it would be if it said nothing
    of places and relations; and both for captions of one, two and three objects ("true_1").

    Args:
      source, transforms, batch_size, n, predict, pipeline: see `Generator`. Its real images say how well the judge reads.
      judge: the prediction that gives "logits" [B, K], or [B, 27, K] of the cells (`to_cells` in data/scenes.py).
      pictures: so many samples are drawn with what the judge sees, half of them wrong ones where there are such.
    """

    def __init__(
        self,
        *,
        source: Mapping[str, Any],
        transforms: str,
        batch_size: int,
        judge: str = "reader.classify",
        n: int | None = None,
        pictures: int = 16,
        predict: str = "generate",
        pipeline: Pipeline,
    ):
        common = dict(transforms=transforms, batch_size=batch_size, predict=predict, pipeline=pipeline)
        super().__init__(source=source, n=n, **common)
        self._judge, self._pictures = judge, pictures
        self.ceiling: list[dict[str, Any]] = []

    def run(self, predict: Predict, figure: Path) -> dict[str, float]:
        """Draw, read and score, with a picture in `figure`. What was read stays in `records` until the next run."""
        self._weights = predict.fingerprint(self._judge)
        if not self.ceiling:  # real images look the same at every evaluation of a run
            self.ceiling = [record for batch in self.real() for record, _ in self._read(predict, batch)]
        self.records: list[dict[str, Any]] = []
        shown: list[tuple[dict, np.ndarray]] = []
        for batch in self.samples(predict):
            for record, image in self._read(predict, self.own(batch)):
                self.records.append(record)
                if sum(_right(record) == _right(other) for other, _ in shown) < -(-self._pictures // 2):
                    shown.append((record, image))
        if self._pictures and self.pipeline.process[0] == 0:
            _draw(figure, shown)
        return _shares(self.records)

    def _read(self, predict: Predict, batch: Mapping[str, np.ndarray]) -> Iterator[tuple[dict, np.ndarray]]:
        """What was asked for and what the judge sees, and the image, of all processes' rows that are not padding."""
        output, given = predict(self._judge, batch)
        seen = output["logits"].argmax(axis=-1)
        for i in np.flatnonzero(given["mask"] > 0):
            caption = self.said(given["tokens"][i : i + 1])[0] if "tokens" in given else ""
            about = {"index": int(given["index"][i]), "caption": caption}
            if seen.ndim == 1:
                read = self._class(given["label"][i] if "label" in given else None, seen[i])
            else:
                read = self._scene(caption, scenes.from_cells(seen[i]))
            yield {**about, **read}, given["image"][i]

    def _class(self, label: np.ndarray | None, seen: np.ndarray) -> dict[str, Any]:
        names = getattr(self.source, "classes", None)
        if names is None or label is None or label.ndim:
            raise ValueError(
                f'The judge "{self._judge}" says one class an image, and the examples of "{self.spec["name"]}" have none. Take a '
                "source with classes, and text(...) in the transforms, which keeps them; or for scenes a judge of their cells."
            )
        if max(label, seen) >= len(names):
            raise ValueError(
                f'The judge "{self._judge}" says class {seen}, of {len(names)} in the source: it was trained on others.'
            )
        return {"asked": names[label], "seen": names[seen], "agree": bool(label == seen)}

    def _scene(self, caption: str, scene: scenes.Scene) -> dict[str, Any]:
        claim = scenes.parse(caption)
        if claim is None:
            raise ValueError(
                f'The judge "{self._judge}" reads the cells of scenes, and "{caption}" is no caption of the grammar: take '
                "scenes as the source, and a tokenizer that knows all their words."
            )
        things = [" ".join(filter(None, ("a", *words))) for words in claim.objects]
        seen = (
            f"{o.size} {o.colour} {o.shape} {scenes.PLACES[scenes.GRID * o.row + o.column]}"
            for o in scene.objects
        )
        return {
            "mentioned": claim.objects,
            "seen": ", ".join(seen) or "nothing",
            "true": scenes.is_true(caption, scene),
            "objects": scenes.is_true(" and ".join(things), scene),
        }

    def table(self, scores: dict[str, float]) -> dict[str, Row]:
        """The scores x 100 with Wilson's intervals; the ceiling is what the judge says of the captions' real images."""
        counts, ceiling = _counts(self.records), _shares(self.ceiling)
        rows = {}
        for name, value in scores.items():
            low, high = classification.wilson(value, counts[name])
            above = 100 * ceiling[name] if name in ceiling else None
            rows[name] = Row(100 * value, (100 * low, 100 * high), ceiling=above)
        return rows

    def signature(self, **how: Any) -> str:
        numbers = {"n": len(self.records), "seed": self.pipeline.seed}
        return sign("reading", judge=self._judge, weights=self._weights, **numbers, split=self.split, **how)

    def write(self, path: Path) -> None:
        """What was asked for and seen as JSON lines; beside them as text a table of the classes, or of what captions mention."""
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in self.records)
        path.write_text("".join(lines), encoding="utf-8")
        if "agree" in self.records[0]:
            names = self.source.classes
            asked, seen = (
                np.array([names.index(record[key]) for record in self.records]) for key in ("asked", "seen")
            )
            table = classification.report(asked, seen, names)
        else:
            table = _mentions(self.records, self.ceiling)
        path.with_suffix(".txt").write_text(table, encoding="utf-8")


def _right(record: Mapping[str, Any]) -> bool:
    return record["agree"] if "agree" in record else record["true"]


def _groups(records: Sequence[Mapping[str, Any]]) -> dict[str, list[bool]]:
    """{score: what it is the share of}."""
    if records and "agree" in records[0]:
        return {"agree": [record["agree"] for record in records]}
    groups: dict[str, list[bool]] = {}
    for score in ("true", "objects"):
        groups[score] = [record[score] for record in records]
        for count in sorted({len(record["mentioned"]) for record in records}):
            own = [record[score] for record in records if len(record["mentioned"]) == count]
            groups[f"{score}_{count}"] = own
    return groups


def _shares(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    return {name: float(np.mean(values)) for name, values in _groups(records).items() if values}


def _counts(records: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    return {name: len(values) for name, values in _groups(records).items()}


def _mentions(records: Sequence[Mapping[str, Any]], ceiling: Sequence[Mapping[str, Any]]) -> str:
    """A table of the words that captions say of objects: how many captions do, and the share of true ones."""

    def shares(records: Sequence[Mapping[str, Any]], word: str) -> tuple[int, float, float]:
        own = [record for record in records if any(word in words for words in record["mentioned"])]
        true, objects = ([record[key] for record in own] for key in ("true", "objects"))
        return (
            (len(own), float(np.mean(true)), float(np.mean(objects)))
            if own
            else (0, float("nan"), float("nan"))
        )

    head = f"{'captions with':<14}{'samples':>8}{'true':>8}{'objects':>9}{'of real images, true':>22}\n"
    lines = [head]
    for words in (scenes.RADIUS, scenes.COLOURS, scenes.SHAPES):
        lines.append("\n")
        for word in words:
            count, true, objects = shares(records, word)
            lines.append(
                f"{word:<14}{count:>8}{true:>8.3f}{objects:>9.3f}{shares(ceiling, word)[1]:>22.3f}\n"
            )
    return "".join(lines)


def _draw(path: Path, shown: Sequence[tuple[Mapping[str, Any], np.ndarray]]) -> None:
    """Samples that the judge read as their captions say, and others."""
    rows, titles, texts, marks = [], [], [], []
    for right, title in (
        (True, "as the caption says"),
        (False, "not as the caption says"),
    ):
        chosen = [(record, image) for record, image in shown if _right(record) == right]
        for first in range(0, len(chosen), COLUMNS):
            part = chosen[first : first + COLUMNS]
            rows.append([image for _, image in part])
            titles.append(title if first == 0 else "")
            texts.append(
                [
                    record["caption"] if right else f"{record['caption']}. Seen: {record['seen']}"
                    for record, _ in part
                ]
            )
            marks.append([right] * len(part))
    figures.contact_sheet(path, rows, titles, texts, marks, lines=10)


make = Reading
