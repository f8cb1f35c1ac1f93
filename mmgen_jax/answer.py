"""Answer questions about an image file with a finished run."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmgen_jax import figures as figures_lib
from mmgen_jax import image_files
from mmgen_jax.data.loader import stack
from mmgen_jax.data.quarantine import BrokenExample
from mmgen_jax.evaluate import load


def answer_questions(
    workdir: Path,
    image: Path | None,
    questions: Sequence[str],
    *,
    step: int | None = None,
    n_best: int = 3,
    figure: Path | None = None,
) -> None:
    """Write one JSON line a question: {"image", "question", "answers": [{"answer", "probability"}, ...]}, best first.

    Args:
      workdir, step: see `evaluate.load`.
      image: a file; None asks without a picture: the model's mask says that there is none, and "without" in the line too.
      questions: at least one.
      n_best: how many answers, of the five that a prediction names.
      figure: a PNG with where the model looked.

    Raises:
      FileNotFoundError: there is no such image or run.
      ValueError: the image is broken, the run answers no questions, reads clips, or has no attention to draw.
    """
    if image is not None and not image.is_file():
        raise FileNotFoundError(f"No image {image}.")
    experiment, params, variables, _ = load(workdir, step=step)
    task = experiment.task
    if "answer" not in task.predict:
        raise ValueError(
            f'The run in {workdir} answers no questions: its task is "{experiment.config.task.name}".'
        )
    modalities = task.model.modalities
    others = set(modalities) - {"image", "question"}
    if others:
        raise ValueError(
            f"The run in {workdir} reads {', '.join(sorted(others))}, which this command cannot."
        )
    if figure and ("attend" not in task.predict or modalities[0] != "image"):
        raise ValueError(
            f"The run in {workdir} has no attention over an image to draw; those with the fusions cross_attention, "
            "co_attention and mac have, where the image is the first modality."
        )
    if figure and image is None:
        raise ValueError("A picture of where it looked needs an image.")
    if n_best < 1:
        raise ValueError(f"n_best={n_best}; it is at least 1.")
    if image is None:
        pixels: Any = np.zeros(experiment.pipeline.example_batch()["image"].shape[1:], np.uint8)
    else:
        pixels = str(image)
    present = np.array([name != "image" or image is not None for name in modalities])
    rows, prepare = [], image_files.preparation(experiment)
    for question in questions:
        example = {"image": pixels, "question": question, "answers": [], "captions": [""]}
        made = image_files.prepared(example, prepare)
        if isinstance(made, BrokenExample):
            raise ValueError(f"{image}: {made}")
        rows.append({"image": made["image"], "question": made["question"], "present": present})
    batch = stack(rows, -(-len(rows) // experiment.layout.cuts) * experiment.layout.cuts)
    predict = experiment.predictor(params, variables)
    output, _ = predict("answer", batch)
    words = experiment.pipeline.answers.words
    for i, question in enumerate(questions):
        pairs = zip(output["answer"][i, :n_best], output["probability"][i, :n_best], strict=True)
        line: dict[str, Any] = {
            "image": None if image is None else str(image),
            "question": question,
            "answers": [{"answer": words[k], "probability": round(float(p), 4)} for k, p in pairs],
        }
        if not present.all():
            line["without"] = ["image"]
        print(json.dumps(line, ensure_ascii=False))
    if "image" not in modalities:
        print(f"the run in {workdir} reads no image, only {', '.join(modalities)}", file=sys.stderr)
    if not present.all():
        print("answered without the image, which the model was told by its mask", file=sys.stderr)
    if figure:
        weights = predict("attend", batch)[0]["weights"]
        best = [[words[k]] for k in output["answer"][: len(rows), 0]]
        figures_lib.attention(
            figure,
            [row["image"] for row in rows],
            best,
            [weights[i][None] for i in range(len(rows))],
            titles=[f"{question} {said}" for question, (said,) in zip(questions, best, strict=True)],
        )
        print(f"attention picture: {figure}", file=sys.stderr)
