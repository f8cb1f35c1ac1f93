"""How good samples are as a whole: their features against those of real images, and whether they copy training images."""

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmgen_jax import figures
from mmgen_jax.core import registry
from mmgen_jax.data import sources
from mmgen_jax.data.loader import stack
from mmgen_jax.data.pipeline import Pipeline
from mmgen_jax.evaluators.base import Chosen, Generator, Predict, Row
from mmgen_jax.scores import images as scores_lib
from mmgen_jax.scores.classification import wilson

NEIGHBOURS = 4  # training images shown beside a sample

# What judges say of n images, and what they should show, row by row; see `Images._measure`.
Measured = dict[str, np.ndarray]


class Score(NamedTuple):
    """A score of samples against real images.

    Attributes:
      needs: which parts of a `Measured` it reads.
      of: (samples, real images, options) -> {name: value}.
      alone: it is of the samples alone, and reads no real images.
    """

    needs: tuple[str, ...]
    of: Callable[[Measured, Measured, "Options"], dict[str, float]]
    alone: bool = False


class Options(NamedTuple):
    """See the arguments of `Images`."""

    few: bool
    mismatched: int
    seed: int


def _fid(real: np.ndarray, fake: np.ndarray, few: bool) -> float:
    return scores_lib.fid(scores_lib.Statistics.of(real), scores_lib.Statistics.of(fake), few=few)


SCORES = {
    "fid": Score(("features",), lambda a, b, how: {"fid": _fid(b["features"], a["features"], how.few)}),
    "kid": Score(
        ("features",), lambda a, b, how: scores_lib.kid(b["features"], a["features"], seed=how.seed)
    ),
    "precision_recall": Score(
        ("features",), lambda a, b, how: scores_lib.manifold(b["features"], a["features"])
    ),
    "inception_score": Score(
        ("logits",), lambda a, b, how: scores_lib.inception_score(a["logits"], seed=how.seed), alone=True
    ),
    "cas": Score(
        ("features", "label"),
        lambda a, b, how: {
            "cas": scores_lib.classification_accuracy(a["features"], a["label"], b["features"], b["label"])
        },
    ),
    "r_precision": Score(
        ("image", "text"),
        lambda a, b, how: {
            "r_precision": scores_lib.r_precision(
                a["image"], a["text"], caption=a["caption"], mismatched=how.mismatched, seed=how.seed
            )
        },
        alone=True,
    ),
    "clip_score": Score(
        ("image", "text"),
        lambda a, b, how: {"clip_score": scores_lib.clip_score(a["image"], a["text"])},
        alone=True,
    ),
    "memorisation": Score(
        ("features", "training"),
        lambda a, b, how: {"copy_ratio": scores_lib.copy_ratio(a["features"], b["training"], b["features"])},
    ),
}
# Shares, and of which side's images; the others are no shares.
SHARES = {"precision": "fake", "recall": "real", "coverage": "real", "cas": "real", "r_precision": "fake"}
LOWER = {"fid", "kid"}  # the real images' own score is the least that can be reached; of the others the most


class Images(Generator):
    """Samples against real images, by what judges say of both; see scores/images.py.

    Scores, of which `scores` lists those wanted: fid and kid, distances of features; precision_recall, with density and coverage;
    inception_score, of a classifier's logits; cas, the accuracy on real images of a classifier of the samples; r_precision and
    clip_score, whether a dual encoder finds the captions; memorisation: copy_ratio, below 1 where samples are nearer to training
    images than new images are.

    Args:
      source, transforms, batch_size, n, predict, pipeline: see `Generator`; the source's images are the real ones.
      scores: which.
      features: the prediction that gives "features" [B, D].
      logits: the prediction that gives "logits" [B, K].
      matcher: the judge that has the predictions "embed_image" and "embed_text".
      others: a source of as many other real images. In the place of the samples they show what a perfect generator would reach,
        the floor of distances and the ceiling of the rest. Default: one half of the real images beside the other half; fid's
        floor is then too high, as it grows where images are few.
      few: fid of no more images than features is computed all the same.
      mismatched: captions that each right one stands against in r_precision.
      resamples: of fid's bootstrap interval in the final table; 0 for none.
      copies, training: memorisation compares so many samples with so many training images.
      pictures: so many of them, the nearest to training images, are drawn beside those.
    """

    def __init__(
        self,
        *,
        source: Mapping[str, Any],
        transforms: str,
        batch_size: int,
        n: int | None = None,
        scores: Sequence[str] = ("fid",),
        features: str = "inception.features",
        logits: str = "inception.logits",
        matcher: str = "matcher",
        others: Mapping[str, Any] | None = None,
        few: bool = False,
        mismatched: int = 99,
        resamples: int = 100,
        copies: int = 1000,
        training: int = 10_000,
        pictures: int = 8,
        predict: str = "generate",
        pipeline: Pipeline,
    ):
        common = dict(transforms=transforms, batch_size=batch_size, predict=predict, pipeline=pipeline)
        super().__init__(source=source, n=n, **common)
        self._scores = {name: registry.choose(SCORES, name, "score of images") for name in scores}
        if not self._scores:
            raise ValueError(f"scores names none; there are: {', '.join(SCORES)}.")
        self._needs = {need for score in self._scores.values() for need in score.needs}
        names = {"features": features, "logits": logits, "image": f"{matcher}.embed_image"}
        self._names = {key: name for key, name in names.items() if key in self._needs}
        self._matcher, self._others_spec = matcher, others
        self._options = Options(few, mismatched, pipeline.seed)
        self._resamples, self._pictures = resamples, pictures
        self._copies, self._count = copies, training
        self._how: dict[str, str] = {}
        self._real: Measured = {}
        self._others: Measured = {}

    def run(self, predict: Predict, figure: Path) -> dict[str, float]:
        """Draw, measure and score; `figure` gets the samples that are nearest to training images, where those are asked for."""
        before = self._how
        self._how = {
            "features": ",".join(self._names.values()),
            "weights": ",".join(predict.fingerprint(name) for name in self._names.values()),
            "resize": ",".join(dict.fromkeys(predict.resize(name) for name in self._names.values())),
        }
        if self._how != before:  # judges say the same of real images at every evaluation of a run
            self._measure_real(predict)
        images: list[np.ndarray] = []
        self._fake = self._measure(predict, self._drawn(predict, images))
        if "training" in self._needs and self._pictures and self.pipeline.process[0] == 0:
            self._draw(images, figure)
        scores: dict[str, float] = {}
        for name in self._scores:
            scores |= self._score(name, self._fake, self._real)
        return scores

    def _score(self, name: str, fake: Measured, real: Measured) -> dict[str, float]:
        if name == "memorisation":
            fake = {key: x[: self._copies] for key, x in fake.items()}
        return self._scores[name].of(fake, real, self._options)

    # --------------------------------------------------------------------------------------------- measuring

    def _drawn(self, predict: Predict, images: list[np.ndarray]) -> Iterable[Mapping[str, np.ndarray]]:
        """This process's rows of the samples; `images` gets those that are compared with training images."""
        for batch in self.samples(predict):
            if "training" in self._needs:
                images += [x for x, there in zip(batch["image"], batch["mask"], strict=True) if there][
                    : max(self._copies - len(images), 0)
                ]
            yield self.own(batch)

    def _measure_real(self, predict: Predict) -> None:
        self._real = self._measure(predict, self.real())
        if self._others_spec:
            source = sources.make(self._others_spec)
            self._others = self._measure(predict, self.real(source))
        if "training" in self._needs:
            features = self._names["features"]
            found = []
            for batch in self.real(self.pipeline.source, self._count):
                output, given = predict(features, batch)
                keep = given["mask"] > 0
                found.append((output["features"][keep], given["index"][keep]))
            self._real["training"] = np.concatenate([rows for rows, _ in found])
            self._places = np.concatenate([index for _, index in found])

    def _measure(self, predict: Predict, batches: Iterable[Mapping[str, np.ndarray]]) -> Measured:
        """What the judges say of images, and what these should show, of all processes' rows that are not padding.

        Returns:
          What the scores need of "features" [n, D], "logits" [n, K], "image" [n, F] with "text" [n, F] and "caption" [n], a
          number for each different one, and "label" [n], the classes.
        """
        found: list[Measured] = []
        for batch in batches:
            rows: Measured = {}
            said: dict[str, Measured] = {}
            for key, name in self._names.items():
                judge = name.partition(".")[0]
                if key not in said.get(judge, {}):  # some say several things at once
                    output, given = predict(name, batch)
                    said[judge] = said.get(judge, {}) | output
                rows[key] = said[judge][key]
            rows |= {key: given[key] for key in ("label", "tokens") if key in given}
            found.append({key: x[given["mask"] > 0] for key, x in rows.items()})
        measured = {key: np.concatenate([rows[key] for rows in found]) for key in found[0]}
        if "label" in self._needs and measured.get("label", np.zeros((1, 1))).ndim != 1:
            raise ValueError(
                f'cas needs the classes of the examples, and those of "{self.spec["name"]}" have none: take a source with '
                '"label", and text(...) in the transforms, which keeps it.'
            )
        if "text" in self._needs:
            if "tokens" not in measured:
                raise ValueError(
                    "r_precision and clip_score need captions: end the transforms with text(...)."
                )
            measured |= self._texts(predict, self.said(measured["tokens"]))
        return {key: x for key, x in measured.items() if key != "tokens"}

    def _texts(self, predict: Predict, captions: Sequence[str]) -> Measured:
        """Embeddings of captions; each different one is embedded once."""
        name = f"{self._matcher}.embed_text"
        different, caption = np.unique(captions, return_inverse=True)
        tokens = predict.tokenise(name, different.tolist())
        size = self.batch_size // self.pipeline.process[1]
        found = []
        for first in range(0, len(tokens), size):
            part = [{"tokens": row} for row in tokens[first : first + size]]
            # Rows of other processes, which embed the same, follow this one's.
            found.append(predict(name, stack(part, size))[0]["text"][: len(part), 0])
        return {"text": np.concatenate(found)[caption], "caption": caption}

    # ----------------------------------------------------------------------------------------------- showing

    def _draw(self, images: Sequence[np.ndarray], path: Path) -> None:
        """The samples that are nearest to training images, each followed by those."""
        training = self._real["training"]
        distance, index = scores_lib.neighbours(
            self._fake["features"][: len(images)], training, min(NEIGHBOURS, len(training))
        )
        source = Chosen(self.pipeline.source, min(self._count, len(self.pipeline.source)))
        rows, texts = [], []
        for i in np.argsort(distance[:, 0], kind="stable")[: self._pictures]:
            near = [self.image(int(self._places[k]), source) for k in index[i]]
            rows.append([images[i], *near])
            texts.append(["the sample", *(f"{value:.3f}" for value in distance[i])])
        title = "the samples nearest to training images, and the distances of their features"
        figures.contact_sheet(path, rows, [title, *[""] * (len(rows) - 1)], texts)

    def table(self, scores: dict[str, float]) -> dict[str, Row]:
        """Scores and, as floor or ceiling, those of real images in the samples' place; shares are x 100."""
        best = self._best()
        sizes = {"fake": len(next(iter(self._fake.values()))), "real": len(next(iter(self._real.values())))}
        rows = {}
        for name, value in scores.items():
            unit, interval, other = 1, None, best.get(name)
            if name in SHARES:
                unit, n = 100, sizes[SHARES[name]]
                low, high = wilson(value, n)
                interval = 100 * low, 100 * high
            elif name == "fid" and self._resamples:
                score = partial(_fid, few=True)
                groups = self._real["features"], self._fake["features"]
                seed = self._options.seed
                interval = scores_lib.bootstrap(score, *groups, samples=self._resamples, seed=seed)
            other = None if other is None or name.endswith("_std") else unit * other
            floor, ceiling = (other, None) if name in LOWER else (None, other)
            rows[name] = Row(unit * value, interval, floor, ceiling)
        return rows

    def _best(self) -> dict[str, float]:
        """The scores of real images in the samples' place, as far as there are enough of them."""
        others, rest = self._others, self._real
        if not others:
            n = len(next(iter(rest.values())))
            halves = np.array_split(np.random.default_rng(self._options.seed).permutation(n), 2)
            others, rest = (
                {key: x[half] for key, x in self._real.items() if key != "training"} for half in halves
            )
            rest |= {key: x for key, x in self._real.items() if key == "training"}
        best: dict[str, float] = {}
        for name, score in self._scores.items():
            with contextlib.suppress(ValueError):  # the halves may be too few where the whole is not
                best |= self._score(name, *((self._real, {}) if score.alone else (others, rest)))
        return best

    def signature(self, **how: Any) -> str:
        n, real = (len(next(iter(part.values()))) for part in (self._fake, self._real))
        kind = "+".join(self._scores)
        return scores_lib.signature(
            kind, **self._how, n=n, real=real, seed=self.pipeline.seed, split=self.split, **how
        )


make = Images
