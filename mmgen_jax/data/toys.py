"""Toy sets whose modes are known, to count what a generator has found: points in the plane, and stacks of three digits."""

import functools
import itertools
import operator
from typing import Any

import numpy as np

from mmgen_jax.core import registry
from mmgen_jax.data.idx import read_idx

ENDLESS = 2**31 - 1
BLOCK = 256  # points that are drawn together


def _ring() -> np.ndarray:
    angles = 2 * np.pi * np.arange(8) / 8
    return 2.0 * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _grid() -> np.ndarray:
    return np.array(list(itertools.product((-4.0, -2.0, 0.0, 2.0, 4.0), repeat=2)))


# The middles of the modes, float64 [M, 2], and their standard deviation.
LAYOUTS = {"ring": (_ring, 0.02), "grid": (_grid, 0.05)}


class Gaussians:
    """Points of equally likely round Gaussians: the ring of Metz et al. (2017, Unrolled GANs, section 3.1), or a grid.

    The ring has 8 modes at radius 2 with standard deviation 0.02; the grid 25, two apart, with 0.05 (VEEGAN, Srivastava
    et al., 2017, has both sets; Azadi et al., 2019, this grid). A sample is usually counted as good within three or four
    standard deviations of a mode. An example is {"image": float32 [1, 1, 2], "name": "gaussians/ring/17"}, and depends on
    these arguments and the index only; there are no captions.

    Args:
      layout: "ring" or "grid".
      std: another standard deviation.
      seed: another seed, other points.
      length: number of points; by default endless (2^31 - 1).

    Attributes:
      modes: float64 [M, 2]; std: of each of their coordinates.
    """

    def __init__(self, layout: str = "ring", std: float | None = None, seed: int = 0, length: int = ENDLESS):
        modes, usual = registry.choose(LAYOUTS, layout, "layout of gaussians")
        self.modes, self.std = modes(), usual if std is None else std
        if self.std <= 0:
            raise ValueError(f"std is {std}: a standard deviation is positive.")
        self.layout, self.seed, self.length = layout, seed, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        block, place = divmod(_checked(self, index), BLOCK)
        return {"image": _points(self.layout, self.std, self.seed, block)[place], "name": self.name(index)}

    def captions(self, index: int) -> list[str]:
        """There are none."""
        del index
        return []

    def name(self, index: int) -> str:
        """What messages call the point."""
        return f"gaussians/{self.layout}/{index}"


class StackedDigits:
    """Three random digits as the red, green and blue of one image: 1,000 modes (Metz et al., 2017, section 3.3.1).

    An example is {"image": uint8 [28, 28, 3], "label": int32 [3], "name": "stacked_digits/17"}, and depends on these
    arguments and the index only; there are no captions.

    Args:
      images, labels: idx files as those of MNIST, see the source "idx".
      digits: "all", or "train" or "held_out": stacks of the first nine tenths of the digits, or of the last tenth.
      seed: another seed, other stacks.
      length: number of stacks; by default endless (2^31 - 1).
    """

    def __init__(self, images: str, labels: str, digits: str = "all", seed: int = 0, length: int = ENDLESS):
        pixels, kinds = read_idx(images, 3), read_idx(labels, 1)
        if len(pixels) != len(kinds):
            raise ValueError(f"{images} has {len(pixels)} images, {labels} has {len(kinds)} labels.")
        cut = len(pixels) * 9 // 10
        parts = {"all": slice(None), "train": slice(cut), "held_out": slice(cut, None)}
        part = registry.choose(parts, digits, "choice of digits")
        self._pixels, self._kinds = pixels[part], kinds[part].astype(np.int32)
        self.seed, self.length = seed, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        chosen = self._chosen(index)
        image = np.stack(list(self._pixels[chosen]), axis=-1)
        return {"image": image, "label": self._kinds[chosen], "name": self.name(index)}

    def captions(self, index: int) -> list[str]:
        """There are none."""
        del index
        return []

    def label(self, index: int) -> np.ndarray:
        """The three digits of `self[index]`, without making its image."""
        return self._kinds[self._chosen(index)]

    def name(self, index: int) -> str:
        """What messages call the stack."""
        return f"stacked_digits/{index}"

    def _chosen(self, index: int) -> np.ndarray:
        return _rng(self.seed, _checked(self, index)).integers(len(self._pixels), size=3)


@functools.lru_cache(maxsize=16)
def _points(layout: str, std: float, seed: int, block: int) -> np.ndarray:
    """So many points at a time, which costs no more than a few one by one. float32 [BLOCK, 1, 1, 2]."""
    rng, modes = _rng(seed, block), LAYOUTS[layout][0]()
    points = modes[rng.integers(len(modes), size=BLOCK)] + std * rng.standard_normal((BLOCK, 2))
    points = points.astype(np.float32).reshape(BLOCK, 1, 1, 2)
    points.flags.writeable = False  # they are handed out again
    return points


def _checked(source: Gaussians | StackedDigits, index: int) -> int:
    index = operator.index(index)
    if not 0 <= index < source.length:
        raise IndexError(f"There is no example {index}; the source has {source.length}.")
    return index


def _rng(seed: int, index: int) -> np.random.Generator:
    """A stream of random numbers of its own for each seed and index."""
    return np.random.Generator(np.random.Philox(key=[seed, index]))
