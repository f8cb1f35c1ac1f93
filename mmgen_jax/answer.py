"""Answer questions about an image or video file with a finished run."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmgen_jax import figures as figures_lib
from mmgen_jax import image_files
from mmgen_jax.caption import search_options
from mmgen_jax.core import config as config_lib
from mmgen_jax.data.loader import stack
from mmgen_jax.data.quarantine import BrokenExample
from mmgen_jax.evaluate import load
from mmgen_jax.evaluators.answers import read
from mmgen_jax.evaluators.captions import written
from mmgen_jax.experiment import CONFIG


def answer_questions(
    workdir: Path,
    path: Path | None,
    questions: Sequence[str],
    *,
    step: int | None = None,
    sheet: tuple[int, int] | None = None,
    n_best: int = 3,
    figure: Path | None = None,
) -> None:
    """Write one JSON line a question: {"image", "question", "answers": [{"answer", "probability"}, ...]}, best first.

    Args:
      workdir, step: see `evaluate.load`.
      path: an image, or for a run that reads videos one of these, or a folder of its frames; None asks without: the model's mask
        says that there is none, and "without" in the line too. In the line it is "image" or "video".
      questions: at least one.
      sheet: (rows, columns), where a picture holds a video's frames.
      n_best: how many answers: of the five that a prediction names, or of a run that writes its answers those of a beam.
      figure: a PNG with where the model looked.

    Raises:
      FileNotFoundError: there is no such image, video or run.
      ValueError: that is broken, or shorter than what the run reads of it; the run answers no questions, reads both images and
        videos, or has no attention to draw.
    """
    if path is not None and not path.exists():
        raise FileNotFoundError(f"No image or video {path}.")
    if n_best < 1:
        raise ValueError(f"n_best={n_best}; it is at least 1.")
    writes = "decode" in config_lib.load_json(workdir / CONFIG).task
    decode = search_options(workdir, {"n_best": n_best}) if writes else {}
    overrides = {f"task.decode.{key}": value for key, value in decode.items()}
    experiment, params, variables, _ = load(workdir, overrides, step)
    task = experiment.task
    if "answer" not in task.predict:
        raise ValueError(
            f'The run in {workdir} answers no questions: its task is "{experiment.config.task.name}".'
        )
    modalities = task.model.modalities
    key = image_files.seen_by(experiment, sheet)
    others = set(modalities) - {key, "question"}
    if others:
        raise ValueError(
            f"The run in {workdir} reads {', '.join(sorted(others))}, which this command cannot."
        )
    if figure and ("attend" not in task.predict or modalities[0] != key):
        raise ValueError(
            f"The run in {workdir} has no attention over an image or a video to draw; those with the fusions cross_attention, "
            "co_attention and mac have, where that is the first modality."
        )
    if figure and path is None:
        raise ValueError(f"A picture of where it looked needs the {key}.")
    pixels: Any = np.zeros(experiment.pipeline.example_batch()[key].shape[1:], np.uint8)
    if path is not None:
        pixels = image_files.encoded(path, sheet)
    present = np.array([name != key or path is not None for name in modalities])
    rows, prepare = [], image_files.preparation(experiment)
    for question in questions:
        example = {key: pixels, "question": question, "answers": [], "captions": [""]}
        made = image_files.prepared(example, prepare)
        if isinstance(made, BrokenExample):
            raise ValueError(f"{path}: {made}")
        given = {name: made[name] for name in (key, "frame_mask", "question") if name in made}
        rows.append({**given, "present": present})
    batch = stack(rows, -(-len(rows) // experiment.layout.cuts) * experiment.layout.cuts)
    predict = experiment.predictor(params, variables)
    output, _ = predict("answer", batch)
    said = read(output, experiment.pipeline)[: len(questions)]
    for question, pairs in zip(questions, said, strict=True):
        line: dict[str, Any] = {
            key: None if path is None else str(path),
            "question": question,
            "answers": [{"answer": answer, "probability": p} for answer, p in pairs[:n_best]],
        }
        if not present.all():
            line["without"] = [key]
        print(json.dumps(line, ensure_ascii=False))
    if key not in modalities:
        print(f"the run in {workdir} reads no {key}, only {', '.join(modalities)}", file=sys.stderr)
    if not present.all():
        print(f"answered without the {key}, which the model was told by its mask", file=sys.stderr)
    if figure:
        best = [pairs[0][0] for pairs in said]
        if writes:  # a map a word
            words = [experiment.pipeline.tokenizer.pieces(row) for row in output["tokens"][: len(rows), 0]]
            tokens = written(output["tokens"][:, 0])
            weights = predict("attend", {**batch, "tokens": tokens})[0]["weights"][: len(rows), 0]
        else:
            words = [[answer] for answer in best]
            weights = predict("attend", batch)[0]["weights"][: len(rows), None]
        seen = [row[key] for row in rows]
        if key == "video":  # the same for all questions
            labels = [
                f"{question} {word}" for question, row in zip(questions, words, strict=True) for word in row
            ]
            maps = [one for row, every in zip(words, weights, strict=True) for one in every[: len(row)]]
            figures_lib.film(figure, seen[0], labels, maps, title=path.name)
        else:
            titles = [f"{question} {answer}" for question, answer in zip(questions, best, strict=True)]
            figures_lib.attention(figure, seen, words, weights, titles)
        print(f"attention picture: {figure}", file=sys.stderr)
