"""Image files as a finished run wants them: found below folders, read and cut as its evaluation reads and cuts."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from mmgen_jax.data import transforms
from mmgen_jax.data.quarantine import BrokenExample
from mmgen_jax.data.transforms import Example, Transform
from mmgen_jax.experiment import Experiment

SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
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
    if "decode" in transforms.names(experiment.config.evals[name].transforms):
        return evaluator.transforms
    # The source makes arrays of the right size, as scenes does: files are cut to that size.
    height, width = evaluator.source[0]["image"].shape[:2]
    cut = [
        transforms.decode(),
        transforms.resize(max(height, width)),
        transforms.center_crop((height, width)),
    ]
    return cut + evaluator.transforms


def prepared(example: Example, prepare: Sequence[Transform]) -> Example | BrokenExample:
    """An example as the model gets it, its image uint8 [H, W, 3], or the reason why there is none."""
    rng = np.random.default_rng(0)
    try:
        for transform in prepare:
            example = transform(example, rng)
    except BrokenExample as broken:
        return broken
    return example


def read(path: Path, prepare: Sequence[Transform]) -> np.ndarray | BrokenExample:
    """An image as the model gets it, uint8 [H, W, 3], or the reason why there is none."""
    # The transforms of an evaluation also want captions; an empty one does no harm.
    example = prepared({"image": str(path), "captions": [""]}, prepare)
    return example if isinstance(example, BrokenExample) else example["image"]


def batches(
    files: Sequence[Path], prepare: Sequence[Transform], size: int
) -> Iterator[tuple[Sequence[Path], list[np.ndarray | BrokenExample]]]:
    """Groups of `size` files with their images; the next group is read while the caller is busy with this one."""
    groups = [files[i : i + size] for i in range(0, len(files), size)]
    with ThreadPoolExecutor(THREADS) as pool:
        start = partial(pool.map, partial(read, prepare=prepare))
        coming = start(groups[0]) if groups else ()
        for group, following in zip(groups, [*groups[1:], []], strict=True):
            images, coming = coming, start(following)
            yield group, list(images)
