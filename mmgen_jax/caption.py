"""Caption image or video files with a finished run."""

import contextlib
import functools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmgen_jax import figures as figures_lib
from mmgen_jax import image_files
from mmgen_jax.core import config as config_lib
from mmgen_jax.data.loader import stack
from mmgen_jax.data.quarantine import BrokenExample
from mmgen_jax.evaluate import load
from mmgen_jax.evaluators.captions import attend


def caption_files(
    workdir: Path,
    paths: Sequence[Path],
    *,
    decode: Mapping[str, Any],
    step: int | None = None,
    sheet: tuple[int, int] | None = None,
    out: Path | None = None,
    figures: Path | None = None,
    batch_size: int = 32,
    seed: int | None = None,
) -> None:
    """Write one JSON line an image or video; a broken one gets a line with its error, and the rest goes on.

    Args:
      workdir, step: see `evaluate.load`.
      paths: images and folders of images; for a run that captions videos see `image_files.find_videos`.
      sheet: (rows, columns), where each picture holds a video's frames.
      decode: the task's decode options; None keeps the config's.
      out: a file, default the terminal.
      figures: a folder for attention pictures.
      batch_size: images or videos at once.
      seed: of drawn words, default the config's.

    Raises:
      FileNotFoundError: there is no such path, or no such run.
      ValueError: the run has no evaluation whose transforms it could take over, or options contradict each other.
    """
    chosen = search_options(workdir, decode)
    overrides = {f"task.decode.{key}": value for key, value in chosen.items()}
    if seed is not None:
        overrides["seed"] = seed
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}; it is at least 1.")
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"No file or folder {path}.")  # before the model is loaded
    experiment, params, variables, _ = load(workdir, overrides, step)
    key = image_files.seen_by(experiment, sheet)
    video = key == "video"
    files = image_files.find_videos(paths, sheet is not None) if video else image_files.find_images(paths)
    batch_size = min(batch_size, len(files))
    batch_size = -(-batch_size // experiment.layout.cuts) * experiment.layout.cuts
    predict = experiment.predictor(params, variables)
    tokenizer = experiment.pipeline.tokenizer
    prepare = image_files.preparation(experiment)
    read = functools.partial(image_files.read, prepare=prepare, key=key, sheet=sheet)
    with out.open("w", encoding="utf-8") if out else contextlib.nullcontext(sys.stdout) as stream:
        for group, images in image_files.batches(files, read, batch_size):
            rows = [{key: image} for image in images if isinstance(image, np.ndarray)]
            written = iter(_caption(predict, rows, batch_size) if rows else ())
            drawn = []
            for path, image in zip(group, images, strict=True):
                if isinstance(image, BrokenExample):
                    line: dict[str, Any] = {key: str(path), "error": str(image)}
                else:
                    output = next(written)
                    line = {key: str(path), "captions": _captions(output, tokenizer)}
                    drawn.append((path, image, output["tokens"][0]))
                stream.write(json.dumps(line, ensure_ascii=False) + "\n")
                stream.flush()
            if figures and drawn:
                _draw(predict, figures, drawn, tokenizer, batch_size)
    if figures and figures.is_dir():  # else nothing could be read
        print(f"attention pictures: {figures}/", file=sys.stderr)


def search_options(workdir: Path, decode: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given, and what follows from them: samples need no beam, and n-best a wide one."""
    chosen = {key: value for key, value in decode.items() if value is not None}
    if "beam" in chosen:
        chosen.setdefault("temperature", 0.0)
    elif chosen.get("temperature"):
        chosen["beam"] = 1
    elif "n_best" in chosen:
        config = config_lib.load_json(workdir / "config.json")
        chosen["beam"] = max(config.task.decode.get("beam", 1), chosen["n_best"])
    return chosen


def _caption(predict: Any, rows: list[dict[str, np.ndarray]], size: int) -> list[dict[str, np.ndarray]]:
    """Predictions row by row; the batch is filled up, so that every call has one shape."""
    output, _ = predict("generate", stack(rows, size))
    return [{name: value[i] for name, value in output.items()} for i in range(len(rows))]


def _captions(output: dict[str, np.ndarray], tokenizer: Any) -> list[dict[str, Any]]:
    return [
        {
            "caption": tokenizer.decode(tokens),
            "log_prob": round(float(log_prob), 4),
            "finished": bool(finished),
        }
        for tokens, log_prob, finished in zip(
            output["tokens"], output["log_prob"], output["finished"], strict=True
        )
    ]


def _draw(predict: Any, folder: Path, drawn: list[tuple], tokenizer: Any, size: int) -> None:
    weights = attend(predict, [seen for _, seen, _ in drawn], np.stack([row for *_, row in drawn]), size)
    for (path, seen, tokens), maps in zip(drawn, weights, strict=True):
        # Two folders may hold files of one name.
        name = "_".join(path.with_suffix("").parts[-2:]).strip("/.")
        picture, words = folder / f"{name}.png", tokenizer.pieces(tokens)
        if seen.ndim == 4:
            figures_lib.film(picture, seen, words, maps, title=path.name)
        else:
            figures_lib.attention(picture, [seen], [words], [maps])
