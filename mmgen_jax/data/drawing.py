"""Drawing shapes on backgrounds: integer or IEEE-exact arithmetic and hashed numbers, so that every machine draws the same.

What is drawn where is up to the worlds: data/scenes.py, data/relational_scenes.py and data/clips.py.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

COLOURS = {  # name: red, green, blue; each object's own colour lies within TINT of it
    "red": (222, 36, 36),
    "green": (36, 176, 58),
    "blue": (34, 78, 236),
    "yellow": (240, 214, 40),
    "purple": (146, 40, 196),
    "cyan": (50, 214, 226),
    "pink": (242, 132, 184),
    "white": (240, 240, 240),
}
TINT = 12

_MASK = 2**64 - 1
_SUPER = 8  # samples a pixel and axis in the outline masks
_LEVELS = _SUPER * _SUPER  # opacity and background weights are integers from 0 to this


def _mix(z: int) -> int:
    """Scramble 64 bits (the finalizer of SplitMix64; Steele, Lea and Flood 2014)."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def draws(*key: int) -> Iterator[int]:
    """An endless stream of 64-bit integers that depends on `key` only."""
    state = 0
    for part in key:
        state = _mix((state + part + 0x9E3779B97F4A7C15) & _MASK)
    while True:
        state = (state + 0x9E3779B97F4A7C15) & _MASK
        yield _mix(state)


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # A point is inside a pentagram when it is on the inner side of at least four of its five lines. The
    # constants are cosines and sines of multiples of 72 degrees; the lines' distance is cos 72 too.
    normals = ((0.0, -1.0), (0.9511, -0.309), (-0.9511, -0.309), (0.5878, 0.809), (-0.5878, 0.809))
    return sum((a * x + b * y <= 0.309).astype(np.int8) for a, b in normals) >= 4


def _heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = 1.2 * x, 0.12 - 1.15 * y
    r = x * x + y * y - 1
    return r * r * r <= x * x * y * y * y


# Is a point inside? x to the right, y down; every shape fills most of the square from -1 to 1.
OUTLINES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "circle": lambda x, y: x * x + y * y <= 0.92,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) <= 0.84,
    "triangle": lambda x, y: (abs(x) <= 0.54 * (y + 0.95)) & (y <= 0.8),
    "diamond": lambda x, y: abs(x) * 1.4 + abs(y) <= 1,
    "star": lambda x, y: _star(x * 0.95, y * 0.95 - 0.05),
    "cross": lambda x, y: (np.minimum(abs(x), abs(y)) <= 0.3) & (np.maximum(abs(x), abs(y)) <= 0.92),
    "ring": lambda x, y: (x * x + y * y <= 1) & (x * x + y * y >= 0.34),
    "heart": _heart,
}


_HALF = 0.7071067811865476  # the cosine of an eighth of a turn
_TURNS = (
    (1, 0),
    (_HALF, _HALF),
    (0, 1),
    (-_HALF, _HALF),
    (-1, 0),
    (-_HALF, -_HALF),
    (0, -1),
    (_HALF, -_HALF),
)


@functools.cache
def _outline(shape: str, radius: float, dy: int, dx: int, turn: int) -> tuple[int, int, np.ndarray]:
    """Opacity of a shape in a box around its middle, (dy, dx) quarters of a pixel off a pixel corner.

    It is turned clockwise by `turn` eighths. Returns the box's first row and column relative to that pixel, and the opacity,
    int16 [rows, 3 * columns].
    """
    reach = math.ceil(radius * (1.3 if turn else 1.0)) + 1  # the corner of a square, turned, reaches further
    samples = np.arange(-reach * _SUPER, reach * _SUPER) * 2 + 1  # in units of 1 / (2 * _SUPER) pixel
    quarter = _SUPER // 2
    x = (samples - quarter * dx)[None, :] / (2 * _SUPER * radius)
    y = (samples - quarter * dy)[:, None] / (2 * _SUPER * radius)
    if turn:
        cosine, sine = _TURNS[turn]
        x, y = cosine * x + sine * y, cosine * y - sine * x
    inside = OUTLINES[shape](x, y).reshape(2 * reach, _SUPER, 2 * reach, _SUPER)
    alpha = inside.sum(axis=(1, 3)).astype(np.int16)
    rows, columns = np.flatnonzero(alpha.any(axis=1)), np.flatnonzero(alpha.any(axis=0))
    alpha = alpha[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return int(rows[0]) - reach, int(columns[0]) - reach, np.repeat(alpha, 3, axis=1)


@functools.cache
def _backgrounds(size: int) -> list[np.ndarray]:
    """Weights of the second background colour in each kind of background, int16 [size, 3 * size] each."""
    y, x = np.mgrid[:size, :size]
    fine, coarse = max(size // 16, 1), max(size // 8, 1)
    far = size * size // 2
    kinds = [
        np.zeros((size, size), int),  # one colour
        y * _LEVELS // size,  # gradients
        x * _LEVELS // size,
        (x + y) * _LEVELS // (2 * size),
        (x + size - y) * _LEVELS // (2 * size),
        ((2 * x - size) ** 2 + (2 * y - size) ** 2) * _LEVELS // (4 * far),  # a spot
        (x // coarse + y // coarse) % 2 * _LEVELS,  # checkers
        (x // fine + y // fine) % 2 * _LEVELS,
        y // fine % 2 * _LEVELS,  # stripes
        x // coarse % 2 * _LEVELS,
        (x + y) // coarse % 2 * _LEVELS,
        (x + size - y) // fine % 2 * _LEVELS,
    ]
    return [np.repeat(kind.astype(np.int16), 3, axis=1) for kind in kinds]


@functools.cache
def _noise(size: int, std: float) -> np.ndarray:
    """A table of noise near to normal, int16 [2 * 3 * size * size]; an image takes a part of it."""
    raw = np.random.PCG64(0).random_raw(6 * size * size)  # raw streams are the same in every NumPy
    total = sum(((raw >> shift) & 0xFFFF).astype(np.float64) for shift in (0, 16, 32, 48))
    unit = (total - 2 * 65535) / 37837.0  # a sum of four uniform numbers has this standard deviation
    return np.floor(unit * (std * 255) + 0.5).astype(np.int16)


def _row(colour: Iterable[int], width: int) -> np.ndarray:
    return np.frombuffer(bytes(colour) * width, np.uint8).astype(np.int16)


def background(draws: Iterator[int], size: int) -> tuple[np.ndarray, int]:
    """A background, int16 [size, 3 * size], and the bits that `finish` takes; `draws` has gone on by two."""
    b = next(draws).to_bytes(8, "little")
    base = 62 + (b[0] & 63)  # grey with a tint: dim beside the objects
    first = [base + (tint & 31) - 16 for tint in b[1:4]]
    change = (b[4] & 15) + 10 if b[4] & 16 else -(b[4] & 15) - 10
    second = [min(max(c + change + (tint & 15) - 8, 24), 150) for c, tint in zip(first, b[5:8], strict=True)]
    bits = next(draws)
    kinds = _backgrounds(size)
    low = _row(first, size)
    image = kinds[bits % len(kinds)] * (_row(second, size) - low)
    image >>= 6
    image += low
    return image, bits


def tinted(colour: str, tints: Iterable[int]) -> list[int]:
    """An object's own red, green and blue, within TINT of the colour's. tints: three bytes."""
    return [c + (tint * (2 * TINT + 1) >> 8) - TINT for c, tint in zip(COLOURS[colour], tints, strict=True)]


def paint(
    image: np.ndarray, shape: str, radius: float, y: int, x: int, colour: Sequence[int], turn: int = 0
) -> None:
    """Draw an object into int16 [size, 3 * size]: its middle is at (y, x), quarters of a pixel; turn in eighths, clockwise."""
    top, left, alpha = _outline(shape, radius, y & 3, x & 3, turn)
    top, left, (rows, width) = top + (y >> 2), 3 * (left + (x >> 2)), alpha.shape
    box = image[top : top + rows, left : left + width]
    mix = _row(colour, width // 3) - box
    mix *= alpha
    mix >>= 6
    box += mix


def finish(image: np.ndarray, noise: float, bits: int) -> np.ndarray:
    """The picture with its noise, chosen by `bits`. int16 [size, 3 * size] -> uint8 [size, size, 3]."""
    size = len(image)
    if noise:
        offset = (bits >> 8) % (3 * size * size)
        image += _noise(size, noise)[offset : offset + 3 * size * size].reshape(size, 3 * size)
        np.clip(image, 0, 255, out=image)
    return image.astype(np.uint8).reshape(size, size, 3)
