"""Pictures: attention (an image, its caption, where the model looked for each word), and contact sheets of search results."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FRAME = (0.1, 0.65, 0.2)  # of a marked image


def attention(
    path: Path,
    images: Sequence[np.ndarray],
    captions: Sequence[Sequence[str]],
    weights: Sequence[np.ndarray],
    titles: Sequence[str] | None = None,
    columns: int = 12,
) -> Path:
    """Write a PNG with a row (or more, for long captions) an image: the image, then one map a word over the dimmed image.

    Args:
      path: the file to write.
      images: uint8 [H, W, 3].
      captions: words (or pieces), as many as there are maps.
      weights: float [T, P], the positions of a grid of the image's proportions, row by row; rows behind the words are left out.
      titles: a line above each image; default its caption.
      columns: maps in a row.
    """
    # The object interface needs no display and leaves the user's pyplot alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = [max(1, -(-len(words) // columns)) for words in captions]
    width = min(columns, max((len(words) for words in captions), default=1)) + 1.4
    figure = Figure(figsize=(1.15 * width, 1.45 * sum(lines) + 0.2), layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subfigures(len(images), 1, height_ratios=lines, squeeze=False)[:, 0]
    titles = titles or [" ".join(words) for words in captions]
    for row, image, words, maps, title, count in zip(
        rows, images, captions, weights, titles, lines, strict=True
    ):
        row.suptitle(title, fontsize=9, x=0.01, ha="left", fontweight="bold")
        ratios = [1.4] + [1] * int(width - 1.4)
        axes = row.subplots(count, len(ratios), width_ratios=ratios, squeeze=False)
        for axis in axes.flat:
            axis.axis("off")
        axes[0, 0].imshow(image)
        for i, word in enumerate(words):
            axis = axes[i // columns, 1 + i % columns]
            _overlay(axis, image, maps[i])
            axis.set_title(word, fontsize=8, pad=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


def contact_sheet(
    path: Path,
    rows: Sequence[Sequence[np.ndarray]],
    titles: Sequence[str],
    captions: Sequence[Sequence[str]],
    marks: Sequence[Sequence[bool]] | None = None,
) -> Path:
    """Write a PNG with a line of images under each title: what was asked, and what was found.

    Args:
      path: the file to write.
      rows: images, uint8 [H, W, 3] of any size; rows may differ in length.
      titles: one a row.
      captions: a text under each image; long ones are wrapped.
      marks: which images get a frame, such as the right answers; None frames none.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = max((len(row) for row in rows), default=1) or 1
    wrapped = [[_wrap(text, 20) for text in row] for row in captions]
    lines = [max((text.count("\n") + 1 if text else 0 for text in row), default=0) for row in wrapped]
    heights = [1.4 + 0.45 + 0.13 * count for count in lines]
    figure = Figure(figsize=(1.4 * max(columns, 3) + 0.2, sum(heights) + 0.1), layout="constrained")
    FigureCanvasAgg(figure)
    parts = figure.subfigures(len(rows), 1, height_ratios=heights, squeeze=False)[:, 0] if rows else ()
    marks = marks or [[False] * len(row) for row in rows]
    for part, images, title, texts, marked in zip(parts, rows, titles, wrapped, marks, strict=True):
        part.suptitle(_plain(title), fontsize=9, x=0.01, ha="left", fontweight="bold")
        axes = part.subplots(1, max(columns, 3), squeeze=False)[0]
        for axis in axes[len(images) :]:
            axis.axis("off")
        for axis, image, text, mark in zip(axes, images, texts, marked, strict=False):
            axis.imshow(image)
            axis.set(xticks=[], yticks=[])
            axis.set_xlabel(text, fontsize=7, labelpad=4)
            axis.spines[:].set(color=FRAME, linewidth=4, visible=bool(mark))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


def _plain(text: str) -> str:
    """Dollar signs as themselves: two of them would begin a formula."""
    return text.replace("$", r"\$")


def _wrap(text: str, width: int, most: int = 5) -> str:
    """Lines of about `width` letters, at most `most` of them."""
    lines = textwrap.wrap(text, width, max_lines=most, placeholder=" ...")
    return _plain("\n".join(lines))


def _overlay(axis: Any, image: np.ndarray, weights: np.ndarray) -> None:
    """The image as under a lamp: bright where the model looked, dark elsewhere; each map is scaled by its own largest weight."""
    height, width = image.shape[:2]
    maps = (
        (weights / max(float(weights.max()), 1e-6))
        .reshape(_grid(len(weights), height / width))
        .astype(np.float32)
    )
    lamp = np.asarray(Image.fromarray(maps).resize((width, height), Image.Resampling.BICUBIC))
    axis.imshow((image * (0.15 + 0.85 * lamp.clip(0, 1)[..., None])).astype(np.uint8))


def _grid(positions: int, ratio: float) -> tuple[int, int]:
    """The (rows, columns) with rows x columns = positions whose proportion is nearest to `ratio`."""
    pairs = [(rows, positions // rows) for rows in range(1, positions + 1) if positions % rows == 0]
    return min(pairs, key=lambda pair: abs(np.log(pair[0] / pair[1] / ratio)))
