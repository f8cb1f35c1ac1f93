"""The source "idx": the MNIST family, images and labels in idx files."""

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmgen_jax.data.pairs import Labelled, Source, gunzip, need_file

MOST = 2**31  # bytes of a decompressed file, which stay in memory; MNIST has 47 million


def idx(
    *,
    images: str,
    labels: str,
    classes: Sequence[str],
    templates: Sequence[str] = ("a picture of {name}",),
) -> Source:
    """The MNIST family: idx files, plain or .gz; each class name is put into every template to make captions.

    Args:
      images: the idx3 file, uint8 [N, H, W].
      labels: the idx1 file, uint8 [N].
      classes: names of the labels 0, 1, ...
      templates: captions with {name} in the place of the class's name.
    """
    for template in templates:
        if "{name}" not in template:
            raise ValueError(
                f"The caption template {template!r} lacks {{name}}, the place of the class name."
            )
    pixels, kinds = read_idx(images, 3), read_idx(labels, 1)
    if len(pixels) != len(kinds):
        what = "images without captions" if len(pixels) > len(kinds) else "captions without images"
        raise ValueError(f"{images} has {len(pixels)} images, {labels} has {len(kinds)} labels: {what}.")
    if len(kinds) and kinds.max() >= len(classes):
        raise ValueError(
            f"{labels} has the label {kinds.max()} at index {kinds.argmax()}, but `classes` has only "
            f"{len(classes)} names."
        )
    texts = [[template.format(name=name) for template in templates] for name in classes]
    names = [f"{Path(images).name}[{i}]" for i in range(len(pixels))]
    return Labelled(_Grey(pixels), [texts[kind] for kind in kinds], names, kinds, classes)


class _Grey:
    """Grey images [N, H, W], given out as [H, W, 3]."""

    def __init__(self, pixels: np.ndarray):
        self._pixels = pixels

    def __getitem__(self, index: int) -> np.ndarray:
        return np.repeat(self._pixels[index][:, :, None], 3, axis=-1)


def read_idx(path: str, dimensions: int) -> np.ndarray:
    """A uint8 idx file with so many dimensions (yann.lecun.com/exdb/mnist), plain or gzip."""
    file = need_file(path, "an idx file of the MNIST family, such as train-images-idx3-ubyte.gz")
    data = file.read_bytes()
    try:
        if data.startswith(b"\x1f\x8b"):
            data = gunzip(data, MOST)
        zeros, kind, rank = struct.unpack_from(">HBB", data)
        if zeros or kind != 8 or rank != dimensions:
            raise ValueError(
                f"{file} is no idx file of unsigned bytes in {dimensions} dimensions (it begins with "
                f"{data[:4].hex(' ')}). Are images and labels swapped?"
            )
        shape = struct.unpack_from(f">{rank}I", data, 4)
    except (EOFError, OSError, struct.error, zlib.error) as error:
        raise ValueError(f"{file} is cut or damaged ({error}). Download it again.") from None
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * rank)
    if values.size != np.prod(shape):
        raise ValueError(
            f"{file} is cut: its header promises {list(shape)} values, it holds {values.size} bytes. "
            "Download it again."
        )
    return values.reshape(shape)


def idx_bytes(values: np.ndarray) -> bytes:
    """The plain idx file of a uint8 array, as `read_idx` reads it."""
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()
