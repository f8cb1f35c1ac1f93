"""Six objects, each of a colour of its own, with relational and other questions: the idea of Sort-of-CLEVR, drawn as scenes are.

Santoro et al. (2017, arXiv:1706.01427, section 4.2) made the set to show what a network learns of relations. As there, objects
are circles or squares anywhere in the picture; unlike there, each answer that a question can have is as likely as the others.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmgen_jax.data import drawing, scenes
from mmgen_jax.data.answers import YES_NO, answer_type
from mmgen_jax.data.scene_questions import SPLITS, Pick, _checked, _noise, _picker, _size, _split
from mmgen_jax.data.scenes import LENGTHS

COLOURS = tuple(scenes.COLOURS)[:6]
SHAPES = ("circle", "square")
TYPES = ("relational", "non-relational")
RADIUS = 5.0  # pixels of a 64 x 64 image, as all lengths here; other sizes scale
PIXEL = 4  # positions are whole numbers, quarters of a pixel
MIDDLE, EDGE, APART = (
    32 * PIXEL,
    7 * PIXEL,
    14 * PIXEL,
)  # the least distance of an object's middle from border and others
CLEAR = 2 * PIXEL  # so much nearer, farther, or off the middle it must be, to be asked about


class Spot(NamedTuple):
    """One object: its middle is `y` below and `x` right of the top left corner, in quarters of a pixel of a 64 x 64 image."""

    colour: str
    shape: str
    y: int
    x: int


Spots = Sequence[Spot]


def _half(distance: int) -> str | None:
    """ "yes" left of (above) the middle."""
    return None if abs(distance) < CLEAR else YES_NO[distance > 0]


def _extreme(own: Spot, spots: Spots, sign: int) -> str | None:
    """The shape of the nearest (1) or the farthest (-1); None if another one is about as far."""
    others = sorted(
        (sign * math.sqrt((s.y - own.y) ** 2 + (s.x - own.x) ** 2), s.shape) for s in spots if s is not own
    )
    return None if others[1][0] - others[0][0] < CLEAR else others[0][1]


class Form(NamedTuple):
    """A kind of question: one of TYPES, its text, the possible answers, and (the object, all) -> the true one or None."""

    type: str
    text: str
    answers: tuple[str, ...]
    answer: Callable[[Spot, Spots], str | None]


FORMS = (
    Form("non-relational", "what shape is the {} object?", SHAPES, lambda own, spots: own.shape),
    Form("non-relational", "is the {} object in the left half?", YES_NO, lambda own, spots: _half(own.x - MIDDLE)),
    Form("non-relational", "is the {} object in the top half?", YES_NO, lambda own, spots: _half(own.y - MIDDLE)),
    Form("relational", "what shape is nearest to the {} object?", SHAPES, lambda own, spots: _extreme(own, spots, 1)),
    Form("relational", "what shape is farthest from the {} object?", SHAPES, lambda own, spots: _extreme(own, spots, -1)),
    Form(
        "relational",
        "how many objects have the shape of the {} object?",
        tuple(str(k + 1) for k in range(len(COLOURS))),
        lambda own, spots: str(sum(s.shape == own.shape for s in spots)),
    ),
)  # fmt: skip
_TEXTS = {form.text.format(colour): (form, colour) for form in FORMS for colour in COLOURS}


def answer(question: str, spots: Spots) -> str | None:
    """The true answer; None to a question that is none of these, or where it is too close to call."""
    if question not in _TEXTS:
        return None
    form, colour = _TEXTS[question]
    return form.answer(next(s for s in spots if s.colour == colour), spots)


def possible(question: str) -> tuple[str, ...]:
    """The answers that a question can have, each as likely in the data."""
    return _TEXTS[question][0].answers


def render(spots: Spots, look: int, size: int = 64, noise: float = 0.0) -> np.ndarray:
    """Draw the objects: uint8 [size, size, 3]. `look` is one integer for all else; for noise see `scenes.render`."""
    draws = drawing.draws(look)
    image, bits = drawing.background(draws, size)
    for s in spots:
        tints = next(draws).to_bytes(8, "little")[:3]
        place = s.y * size // 64, s.x * size // 64
        drawing.paint(image, s.shape, RADIUS * size / 64, *place, drawing.tinted(s.colour, tints))
    return drawing.finish(image, noise, bits)


def _shapes(form: Form, answer: str, own: int, pick: Pick) -> list[str]:
    """A shape for each object. All are drawn evenly, but where they alone decide the answer."""
    shapes = [pick(SHAPES) for _ in COLOURS]
    if form.type == "non-relational" and answer in SHAPES:
        shapes[own] = answer
    elif answer.isdigit():
        other = SHAPES[shapes[own] == SHAPES[0]]
        rest = [shapes[own]] * (int(answer) - 1) + [other] * (len(COLOURS) - int(answer))
        for k in range(len(COLOURS)):
            if k != own:
                shapes[k] = rest.pop(pick(range(len(rest))))
    return shapes


def _places(pick: Pick) -> list[tuple[int, int]] | None:
    """A place for each object, apart from each other; None if the last ones found no room."""
    places: list[tuple[int, int]] = []
    for _ in range(100):
        y, x = (pick(range(EDGE, 2 * MIDDLE - EDGE + 1)) for _ in range(2))
        if all((y - b) ** 2 + (x - a) ** 2 >= APART**2 for b, a in places):
            places.append((y, x))
            if len(places) == len(COLOURS):
                return places
    return None


@functools.lru_cache(maxsize=8192)
def _ask(*key: int) -> tuple[str, str]:
    """A question and the answer that it is to have, as `key` says."""
    pick = _picker(drawing.draws(*key))
    form = pick(FORMS)
    return form.text.format(pick(COLOURS)), pick(form.answers)


@functools.lru_cache(maxsize=8192)
def _spots(split: str, seed: int, index: int) -> tuple[tuple[Spot, ...], int]:
    """The objects that a question is about, and a look; of the split, by a hash of all shapes and places."""
    key = seed, SPLITS.index(split), index
    question, true = _ask(*key)
    draws: Iterator[int] = drawing.draws(*key, 1)
    pick, (form, colour) = _picker(draws), _TEXTS[question]
    while True:
        shapes, places = _shapes(form, true, COLOURS.index(colour), pick), _places(pick)
        if places is None:
            continue
        numbers = [SHAPES.index(shape) for shape in shapes] + [number for place in places for number in place]
        if scenes._hashed_split(numbers) != split:
            continue
        spots = tuple(Spot(c, s, *p) for c, s, p in zip(COLOURS, shapes, places, strict=True))
        if answer(question, spots) == true:
            return spots, next(draws)


class RelationalScenes:
    """Random access to questions about six objects.

    An example is {"image": uint8 [size, size, 3], "question": "what shape is nearest to the red object?", "answers":
    ["circle"], "question_type": "relational" or "non-relational", "answer_type": "other", "choices": ["circle", "square"],
    "name": "relational_scenes/train/17"}. It depends on these arguments and the index only. The three questions of each type
    are as likely as each other, and so are the answers that each can have. No two splits share shapes and places.

    Args:
      split: "train", "val" or "test".
      seed: another seed, other questions.
      size: width and height of the image in pixels, at least 24.
      length: number of questions; by default 1000, and endless (2^31 - 1) for train.
      noise: standard deviation of the pixel noise, as a share of white.
    """

    def __init__(
        self,
        split: str = "train",
        seed: int = 0,
        size: int = 64,
        length: int | None = None,
        noise: float = 0.0,
    ):
        self.split, self.seed, self.size, self.noise = _split(split), seed, _size(size), _noise(noise)
        self.length = LENGTHS[split] if length is None else length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        spots, look = self.spots(index)
        return {
            "image": render(spots, look, self.size, self.noise),
            "question": self.question(index),
            "answers": self.answers(index),
            "question_type": self.question_type(index),
            "answer_type": self.answer_type(index),
            "choices": self.choices(index),
            "name": self.name(index),
        }

    def captions(self, index: int) -> list[str]:
        """There are none."""
        del index
        return []

    def question(self, index: int) -> str:
        """The question of `self[index]`, without drawing it; so do the other methods."""
        return self._asked(index)[0]

    def answers(self, index: int) -> list[str]:
        """The one answer."""
        return [self._asked(index)[1]]

    def choices(self, index: int) -> list[str]:
        """The answers that the question can have, for a multiple choice."""
        return list(possible(self.question(index)))

    def question_type(self, index: int) -> str:
        """One of TYPES."""
        return _TEXTS[self.question(index)][0].type

    def answer_type(self, index: int) -> str:
        """ "yes/no", "number" or "other"."""
        return answer_type(self._asked(index)[1])

    def name(self, index: int) -> str:
        """What messages call the example."""
        return f"relational_scenes/{self.split}/{index}"

    def spots(self, index: int) -> tuple[tuple[Spot, ...], int]:
        """The objects that are asked about, and the look of the picture."""
        return _spots(self.split, self.seed, _checked(self, index))

    def _asked(self, index: int) -> tuple[str, str]:
        return _ask(self.seed, SPLITS.index(self.split), _checked(self, index))
