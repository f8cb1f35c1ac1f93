"""The embedded world: drawn scenes of a few objects, with captions from a written probabilistic grammar.

Endless, no download, and the best reachable loss is known exactly. Randomness is integer hashing, and drawing
is integer or IEEE-exact arithmetic, so that a seed gives the same images and captions on every machine.
"""

import functools
import itertools
import math
import operator
import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmgen_jax.core.registry import nearest
from mmgen_jax.data import drawing
from mmgen_jax.data.drawing import COLOURS

# ------------------------------------------------------------------------------------------------ the world

SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "ring", "heart")
RADIUS = {"small": 5.0, "large": 8.5}  # pixels of a 64 x 64 image; other sizes scale
JITTER = {"small": 3.0, "large": 1.5}  # the largest offset of an object from the middle of its cell, likewise
GRID = 3  # cells a side; a cell holds at most one object
SPLITS = ("train", "val", "test", "compositional")
LENGTHS = {"train": 2**31 - 1, "val": 1000, "test": 1000, "compositional": 1000}
CAPTIONS = 5  # captions a scene

# One shape of each colour, and one colour of each shape, is seen in the compositional split only.
HELD_OUT = frozenset((colour, SHAPES[(3 * k + 1) % len(SHAPES)]) for k, colour in enumerate(COLOURS))


class Object(NamedTuple):
    """What can be said of one object; `row` and `column` are its cell, counted from the top left."""

    colour: str
    shape: str
    size: str
    row: int
    column: int


class Scene(NamedTuple):
    """What the captions depend on (`objects`), and one integer for the rest of the image (`look`)."""

    objects: tuple[Object, ...]
    look: int = 0


# ---------------------------------------------------------------------------------------------- the grammar

# symbol: {what it becomes: probability}. Words in capitals are symbols again. The scene binds the other ones:
# X, Y, Z are the mentioned objects in the order of their mention; XY, XZ, YZ are the relation of the two,
# drawn evenly from the true ones; AT is the place of X; SIZE, COLOUR and SHAPE are the object's own.
RULES = {
    "OPENING": {"": 0.4, "there is": 0.3, "a picture of": 0.15, "we see": 0.15},
    "LEFT": {"to the left of": 0.5, "left of": 0.5},
    "RIGHT": {"to the right of": 0.5, "right of": 0.5},
    "ABOVE": {"above": 0.7, "over": 0.3},
    "BELOW": {"below": 0.6, "under": 0.4},
    "NW": {"in the TOP left": 1.0},
    "N": {"in the TOP MIDDLE": 1.0},
    "NE": {"in the TOP right": 1.0},
    "W": {"in the MIDDLE left": 1.0},
    "C": {"in the MIDDLE": 1.0},
    "E": {"in the MIDDLE right": 1.0},
    "SW": {"in the BOTTOM left": 1.0},
    "S": {"in the BOTTOM MIDDLE": 1.0},
    "SE": {"in the BOTTOM right": 1.0},
    "TOP": {"top": 0.7, "upper": 0.3},
    "MIDDLE": {"middle": 0.7, "center": 0.3},
    "BOTTOM": {"bottom": 0.7, "lower": 0.3},
    "LARGE": {"large": 0.6, "big": 0.4},
    "SMALL": {"small": 0.7, "tiny": 0.3},
    "CIRCLE": {"circle": 0.8, "disc": 0.2},
    "SQUARE": {"square": 0.8, "box": 0.2},
    "TRIANGLE": {"triangle": 1.0},
    "DIAMOND": {"diamond": 0.8, "rhombus": 0.2},
    "STAR": {"star": 1.0},
    "CROSS": {"cross": 0.7, "plus": 0.3},
    "RING": {"ring": 0.8, "hoop": 0.2},
    "HEART": {"heart": 1.0},
}
MENTIONED = {  # objects in the scene: {objects said: probability}
    1: {1: 1.0},
    2: {1: 0.15, 2: 0.85},
    3: {1: 0.1, 2: 0.3, 3: 0.6},
}
CAPTION = {  # objects said: {caption: probability}; which objects, and in what order, is drawn evenly
    1: {"OPENING X": 0.5, "OPENING X AT": 0.3, "X is AT": 0.2},
    2: {"OPENING X and Y": 0.3, "OPENING X XY Y": 0.5, "X is XY Y": 0.2},
    3: {
        "OPENING X and Y and Z": 0.3,
        "OPENING X XY Y and Z": 0.3,
        "OPENING X and Y YZ Z": 0.2,
        "X is XY Y and XZ Z": 0.2,
    },
}
PHRASE = {  # does another object of the scene have this shape? {phrase: probability}
    True: {"a COLOUR SHAPE": 0.5, "a SIZE COLOUR SHAPE": 0.5},
    False: {"a COLOUR SHAPE": 0.45, "a SIZE COLOUR SHAPE": 0.45, "a SHAPE": 0.05, "a SIZE SHAPE": 0.05},
}
RELATIONS = {  # symbol: does it hold between two objects?
    "LEFT": lambda a, b: a.column < b.column,
    "RIGHT": lambda a, b: a.column > b.column,
    "ABOVE": lambda a, b: a.row < b.row,
    "BELOW": lambda a, b: a.row > b.row,
}
PLACES = ("NW", "N", "NE", "W", "C", "E", "SW", "S", "SE")  # the symbol of cell 3 * row + column
SLOTS = "XYZ"


def _expand(text: str, rules: dict[str, dict[str, float]]) -> dict[str, float]:
    """Every string of words that `text` can become, with its probability."""
    result = {"": 1.0}
    for word in text.split():
        choices: dict[str, float] = {}
        if word in rules:
            for expansion, p in rules[word].items():
                for words, q in _expand(expansion, rules).items():
                    choices[words] = choices.get(words, 0.0) + p * q
        else:
            choices[word] = 1.0
        result = {f"{a} {b}".strip(): p * q for a, p in result.items() for b, q in choices.items()}
    return result


def _frames(caption: str, bindings: dict[str, dict[str, float]]) -> dict[str, float]:
    """What a form of CAPTION can become, with "{}" for each object's phrase, and the probabilities."""
    return _expand(caption, RULES | bindings | {slot: {"{}": 1.0} for slot in SLOTS})


class Table:
    """A distribution over `items`: draws, `probability` of each, `entropy` in nats."""

    def __init__(self, probability: dict):
        self.probability = probability
        self.items = list(probability)
        self.cumulative = list(itertools.accumulate(probability.values()))[:-1]
        self.entropy = -sum(p * math.log(p) for p in probability.values())

    def draw(self, bits: int) -> Any:
        """One item, chosen by 64 random bits."""
        return self.items[bisect_right(self.cumulative, (bits >> 11) * 2.0**-53)]


@functools.cache
def _phrases(colour: str, shape: str, size: str, twin: bool) -> Table:
    """What an object can be called; `twin` says whether the scene has another object of that shape."""
    bindings = {"COLOUR": {colour: 1.0}, "SHAPE": {shape.upper(): 1.0}, "SIZE": {size.upper(): 1.0}}
    return Table(_expand("PHRASE", RULES | bindings | {"PHRASE": PHRASE[twin]}))


@functools.cache
def _frame_table(cells: tuple[tuple[int, int], ...]) -> Table:
    """Distribution over (frame, which objects fill its slots) for objects in these (row, column) cells."""
    objects = [Object("", "", "", *cell) for cell in cells]
    table: dict[tuple[str, tuple[int, ...]], float] = {}
    for count, p in MENTIONED[len(cells)].items():
        orders = list(itertools.permutations(range(len(cells)), count))
        for order in orders:
            said = [objects[k] for k in order]
            bindings = {"AT": {PLACES[GRID * said[0].row + said[0].column]: 1.0}}
            for i, j in itertools.combinations(range(count), 2):
                true = [name for name, holds in RELATIONS.items() if holds(said[i], said[j])]
                bindings[SLOTS[i] + SLOTS[j]] = dict.fromkeys(true, 1.0 / len(true))
            for caption, q in CAPTION[count].items():
                for frame, r in _frames(caption, bindings).items():
                    table[frame, order] = table.get((frame, order), 0.0) + p / len(orders) * q * r
    return Table(table)


@functools.lru_cache(maxsize=4096)
def _tables(objects: tuple[Object, ...]) -> tuple[Table, list[Table]]:
    """The scene's table of frames, and of phrases for each object.

    The draws are independent and a caption shows all of them (no two objects of a scene share colour and
    shape, and a phrase without a colour is used only for a shape that occurs once), so that probabilities
    multiply and entropies add.
    """
    shapes = [o.shape for o in objects]
    phrases = [_phrases(o.colour, o.shape, o.size, shapes.count(o.shape) > 1) for o in objects]
    return _frame_table(tuple((o.row, o.column) for o in objects)), phrases


def _say(objects: tuple[Object, ...], draws: Iterator[int]) -> str:
    frames, phrases = _tables(objects)
    frame, order = frames.draw(next(draws))
    return frame.format(*[phrases[k].draw(next(draws)) for k in order])


def sample_caption(scene: Scene, seed: int = 0) -> str:
    """One caption of the scene, drawn from the grammar."""
    return _say(scene.objects, drawing.draws(seed))


def entropy(scene: Scene) -> tuple[float, float]:
    """Exact entropy of a caption given the scene, in nats, and its expected tokens, with the end token."""
    frames, phrases = _tables(scene.objects)
    words = [sum(p * (s.count(" ") + 1) for s, p in table.probability.items()) for table in phrases]
    nats, tokens = frames.entropy, 1.0
    for (frame, order), p in frames.probability.items():
        nats += p * sum(phrases[k].entropy for k in order)
        tokens += p * (frame.count(" ") + 1 - len(order) + sum(words[k] for k in order))
    return nats, tokens


def entropy_per_token(scenes: Iterable[Scene]) -> float:
    """The lowest mean cross-entropy that a model can reach on these scenes: nats a token, with end tokens."""
    nats, tokens = np.sum([entropy(scene) for scene in scenes], axis=0)
    return float(nats / tokens)


# ------------------------------------------------------------------------------------------------- parsing


class Claim(NamedTuple):
    """What a caption says: (size or None, colour or None, shape) of each object, relations as {"XY": "LEFT"},
    and the place of X.
    """

    objects: list[tuple[str | None, str | None, str]]
    relations: dict[str, str]
    place: str | None


def _words(names: Iterable[str]) -> dict[str, str]:
    """{word: the name that it stands for}."""
    return {word: name for name in names for word in RULES[name.upper()]}


_SIZE, _SHAPE = _words(RADIUS), _words(SHAPES)
_PHRASE = re.compile(rf"\ba(?: ({'|'.join(_SIZE)}))?(?: ({'|'.join(COLOURS)}))? ({'|'.join(_SHAPE)})\b")


@functools.cache
def _meanings() -> dict[str, dict[str, str]]:
    """Every frame of the grammar, with what it says: {"XY": "LEFT"}, {"AT": "NW"}, or nothing."""
    meanings = {}
    for caption in itertools.chain.from_iterable(CAPTION.values()):
        symbols = [s for s in ("XY", "XZ", "YZ", "AT") if s in caption.split()]
        for names in itertools.product(*[PLACES if s == "AT" else RELATIONS for s in symbols]):
            said = dict(zip(symbols, names, strict=True))
            for frame in _frames(caption, {symbol: {name: 1.0} for symbol, name in said.items()}):
                meanings[frame] = said
    return meanings


def _split_caption(caption: str) -> tuple[str, list[re.Match]] | None:
    """The caption's frame and its phrases; None if the grammar has no such caption."""
    phrases = list(_PHRASE.finditer(caption))
    frame = _PHRASE.sub("{}", caption)
    if frame not in _meanings() or frame.count("{}") != len(phrases):
        return None
    return frame, phrases


def _described(phrase: re.Match) -> tuple[str | None, str | None, str]:
    """A phrase's size, colour and shape."""
    return _SIZE.get(phrase[1]), phrase[2], _SHAPE[phrase[3]]


def parse(caption: str) -> Claim | None:
    """What the caption says, of whatever scene; None if the grammar cannot say it."""
    parts = _split_caption(caption)
    if parts is None:
        return None
    frame, phrases = parts
    said = dict(_meanings()[frame])
    place = said.pop("AT", None)
    return Claim(list(map(_described, phrases)), said, place)


def is_true(caption: str, scene: Scene) -> bool:
    """Whether the caption parses, and distinct objects of the scene have all that it says."""
    claim = parse(caption)
    if claim is None:
        return False

    def holds(objects: tuple[Object, ...]) -> bool:
        for o, (size, colour, shape) in zip(objects, claim.objects, strict=True):
            if o.shape != shape or colour not in (None, o.colour) or size not in (None, o.size):
                return False
        if claim.place not in (None, PLACES[GRID * objects[0].row + objects[0].column]):
            return False
        chosen = dict(zip(SLOTS, objects, strict=False))
        return all(RELATIONS[name](chosen[a], chosen[b]) for (a, b), name in claim.relations.items())

    return any(holds(objects) for objects in itertools.permutations(scene.objects, len(claim.objects)))


def log_prob(caption: str, scene: Scene) -> float:
    """Exact log-probability of the caption given the scene, in nats; -inf if the grammar cannot say it."""
    parts = _split_caption(caption)
    if parts is None:
        return -math.inf
    frame, found = parts
    total = _probability(frame, [phrase[0] for phrase in found], scene.objects)
    return math.log(total) if total else -math.inf


def _probability(frame: str, said: list[str], objects: tuple[Object, ...]) -> float:
    """Probability of a caption, given as its frame and phrases."""
    frames, phrases = _tables(objects)
    total = 0.0
    for order in itertools.permutations(range(len(objects)), len(said)):
        p = frames.probability.get((frame, order), 0.0)
        for k, phrase in zip(order, said, strict=True):
            p *= phrases[k].probability.get(phrase, 0.0)
        total += p
    return total


def _likelihoods(captions: Iterable[str], scenes: Sequence[Scene]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each caption the scenes that can have it, as their positions, and its probability given each."""
    fits: dict[tuple, np.ndarray] = {}  # which scenes have an object of this description
    for i, scene in enumerate(scenes):
        for o in scene.objects:
            for key in itertools.product((None, o.size), (None, o.colour), (o.shape,)):
                fits.setdefault(key, np.zeros(len(scenes), bool))[i] = True
    nowhere = np.zeros(len(scenes), bool)
    for caption in captions:
        frame, found = _split_caption(caption)
        # Most scenes lack one of the objects, which is quickly seen.
        some = np.flatnonzero(
            np.logical_and.reduce([fits.get(_described(phrase), nowhere) for phrase in found])
        )
        said = [phrase[0] for phrase in found]
        p = np.array([_probability(frame, said, scenes[i].objects) for i in some])
        yield some[p > 0], p[p > 0]


VOCABULARY = sorted(
    set(" ".join(_meanings()).replace("{}", "a").split()) | set(_SIZE) | set(COLOURS) | set(_SHAPE)
)
MAX_WORDS = max(
    len(frame.split()) + 3 * frame.count("{}") for frame in _meanings()
)  # a phrase has up to 4 words

# -------------------------------------------------------------------------------------------- the picture


def render(scene: Scene, size: int = 64, noise: float = 0.0) -> np.ndarray:
    """Draw the scene: a new uint8 [size, size, 3]. `noise` is a standard deviation, as a share of white."""
    draws = drawing.draws(scene.look)
    image, bits = drawing.background(draws, size)
    for o in scene.objects:
        b = next(draws).to_bytes(8, "little")
        reach = int(4 * JITTER[o.size] * size / 64)  # positions are in quarters of a pixel
        y = (2 * o.row + 1) * 4 * size // (2 * GRID) + (b[0] * (2 * reach + 1) >> 8) - reach
        x = (2 * o.column + 1) * 4 * size // (2 * GRID) + (b[1] * (2 * reach + 1) >> 8) - reach
        drawing.paint(image, o.shape, RADIUS[o.size] * size / 64, y, x, drawing.tinted(o.colour, b[2:5]))
    return drawing.finish(image, noise, bits)


# -------------------------------------------------------------------------------------------------- source

# Every object there can be, by cell first: a sorted list of their numbers here is a scene's description.
_PAIRS = list(itertools.product(COLOURS, SHAPES))
_PAIRS.sort(key=lambda pair: pair in HELD_OUT)  # those of the compositional split come last
_SEEN = len(_PAIRS) - len(HELD_OUT)
_OBJECTS = [
    Object(*pair, size, row, column)
    for row, column in itertools.product(range(GRID), range(GRID))
    for pair in _PAIRS
    for size in RADIUS
]
_NUMBER = {o: k for k, o in enumerate(_OBJECTS)}
_PER_CELL = len(_PAIRS) * len(RADIUS)


def split_of(objects: Iterable[Object]) -> str:
    """The split that a scene of these objects belongs to, whatever its look, index and seed.

    A held-out pair of colour and shape makes it "compositional"; of the others, a hash gives one tenth to
    "val" and one to "test".
    """
    objects = list(objects)
    if any((o.colour, o.shape) in HELD_OUT for o in objects):
        return "compositional"
    return _hashed_split(sorted(_NUMBER[o] for o in objects))


def _hashed_split(numbers: Iterable[int]) -> str:
    return {0: "val", 1: "test"}.get(next(drawing.draws(*numbers)) % 10, "train")


def _class(scene: Scene) -> np.int32:
    """The class of a scene of one object: its colour and shape, as a number in the order COLOURS x SHAPES."""
    (o,) = scene.objects
    return np.int32(list(COLOURS).index(o.colour) * len(SHAPES) + SHAPES.index(o.shape))


def to_cells(scene: Scene) -> np.ndarray:
    """The scene as int32 [27]: for each of the 9 cells, row by row, its object's colour, shape and size.

    They are numbered from 1, in the order of COLOURS, SHAPES and RADIUS; an empty cell is three zeros.
    """
    cells = np.zeros((GRID, GRID, 3), np.int32)
    for o in scene.objects:
        numbers = list(COLOURS).index(o.colour), SHAPES.index(o.shape), list(RADIUS).index(o.size)
        cells[o.row, o.column] = np.array(numbers) + 1
    return cells.reshape(-1)


def from_cells(labels: Sequence[int]) -> Scene:
    """The scene that 27 numbers describe, see `to_cells`, in whatever look: what a judge has seen in an image.

    A cell counts as empty where one of its three numbers is 0, or more than there are names.

    Raises:
      ValueError: there are not 27 numbers.
    """
    if np.shape(labels) != (3 * GRID * GRID,):
        raise ValueError(f"A scene is {3 * GRID * GRID} numbers, three a cell, not {list(np.shape(labels))}.")
    objects = []
    for cell, numbers in enumerate(np.reshape(labels, (-1, 3)).tolist()):
        kinds = list(zip(numbers, (list(COLOURS), SHAPES, list(RADIUS)), strict=True))
        if all(1 <= number <= len(names) for number, names in kinds):
            objects.append(Object(*(names[number - 1] for number, names in kinds), *divmod(cell, GRID)))
    return Scene(tuple(objects))


class Scenes:
    """Random access to drawn scenes with captions.

    An example is {"image": uint8 [size, size, 3], "captions": [5 strings], "name": "scenes/train/17"}. It
    depends on these arguments and the index only. No two splits share a set of objects, whatever the seed
    (see `split_of`). With max_objects=1 scenes have classes, "red circle" and so on, and examples a "label".

    Args:
      split: "train", "val", "test", or "compositional": each scene has a pair of HELD_OUT, the others none.
      seed: another seed, other scenes.
      size: width and height of the image in pixels, at least 24.
      length: number of scenes; by default 1000, and endless (2^31 - 1) for train.
      noise: standard deviation of the pixel noise, as a share of white.
      max_objects: scenes have one to this many objects, at most 3.
      minimal_pairs: every second scene is the one before it but for one thing, such as two colours or places swapped. In a
        batch that is not shuffled these are hard negatives: a model that knows which colours and shapes there
        are, but not which belong together, cannot tell them apart. A number: only so many scenes of the beginning are such;
        captions that tell twins apart would otherwise count for more than captions that tell scenes apart.
      cells: the "label" is what is in each cell, int32 [27], see `to_cells`; there are no classes then.
      all_pairs: scenes of "train", "val" and "test" have the pairs of HELD_OUT too, as a judge of generated images must know
        them: one that never saw a green star takes it for a green cross.
    """

    def __init__(
        self,
        split: str = "train",
        seed: int = 0,
        size: int = 64,
        length: int | None = None,
        noise: float = 0.0,
        max_objects: int = 3,
        minimal_pairs: bool | int = False,
        cells: bool = False,
        all_pairs: bool = False,
    ):
        if split not in SPLITS:
            raise ValueError(f'Unknown split "{split}" of scenes.{nearest(split, SPLITS)}')
        if all_pairs and split == "compositional":
            raise ValueError(
                'all_pairs is for the splits train, val and test; "compositional" has a held-out pair anyway.'
            )
        if size < 24:
            raise ValueError(f"size is {size}: the shapes of scenes need at least 24 pixels.")
        if max_objects not in MENTIONED:
            raise ValueError(f"max_objects is {max_objects}: a scene has 1 to {max(MENTIONED)} objects.")
        if noise < 0:
            raise ValueError(f"noise is {noise}: a standard deviation cannot be negative.")
        self.split, self.seed, self.size, self.noise, self.max_objects = split, seed, size, noise, max_objects
        self.all_pairs = all_pairs
        self._label = to_cells if cells else None
        self.length = LENGTHS[split] if length is None else length
        self._paired = self.length if minimal_pairs is True else minimal_pairs
        if max_objects == 1 and not cells:
            self._label = _class
            self.classes = [f"{colour} {shape}" for colour, shape in itertools.product(COLOURS, SHAPES)]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        scene, draws = self._start(index)
        example = {
            "image": render(scene, self.size, self.noise),
            "captions": [_say(scene.objects, draws) for _ in range(CAPTIONS)],
            "name": f"scenes/{self.split}/{index}",
        }
        return example if self._label is None else {**example, "label": self._label(scene)}

    def captions(self, index: int) -> list[str]:
        """The five captions of `self[index]`, without drawing it."""
        scene, draws = self._start(index)
        return [_say(scene.objects, draws) for _ in range(CAPTIONS)]

    def scene(self, index: int) -> Scene:
        """The scene of `self[index]`."""
        return self._start(index)[0]

    def label(self, index: int) -> np.ndarray:
        """An example's "label" without drawing it; only with max_objects=1 (a position in `classes`) or cells."""
        return self._label(self.scene(index))

    def log_prob(self, index: int, caption: str) -> float:
        """See `log_prob` of this module."""
        return log_prob(caption, self.scene(index))

    def is_true(self, index: int, caption: str) -> bool:
        """See `is_true` of this module."""
        return is_true(caption, self.scene(index))

    def entropy(self, index: int) -> tuple[float, float]:
        """See `entropy` of this module."""
        return entropy(self.scene(index))

    def retrieval_ceiling(self, n: int = 1000, captions: int = 1) -> dict[str, float]:
        """Recall at 1 of the best possible retriever: the first n scenes, each with its first `captions` captions.

        The best retriever knows the grammar and what is to be seen in each image, but judges each answer by itself
        (it does not assign all captions at once), and knows of a caption only that it was said of one of the
        images, each as likely. So a caption c was said of scene s with p(s | c) = p(c | s) / sum over s' of p(c | s').

        A caption asks for the scene of the largest p(c | s). Where m scenes share it, as images are never quite
        equal, the answer is one of them: right with 1 / m if the true one is among them. An image asks for the
        string that will most likely be a hit. Texts that are equal have equal scores and ties count against the
        query, so that a string which the gallery holds k times is a hit when all k were said of this image: with
        p(s | c)^k. The hit is then counted as the captions really are; of equally good strings it is the mean.

        Given the captions at hand a model may be luckier than this, but not on average. A pair's score in a dual
        encoder cannot depend on the gallery's other images as p(s | c) does: at best it is p(c | s) / p(c) over all
        scenes. That changes nothing for captions that ask, and costs images that ask one to three points (n=1000).

        Returns:
          t2i_r1, i2t_r1: between 0 and 1, of captions that ask for their image and of images that ask for a caption.
        """
        scenes = [self.scene(i) for i in range(n)]
        owners: dict[str, list[int]] = defaultdict(list)
        for i in range(n):
            for caption in self.captions(i)[:captions]:
                owners[caption].append(i)
        right = 0.0
        best = np.full(n, -1.0)
        hits: list[list[bool]] = [[] for _ in range(n)]  # of the strings that share a scene's best score
        for own, (some, p) in zip(owners.values(), _likelihoods(owners, scenes), strict=True):
            # Equal probabilities may differ by rounding.
            top = some[p > p.max() * (1 - 1e-9)]
            right += sum(i in top for i in own) / len(top)
            for i, score in zip(some.tolist(), (p / p.sum()) ** len(own), strict=True):
                if score > best[i] * (1 + 1e-9):
                    best[i], hits[i] = score, []
                if score > best[i] * (1 - 1e-9):
                    hits[i].append(own == [i] * len(own))
        texts = sum(map(len, owners.values()))
        return {"t2i_r1": right / texts, "i2t_r1": float(np.mean([np.mean(hit) for hit in hits]))}

    def _start(self, index: int) -> tuple[Scene, Iterator[int]]:
        """The scene, and the stream that its captions are drawn from."""
        index = operator.index(index)
        if not 0 <= index < self.length:
            raise IndexError(f"scenes/{self.split} has no example {index}; it has {self.length}.")
        twin = index < self._paired and index % 2
        draws = drawing.draws(self.seed, SPLITS.index(self.split), index - twin)
        numbers = self._draw(draws)
        if twin:
            draws = drawing.draws(self.seed, SPLITS.index(self.split), index)
            numbers = self._vary(numbers, draws)
        return Scene(tuple(_OBJECTS[n] for n in numbers), next(draws)), draws

    def _draw(self, draws: Iterator[int]) -> list[int]:
        """A scene of this split, as its objects' sorted numbers."""
        count = 1 + next(draws) % self.max_objects
        while True:
            numbers = []
            for k in range(count):
                bits, cell = divmod(next(draws), GRID * GRID)
                bits, size = divmod(bits, len(RADIUS))
                # A compositional scene has one held-out pair; all other pairs are those of training.
                held_out = k == 0 and self.split == "compositional"
                pairs = len(_PAIRS) if self.all_pairs else _SEEN
                pair = _SEEN + bits % len(HELD_OUT) if held_out else bits % pairs
                numbers.append(cell * _PER_CELL + pair * len(RADIUS) + size)
            numbers.sort()
            if self._fits(numbers):
                return numbers

    def _vary(self, numbers: list[int], draws: Iterator[int]) -> list[int]:
        """The same scene but for one thing: two objects swap it, or it is drawn anew for one of them."""
        while True:
            objects = [_OBJECTS[n] for n in numbers]
            bits = next(draws)
            k, kind, swap, bits = bits % len(objects), bits // 8 % 4, bits // 32 % 2, bits // 64
            fields = (("colour",), ("shape",), ("size",), ("row", "column"))[kind]
            if swap and len(objects) > 1:
                other = (k + 1 + bits % (len(objects) - 1)) % len(objects)
                value = _OBJECTS[numbers[other]]
                objects[other] = value._replace(**{field: getattr(objects[k], field) for field in fields})
            else:
                value = _OBJECTS[bits % len(_OBJECTS)]
            objects[k] = objects[k]._replace(**{field: getattr(value, field) for field in fields})
            varied = sorted(_NUMBER[o] for o in objects)
            if varied != numbers and self._fits(varied):
                return varied

    def _fits(self, numbers: list[int]) -> bool:
        """Whether there is such a scene, and this split is its own: objects differ in cell, and in colour or shape."""
        pairs = {_OBJECTS[n][:2] for n in numbers}
        if not len({n // _PER_CELL for n in numbers}) == len(pairs) == len(numbers):
            return False
        if not self.all_pairs and not pairs.isdisjoint(HELD_OUT):
            return self.split == "compositional"
        return _hashed_split(numbers) == self.split
