"""The source "cub": birds and COCO in the layout that StackGAN, AttnGAN and their successors read."""

import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmgen_jax.core import registry
from mmgen_jax.data.image_transforms import decode
from mmgen_jax.data.pairs import (
    Pairs,
    Problems,
    Source,
    check_pickle,
    need_file,
    need_folder,
    on_disk,
    read_lines,
)

Box = tuple[float, float, float, float]
BOXES = ("none", "crop")


def cub(*, path: str, split: str | None = "train", boxes: str = "none", on_missing: str = "error") -> Source:
    """Images with a text file each, and lists of names for the splits.

        PATH/images/<name>.jpg             or CUB_200_2011/images/; <name> may have folders, 001.Albatross/Albatross_0001
        PATH/text/<name>.txt               one caption a line
        PATH/train/filenames.pickle        a list of names, or filenames.txt with one a line; likewise test/
        PATH/CUB_200_2011/bounding_boxes.txt and images.txt, for boxes="crop"

    Args:
      path: the folder of all this.
      split: "train", "test", or another folder with a list; None takes every text there is.
      boxes: "crop" cuts out the square of 1.5 times the longer side of the bird's box around its middle, as far as the image
        reaches (Zhang et al., 2017, StackGAN, section 4, crop the birds so); "none" does not.
      on_missing: what an image without captions gets: "error" or "skip".

    Raises:
      FileNotFoundError, ValueError: a file is absent, damaged, or another one than was expected; a pickle that is more than a
        list of strings is refused and none of its code is run.
    """
    crop = registry.choose(dict.fromkeys(BOXES, False) | {"crop": True}, boxes, "value of boxes")
    root = need_folder(path, "images/, text/, and train/filenames.pickle")
    images = root / "images" if (root / "images").is_dir() else root / "CUB_200_2011" / "images"
    texts = need_folder(root / "text", "a .txt of captions for each image")
    names, listing = _names(root, split, texts)
    problems = Problems(listing, on_missing)
    paths, captions = [], []
    for name in names:
        file = texts / f"{name}.txt"
        # Blank lines are usual in these files.
        lines = [line for _, line in read_lines(file) if line.strip()] if file.is_file() else []
        checked = problems.captions(lines, f"{name} (text/{name}.txt)")
        if checked:
            paths.append(f"{name}.jpg")
            captions.append(checked)
    problems.report()
    pairs = on_disk(images, paths, captions, listing)
    return Pairs(_Cropped(pairs, _boxes(root, paths)), captions, paths) if crop else pairs


def _names(root: Path, split: str | None, texts: Path) -> tuple[list[str], Path]:
    """The names of a split, without ".jpg", and what lists them."""
    if split is None:
        return sorted(str(file.relative_to(texts).with_suffix("")) for file in texts.rglob("*.txt")), texts
    folder = root / split
    if not folder.is_dir():
        splits = [child.name for child in root.iterdir() if any(child.glob("filenames.*"))]
        raise FileNotFoundError(
            f"{root} has no folder {split} with a list of names.{registry.nearest(split, splits)}"
        )
    if (folder / "filenames.txt").is_file():
        file = folder / "filenames.txt"
        names = [line.strip() for _, line in read_lines(file)]
    else:
        file = need_file(folder / "filenames.pickle", "a list of names; filenames.txt, one a line, does too")
        names = _unpickle(file)
    return [name.removesuffix(".jpg") for name in names if name], file


class _Plain(pickle.Unpickler):
    """Reads what needs no class and no function: lists, strings, numbers. So a file cannot run any code."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _unpickle(file: Path) -> list[str]:
    """The list of strings in a pickle, also one of Python 2."""
    remedy = "Write the names into filenames.txt beside it, one a line, and delete it."
    try:
        content = io.BytesIO(file.read_bytes())
        check_pickle(content)
        names = _Plain(content, encoding="latin1").load()
    except Exception as error:  # a damaged pickle raises all sorts of things
        raise ValueError(f"{file} is no whole pickle of a plain list: {error}. {remedy}") from None
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{file} holds no list of strings but {type(names).__name__}. {remedy}")
    return list(names)


def _boxes(root: Path, paths: Sequence[str]) -> list[Box]:
    """(left, top, width, height) in pixels of each image."""
    folder = root / "CUB_200_2011"
    number_of = {path: number for number, (path,) in _table(folder / "images.txt", 1).items()}
    boxes = _table(folder / "bounding_boxes.txt", 4)
    try:
        return [tuple(map(float, boxes[number_of[path]])) for path in paths]
    except (KeyError, ValueError) as error:
        raise ValueError(
            f'images.txt and bounding_boxes.txt in {folder} give no box for {error}. Copy both again, or set boxes="none".'
        ) from None


def _table(file: Path, columns: int) -> dict[str, list[str]]:
    """{image's number: the other columns}, of the files of CUB-200-2011."""
    table = {}
    need_file(file, f'CUB-200-2011\'s {file.name}; without it set boxes="none"')
    for number, line in read_lines(file):
        key, *values = line.split()
        if len(values) != columns:
            raise ValueError(
                f"{file}, line {number}: expected an image's number and {columns} more, found {line[:60]!r}."
            )
        table[key] = values
    return table


class _Cropped:
    """The images of a source, each cut down to what surrounds its box; uint8 [H, W, 3]."""

    def __init__(self, source: Source, boxes: Sequence[Box]):
        self._source, self._boxes = source, boxes

    def __getitem__(self, index: int) -> np.ndarray:
        image = decode()(self._source[index], np.random.default_rng(0))["image"]
        left, top, width, height = self._boxes[index]
        x, y, reach = left + width / 2, top + height / 2, 0.75 * max(width, height)
        corner = max(round(x - reach), 0), max(round(y - reach), 0)
        end = min(round(x + reach), image.width), min(round(y + reach), image.height)
        return np.asarray(image.crop((*corner, *end)))
