"""Find each image's texts and each text's image in a data set: recall, ranks, and a picture of what was found."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmgen_jax import figures, ranking
from mmgen_jax.data.pipeline import Pipeline
from mmgen_jax.evaluators.base import Evaluator, Predict, Row
from mmgen_jax.scores import retrieval as scores_lib

BEST = 5  # so many answers are shown and written


class Gallery(NamedTuple):
    """Images and texts that are searched together.

    Attributes:
      index: int [I], of each image in the source.
      image, text: float32 [I, F], [T, F], their embeddings.
      tokens: int32 [T, L].
      ranks: see scores/retrieval.py; its `owner` [T] is the position of each text's image.
    """

    index: np.ndarray
    image: np.ndarray
    text: np.ndarray
    tokens: np.ndarray
    ranks: scores_lib.Ranks


class Retrieval(Evaluator):
    """Retrieval in both directions, over all captions of an image that the transforms take.

    Scores: those of scores/retrieval.py; alignment, uniformity_image and uniformity_text of the embeddings.

    Args:
      source, transforms, batch_size, pipeline: see `Evaluator`; the transforms have text(..., which="first").
      folds: cut the images, in their order, into so many galleries and average (COCO's 1k protocol: 5).
      predict: which prediction embeds images and texts.
      pictures: so many texts, and half as many images, are shown with what they found in the first gallery.
    """

    def __init__(
        self,
        *,
        source: Mapping[str, Any],
        transforms: str,
        batch_size: int,
        folds: int = 1,
        predict: str = "embed",
        pictures: int = 8,
        pipeline: Pipeline,
    ):
        super().__init__(source=source, transforms=transforms, batch_size=batch_size, pipeline=pipeline)
        self._folds, self._predict, self._pictures = folds, predict, pictures
        self.galleries: list[Gallery] = []

    def run(self, predict: Predict, figure: Path) -> dict[str, float]:
        """Embed, search, score, and draw into `figure`. The embeddings stay in `galleries` until the next run."""
        outputs, inputs = self.outputs(predict, self._predict)
        # Captions repeated to fill up an image are no texts.
        owner, number = np.nonzero(inputs["text_mask"] > 0)
        image, text, tokens = (
            outputs["image"],
            outputs["text"][owner, number],
            inputs["tokens"][owner, number],
        )
        if not 1 <= self._folds <= len(image):
            raise ValueError(f"folds is {self._folds}: {len(image)} images make 1 to {len(image)} galleries.")
        self.galleries = []
        for fold in np.array_split(np.arange(len(image)), self._folds):
            inside = np.isin(owner, fold)
            self.galleries.append(
                _gallery(
                    inputs["index"][fold], image[fold], text[inside], tokens[inside], owner[inside] - fold[0]
                )
            )
        if self._pictures and self.pipeline.process[0] == 0:
            self._draw(self.galleries[0], figure)
        return {
            **scores_lib.score(self._ranks),
            "alignment": scores_lib.alignment(image, text, owner),
            "uniformity_image": scores_lib.uniformity(image),
            "uniformity_text": scores_lib.uniformity(text),
        }

    @property
    def _ranks(self) -> list[scores_lib.Ranks]:
        return [gallery.ranks for gallery in self.galleries]

    def _draw(self, gallery: Gallery, path: Path) -> None:
        """The images that some texts found; then the texts that some images found, each under the image that it belongs to."""
        owner, texts = gallery.ranks.owner, _spread(len(gallery.text), self._pictures)
        images = _spread(len(gallery.image), -(-self._pictures // 2))

        def said(text: int) -> str:
            return self.pipeline.tokenizer.decode(gallery.tokens[text])

        rows, titles, captions, marks = [], [], [], []
        scores, found = _best(gallery.text[texts], gallery.image)
        for text, values, answers in zip(texts, scores, found, strict=True):
            titles.append(f"{said(text)} (rank {gallery.ranks.text[text]})")
            rows.append(answers.tolist())
            captions.append([f"{value:.3f}" for value in values])
            marks.append((answers == owner[text]).tolist())
        scores, found = _best(gallery.image[images], gallery.text)
        for image, values, answers in zip(images, scores, found, strict=True):
            titles.append(f"the texts of the first image (rank {gallery.ranks.image[image]})")
            rows.append([image, *owner[answers]])
            captions.append(["", *(f"{v:.3f} {said(text)}" for v, text in zip(values, answers, strict=True))])
            marks.append([False, *(owner[answers] == image).tolist()])
        pixels = {i: self.image(int(gallery.index[i])) for i in {i for row in rows for i in row}}
        figures.contact_sheet(path, [[pixels[i] for i in row] for row in rows], titles, captions, marks)

    def table(self, scores: dict[str, float]) -> dict[str, Row]:
        """Shares x 100, with bootstrap intervals, the chance level as floor, and the ceiling where the source knows one."""
        intervals, chance = scores_lib.bootstrap(self._ranks), scores_lib.chance(self._ranks)
        ceiling = {}
        if hasattr(self.source, "retrieval_ceiling") and self._folds == 1:
            captions = int(np.bincount(self._ranks[0].owner).max())
            ceiling = self.source.retrieval_ceiling(len(self.source), captions)
        rows = {}
        for name, value in scores.items():
            if name not in intervals:
                rows[name] = Row(value)
                continue
            unit = 1 if name.endswith("median") else 100
            low, high = intervals[name]
            above = unit * ceiling[name] if name in ceiling else None
            rows[name] = Row(unit * value, (unit * low, unit * high), unit * chance[name], above)
        return rows

    def signature(self, **how: Any) -> str:
        texts = sum(len(gallery.text) for gallery in self.galleries)
        images = sum(len(gallery.image) for gallery in self.galleries)
        return scores_lib.signature(images=images, texts=texts, folds=self._folds, split=self.split, **how)

    def write(self, path: Path) -> None:
        """JSON lines, one an image: its index and rank, the texts that it found, and its own texts with what they found."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            for gallery in self.galleries:
                for record in self._records(gallery):
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def _records(self, gallery: Gallery) -> Iterator[dict]:
        owner, index = gallery.ranks.owner, gallery.index.tolist()
        said = [self.pipeline.tokenizer.decode(tokens) for tokens in gallery.tokens]
        to_text, to_image = _best(gallery.image, gallery.text), _best(gallery.text, gallery.image)
        for i in range(len(gallery.image)):
            yield {
                "index": index[i],
                "rank": int(gallery.ranks.image[i]),
                "found": [
                    {"text": said[t], "score": round(float(score), 4), "right": bool(owner[t] == i)}
                    for score, t in zip(to_text[0][i], to_text[1][i], strict=True)
                ],
                "texts": [
                    {
                        "text": said[t],
                        "rank": int(gallery.ranks.text[t]),
                        "found": [
                            {"index": index[j], "score": round(float(score), 4)}
                            for score, j in zip(to_image[0][t], to_image[1][t], strict=True)
                        ],
                    }
                    for t in np.flatnonzero(owner == i)
                ],
            }


def _gallery(index, image, text, tokens, owner) -> Gallery:
    own = np.arange(len(image))
    found = ranking.ranks(image, text, own, owner), ranking.ranks(text, image, owner, own)
    return Gallery(index, image, text, tokens, scores_lib.Ranks(*found, owner))


def _best(queries: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return ranking.top_k(queries, keys, min(BEST, len(keys)))


def _spread(length: int, count: int) -> list[int]:
    """`count` numbers below `length`, evenly spaced: neighbours are often captions of one image."""
    return np.linspace(0, length - 1, min(count, length)).round().astype(int).tolist()


make = Retrieval
