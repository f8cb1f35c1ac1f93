"""Draw pictures from captions with a finished text-to-image run."""

import difflib
import itertools
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from mmgen_jax import figures
from mmgen_jax.data import text_transforms
from mmgen_jax.data.loader import stack
from mmgen_jax.experiment import load

BOUND = 2.0  # standard deviations: where truncated noise ends
OWN_CAPTIONS = 8  # captions that a run draws when nobody gives it any
COLUMNS = 8  # pictures in a line of the contact sheet, side by side in an animation, and above each other with their words
LINES = 32  # of the contact sheet


class Drawing(NamedTuple):
    """A picture that is to be drawn: its file's name, what samples.jsonl says of it, the example for the task."""

    file: str
    about: dict[str, Any]
    example: dict[str, np.ndarray]


class Sampler:
    """The generator of a finished run.

    Args:
      workdir, step, average: see `experiment.load`.
      batch_size: pictures at once, the last batch filled up.

    Attributes:
      z_features: Z, of the noise.
      step: of the checkpoint.
      attends: whether it can tell which words each part of a picture looked at.

    Raises:
      ValueError: the run draws no pictures, or its weights are not finite.
    """

    def __init__(self, workdir: Path, step: int | None = None, batch_size: int = 64, average: bool = True):
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}; it is at least 1.")
        experiment, params, variables, self.step = load(workdir, step=step, average=average)
        predict = experiment.task.predict
        if not {"generate", "stages"} <= predict.keys():
            raise ValueError(
                f'The run in {workdir} is of the task "{experiment.config.task.name}", which draws nothing. '
                "Take one of a text-to-image model, such as configs/dcgan_scenes.py trains."
            )
        if not all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(params["generator"])):
            raise ValueError(
                f"The generator's weights of step {self.step} are not finite. Take an earlier checkpoint with --step, or "
                "train again with a lower learning rate."
            )
        example = experiment.pipeline.example_batch()
        if example["image"].dtype != np.uint8:
            raise ValueError(f"The run in {workdir} makes points of a toy set, and no pictures.")
        self.z_features = experiment.task.generator.z_features
        self.attends = "attend" in predict
        self._predict = experiment.predictor(params, variables)
        self._batch_size = -(-batch_size // experiment.layout.cuts) * experiment.layout.cuts
        self._experiment = experiment
        self._context = example["tokens"].shape[-1] if "tokens" in example else None

    @property
    def conditional(self) -> bool:
        """Whether it draws from captions."""
        return self._context is not None

    def own_captions(self, count: int) -> list[str]:
        """The first different captions that fit of the run's evaluation data, or where it has none, of its training data."""
        parts = [*self._experiment.evaluators.values(), self._experiment.pipeline]
        source, encode = parts[0].source, self._experiment.pipeline.tokenizer.encode
        found = dict.fromkeys(
            caption for i in range(min(len(source), 1000)) for caption in source.captions(i)
        )
        fitting = (caption for caption in found if 0 < len(encode(caption)) <= self._context - 2)
        return list(itertools.islice(fitting, count))

    def tokens(self, captions: Sequence[str]) -> np.ndarray:
        """n captions -> int32 [n, T]. Words that the run never saw are told on stderr.

        Raises:
          ValueError: a caption is longer than the text tower takes, or without a word that the vocabulary has.
        """
        tokenizer = self._experiment.pipeline.tokenizer
        read = text_transforms.text(self._context, which="first", too_long="refuse", tokenizer=tokenizer)
        rows = []
        for caption in captions:
            ids = tokenizer.encode(caption)
            if not ids:
                raise ValueError(f'The caption "{caption}" is empty.')
            unknown = tokenizer.unknown(caption)
            if unknown:
                words = "; ".join(_unknown(word, getattr(tokenizer, "words", ())) for word in unknown)
                told = f'"{caption}": not in the vocabulary: {words}'
                if len(unknown) == len(ids):
                    raise ValueError(f"{told}. No other word is left to draw.")
                print(told, file=sys.stderr)
            if len(ids) + 2 > self._context:
                kept = tokenizer.decode(ids[: self._context - 2])
                raise ValueError(
                    f'The caption "{caption}" has {len(ids) + 2} tokens with begin and end; this run\'s text tower takes '
                    f'{self._context}, which is as far as "{kept}". Shorten it.'
                )
            example = read({"image": None, "captions": [caption]}, np.random.default_rng(0))
            rows.append(example["tokens"][0])
        return np.stack(rows)

    def pieces(self, tokens: np.ndarray) -> tuple[list[int], list[str]]:
        """The places of a caption's words in its tokens int32 [T], and the words; "?" for an unknown one."""
        tokenizer = self._experiment.pipeline.tokenizer
        places = list(range(1, int(np.argmax(tokens == tokenizer.eos))))
        return places, ["".join(tokenizer.pieces(tokens[place : place + 1])) or "?" for place in places]

    def draw(
        self, drawings: Iterable[Drawing], *names: str
    ) -> Iterator[tuple[Drawing, dict[str, np.ndarray]]]:
        """Each drawing with what the named predictions say of it: "generate" its "image", "attend" its "weights1" and on."""
        drawings = iter(drawings)
        while group := list(itertools.islice(drawings, self._batch_size)):
            batch = stack([drawing.example for drawing in group], self._batch_size)
            size = len(batch["z"])
            batch |= {"mask": np.ones(size, np.float32), "index": np.arange(size, dtype=np.int32)}
            found: dict[str, np.ndarray] = {}
            for name in names:
                found |= self._predict(name, batch)[0]
            for i, drawing in enumerate(group):
                yield drawing, {key: value[i] for key, value in found.items()}


def generate(
    workdir: Path,
    captions: Sequence[str],
    *,
    out: Path,
    n: int = 8,
    seed: int = 0,
    truncation: float | None = None,
    frames: int | None = None,
    average: bool = True,
    step: int | None = None,
    batch_size: int = 64,
) -> list[Path]:
    """Write a PNG a sample, samples.jsonl, a contact sheet, and for models that attend a picture of each caption's words.

    Args:
      workdir, step, average: see `experiment.load`.
      captions: none for a model without text; otherwise none takes some of the run's own evaluation data.
      out: the folder, made if it is not there.
      n: samples a caption.
      seed, truncation: of the noise, see `noise`.
      frames: go from the first of two captions to the second in so many pictures, and write an animation too.
      batch_size: pictures at once.

    Returns:
      The samples' files, in the order of captions and samples.

    Raises:
      FileNotFoundError: no such run.
      ValueError: a caption that this run cannot read, or a number out of its range.
    """
    for name, value, least in (("n", n, 1), ("seed", seed, 0), ("frames", frames, 2)):
        if value is not None and value < least:
            raise ValueError(f"{name}={value}; it is at least {least}.")
    if truncation is not None and not 0 < truncation < np.inf:
        raise ValueError(f"truncation={truncation}; it is above 0.")
    if frames and len(captions) != 2:
        raise ValueError(f"Interpolation goes from one caption to another; here are {len(captions)}.")
    many = n * (frames or max(len(captions), 1))
    sampler = Sampler(workdir, step, min(batch_size, many), average)
    if captions and not sampler.conditional:
        raise ValueError(f"The run in {workdir} was trained without text: leave the captions out.")
    if sampler.conditional and not captions:
        captions = sampler.own_captions(OWN_CAPTIONS)
    tokens = sampler.tokens(captions) if captions else None
    z = [noise(seed, sample, sampler.z_features, truncation) for sample in range(n)]
    out.mkdir(parents=True, exist_ok=True)
    how = {"seed": seed, "truncation": truncation, "step": sampler.step, "average": average}
    if frames:
        return _interpolation(sampler, captions, tokens, z, frames, how, out)
    return _samples(sampler, captions, tokens, z, how, out)


def noise(seed: int, sample: int, features: int, truncation: float | None = None) -> np.ndarray:
    """The noise of one sample, a function of these numbers alone: standard normal -> float32 [Z].

    Args:
      truncation: values beyond 2 are drawn again, and all are scaled by this (the truncation trick of Brock et al., 2019,
        section 3.1, in the form of their published models); None does neither.
    """
    rng = np.random.default_rng((seed, sample))
    z = rng.standard_normal(features)
    if truncation is not None:
        while (far := np.abs(z) > BOUND).any():
            z[far] = rng.standard_normal(int(far.sum()))
        z *= truncation
    return z.astype(np.float32)


def read_captions(path: Path) -> list[str]:
    """The lines of a UTF-8 text file that are not empty.

    Raises:
      OSError, ValueError: it cannot be read, or holds none.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise OSError(f"Cannot read --captions {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text ({error.reason}).") from error
    captions = [line.strip() for line in lines if line.strip()]
    if not captions:
        raise ValueError(f"{path} holds no caption: it has one a line.")
    return captions


def _samples(
    sampler: Sampler,
    captions: Sequence[str],
    tokens: np.ndarray | None,
    z: Sequence[np.ndarray],
    how: dict[str, Any],
    out: Path,
) -> list[Path]:
    """n samples of each caption, or of a model without text."""
    lines = -(-len(z) // COLUMNS)  # of the contact sheet, a caption
    shown = max(1, LINES // lines)
    drawings = []
    for i, caption in enumerate(captions or [None]):
        for k, row in enumerate(z):
            about = {"sample": k, **how} if caption is None else {"caption": caption, "sample": k, **how}
            example = {"z": row} if caption is None else {"z": row, "tokens": tokens[i][None]}
            drawings.append(Drawing(f"{_stem(i, caption)}{k:03d}.png", about, example))
    first, rest = drawings[: shown * len(z)], drawings[shown * len(z) :]
    attends = sampler.attends and bool(captions)
    kept = list(_write(sampler.draw(first, "generate", *["attend"] * attends), out))
    for _ in _write(sampler.draw(rest, "generate"), out, append=True):
        pass
    rows, beside = [], []
    for i, caption in enumerate((captions or [""])[:shown]):
        own = kept[i * len(z) : (i + 1) * len(z)]
        for line in range(min(lines, LINES)):
            rows.append([row["image"] for row in own[line * COLUMNS : (line + 1) * COLUMNS]])
            beside.append(caption if line == 0 else "")
        if attends:
            _draw_words(out / f"{_stem(i, caption)}words.png", sampler, caption, tokens[i], own[:COLUMNS])
    figures.sample_grid(out / "sheet.png", rows, beside if captions else None)
    pictures = sum(map(len, rows))
    part = "" if pictures == len(drawings) else f" of the first {pictures}"
    words = " and pictures of words" if attends else ""
    print(f"{len(drawings)} pictures, samples.jsonl, a contact sheet{words}{part} in {out}")
    return [out / drawing.file for drawing in drawings]


def _interpolation(
    sampler: Sampler,
    captions: Sequence[str],
    tokens: np.ndarray,
    z: Sequence[np.ndarray],
    frames: int,
    how: dict[str, Any],
    out: Path,
) -> list[Path]:
    """From the first caption to the second, each sample with one noise all the way."""
    here, there = captions
    mix = np.linspace(0, 1, frames, dtype=np.float32)
    drawings = []
    for k, row in enumerate(z):
        for i, share in enumerate(mix):
            about = {"caption": here, "towards": there, "mix": round(float(share), 4), "sample": k, **how}
            example = {"z": row, "tokens": tokens[0][None], "other": tokens[1], "mix": share}
            drawings.append(Drawing(f"{_stem(0, here)}to_{k:03d}_{i:03d}.png", about, example))
    images = [row["image"] for row in _write(sampler.draw(drawings, "generate"), out)]
    rows = [images[i : i + frames] for i in range(0, len(images), frames)]
    beside = [f"{here} ... {there}", *[""] * (len(rows) - 1)]
    figures.sample_grid(out / "interpolation.png", rows[:LINES], beside[:LINES])
    _animate(out / "interpolation.gif", rows[:COLUMNS])
    print(f"{len(drawings)} pictures, samples.jsonl, interpolation.png and interpolation.gif in {out}")
    return [out / drawing.file for drawing in drawings]


def _write(
    drawn: Iterable[tuple[Drawing, dict[str, np.ndarray]]], out: Path, append: bool = False
) -> Iterator[dict[str, np.ndarray]]:
    """Write each picture and its line; yields what was drawn."""
    with (out / "samples.jsonl").open("a" if append else "w", encoding="utf-8") as lines:
        for drawing, row in drawn:
            Image.fromarray(row["image"]).save(out / drawing.file)
            lines.write(json.dumps({"image": drawing.file, **drawing.about}, ensure_ascii=False) + "\n")
            yield row


def _draw_words(
    path: Path, sampler: Sampler, caption: str, tokens: np.ndarray, found: Sequence[dict[str, np.ndarray]]
) -> None:
    """A line a sample and stage: the picture, and which of its parts looked at each word."""
    places, words = sampler.pieces(tokens)
    stages = sorted(key for key in found[0] if key.startswith("weights"))
    lines = [(k, row, stage) for k, row in enumerate(found) for stage in stages]
    maps = [row[stage].reshape(-1, row[stage].shape[-1]).T[places] for _, row, stage in lines]
    titles = [f"{caption} (sample {k}, attention {stage.removeprefix('weights')})" for k, _, stage in lines]
    figures.attention(path, [row["image"] for _, row, _ in lines], [words] * len(lines), maps, titles)


def _animate(path: Path, rows: Sequence[Sequence[np.ndarray]], seconds: float = 0.15) -> None:
    """A GIF that goes through the columns and back, the rows side by side."""
    still = [np.concatenate(column, axis=1) for column in zip(*rows, strict=True)]
    scale = max(1, 128 // len(still[0]))  # a few pixels would be hard to see
    frames = [Image.fromarray(image.repeat(scale, axis=0).repeat(scale, axis=1)) for image in still]
    frames += frames[-2:0:-1]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=round(1000 * seconds), loop=0)


def _stem(index: int, caption: str | None) -> str:
    """How the names of a caption's files begin: its number, and its words as far as a file's name likes them."""
    if caption is None:
        return ""
    words = re.sub(r"\W+", "-", caption.lower()).strip("-")[:48].strip("-")
    return f"{index:03d}_{words}_"


def _unknown(word: str, known: Iterable[str]) -> str:
    """The word, with the known one that is nearest to it."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f'{word} (did you mean "{close[0]}"?)' if close else word
