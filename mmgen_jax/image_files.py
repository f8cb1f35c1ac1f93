"""Image and video files as a finished run wants them: found below folders, read and cut as its evaluation reads and cuts."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from mmgen_jax.data import transforms
from mmgen_jax.data.example import Example, Transform
from mmgen_jax.data.quarantine import BrokenExample
from mmgen_jax.data.video import Sheet
from mmgen_jax.experiment import Experiment

SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
VIDEO_SUFFIXES = (".gif", ".webp", ".mp4", ".mov", ".webm", ".mkv", ".avi", ".mpeg", ".mpg", ".ogv", ".flv")
THREADS = 4


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The given files, and the images below the given folders in order of name.

    Raises:
      FileNotFoundError: a path does not exist, or a folder holds no image.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            if not inside:
                raise FileNotFoundError(f"No image in {path}: looked for {', '.join(SUFFIXES)}.")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise FileNotFoundError(f"No file or folder {path}.")
    return found


def find_videos(paths: Sequence[Path], sheets: bool = False) -> list[Path]:
    """The given files, and the videos below the given folders in order of name.

    A folder that holds pictures, and no video, is a video of these frames.

    Args:
      paths: files and folders.
      sheets: each picture is a sheet of frames, and a video of its own.

    Raises:
      FileNotFoundError: a path does not exist, or a folder holds no video.
    """
    if sheets:
        return find_images(paths)
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"No file or folder {path}.")
        inside = _videos(path) if path.is_dir() else [path]
        if not inside:
            raise FileNotFoundError(
                f"No video in {path}: looked for {', '.join(VIDEO_SUFFIXES)} and folders of pictures."
            )
        found += inside
    return found


def _videos(folder: Path) -> list[Path]:
    inside = sorted(folder.iterdir())
    suffixes = {path.suffix.lower() for path in inside}
    if suffixes & set(SUFFIXES) and not suffixes & set(VIDEO_SUFFIXES):
        return [folder]
    found: list[Path] = []
    for path in inside:
        if path.is_dir():
            found += _videos(path)
        elif path.suffix.lower() in VIDEO_SUFFIXES:
            found.append(path)
    return found


def seen_by(experiment: Experiment, sheet: tuple[int, int] | None = None) -> str:
    """ "image" or "video", which a run reads.

    Raises:
      ValueError: it reads images, and `sheet` says how frames lie in one.
    """
    if "video" in experiment.pipeline.example_batch():
        return "video"
    if sheet is not None:
        raise ValueError(f"--sheet is of videos, and the run in {experiment.workdir} reads images.")
    return "image"


def preparation(experiment: Experiment) -> list[Transform]:
    """The transforms of the run's first evaluation, which augment nothing, in a form that takes files.

    Raises:
      ValueError: the run has no evaluation.
    """
    if not experiment.evaluators:
        raise ValueError(
            f"The run in {experiment.workdir} has no evaluations, whose transforms would say how to read images."
        )
    name, evaluator = next(iter(experiment.evaluators.items()))
    key = seen_by(experiment)
    if {"image": "decode", "video": "frames"}[key] in transforms.names(
        experiment.config.evals[name].transforms
    ):
        return evaluator.transforms
    # The source makes arrays of the right size, as scenes does: files are cut to that size.
    *count, height, width, _ = evaluator.source[0][key].shape
    first = f"frames({count[0]})" if count else "decode"
    cut = transforms.parse(f"{first} | resize({max(height, width)}) | center_crop(({height}, {width}))", {})
    return cut[:-1] + evaluator.transforms  # the last made an array, and dropped what is none


def prepared(example: Example, prepare: Sequence[Transform]) -> Example | BrokenExample:
    """An example as the model gets it, its image uint8 [H, W, 3] or video [F, H, W, 3], or the reason why there is none."""
    rng = np.random.default_rng(0)
    try:
        for transform in prepare:
            example = transform(example, rng)
    except BrokenExample as broken:
        return broken
    return example


def encoded(path: Path, sheet: tuple[int, int] | None = None) -> str | Sheet:
    """A file as examples have it. sheet: rows and columns of its frames."""
    return str(path) if sheet is None else Sheet(path, *sheet)


def read(
    path: Path, prepare: Sequence[Transform], key: str = "image", sheet: tuple[int, int] | None = None
) -> np.ndarray | BrokenExample:
    """An image as the model gets it, uint8 [H, W, 3], or a video [F, H, W, 3], or the reason why there is none.

    Args:
      path: the file, or a folder of frames.
      prepare: see `preparation`.
      key: see `seen_by`.
      sheet: rows and columns of a picture's frames.
    """
    # The transforms of an evaluation also want captions; an empty one does no harm.
    example = prepared({key: encoded(path, sheet), "captions": [""]}, prepare)
    return example if isinstance(example, BrokenExample) else example[key]


def batches(
    files: Sequence[Path], read: Callable[[Path], np.ndarray | BrokenExample], size: int
) -> Iterator[tuple[Sequence[Path], list[np.ndarray | BrokenExample]]]:
    """Groups of `size` files with what `read` makes of each; the next group is read while the caller is busy with this one."""
    groups = [files[i : i + size] for i in range(0, len(files), size)]
    with ThreadPoolExecutor(THREADS) as pool:
        coming = pool.map(read, groups[0]) if groups else ()
        for group, following in zip(groups, [*groups[1:], []], strict=True):
            images, coming = coming, pool.map(read, following)
            yield group, list(images)
