"""Drawn clips: objects that move, turn, change colour and hit each other, with captions and key frames.

Over data/drawing.py: endless, no download, the same on every machine, and what is true of a clip is known.
"""

import functools
import itertools
import math
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmgen_jax.core import registry
from mmgen_jax.data import drawing, scenes
from mmgen_jax.data.scenes import COLOURS, RADIUS, SHAPES, Table

# ------------------------------------------------------------------------------------------------- the world

SPLITS = ("train", "val", "test")
LENGTHS = {"train": 2**31 - 1, "val": 1000, "test": 1000}
CAPTIONS = 5  # captions a clip
DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
PACES = {"slowly": 3, "quickly": 9}  # pixels a frame, of a picture of 64 x 64
LASTS = 2  # frames that an act takes
MOST_ACTS = 3
MIN_FRAMES = 1 + MOST_ACTS * (LASTS + 1)  # one before the first act, one at rest after each
LOW, HIGH, STEP = 11, 53, 6  # where the middle of an object may be, in pixels; at first on a lattice
PUSH = 4  # pixels that one who is hit moves
TURNED = [shape for shape in SHAPES if shape not in ("circle", "ring")]  # the others look as before


class Actor(NamedTuple):
    """An object as the clip begins; y and x are its middle in pixels of a picture of 64 x 64."""

    colour: str
    shape: str
    size: str
    y: int
    x: int


class Act(NamedTuple):
    """Something that happens.

    Attributes:
      kind: "move", "turn", "change" (of colour) or "hit".
      actor: the number of the one who does it.
      what: the direction of a move or of the one who hits, the new colour, "" of a turn.
      pace: of a move, "slowly" or "quickly".
      start: the first frame that shows it, which is the act's key frame; of a hit the two touch in it.
    """

    kind: str
    actor: int
    what: str = ""
    pace: str = ""
    start: int = 0


class Clip(NamedTuple):
    """One or two actors of different shapes, up to three acts one after the other, and one integer for the rest of the look."""

    actors: tuple[Actor, ...]
    acts: tuple[Act, ...]
    look: int = 0


class Pose(NamedTuple):
    """An actor in one frame: its middle in quarters of a pixel of a picture of 64 x 64, eighths of a turn, its colour."""

    y: int
    x: int
    turn: int
    colour: str


def _perform(act: Act, poses: Sequence[Pose], actors: Sequence[Actor]) -> list[list[Pose]]:
    """The poses of all actors in the LASTS frames of an act, of which the last stays."""
    mine, frames = poses[act.actor], []
    for k in range(1, LASTS + 1):
        after = list(poses)
        if act.kind == "turn":
            after[act.actor] = mine._replace(turn=mine.turn + k)
        elif act.kind == "change":
            after[act.actor] = mine._replace(colour=act.what)
        else:
            dy, dx = DIRECTIONS[act.what]
            if act.kind == "move":
                way = 4 * PACES[act.pace] * k
            else:
                # The two touch, then the one is back half-way and the other pushed on.
                other = 1 - act.actor
                gap = _distance(*poses) - int(4 * sum(RADIUS[actor.size] for actor in actors))
                way = gap if k == 1 else gap // 2
                if k > 1:
                    after[other] = poses[other]._replace(
                        y=poses[other].y + 4 * PUSH * dy, x=poses[other].x + 4 * PUSH * dx
                    )
            after[act.actor] = mine._replace(y=mine.y + way * dy, x=mine.x + way * dx)
        frames.append(after)
    return frames


def _distance(a: Pose, b: Pose) -> int:
    """The larger of the distances in y and in x, in quarters of a pixel."""
    return max(abs(a.y - b.y), abs(a.x - b.x))


def play(clip: Clip, frames: int) -> list[list[Pose]]:
    """The pose of each actor in each frame."""
    poses = [Pose(4 * actor.y, 4 * actor.x, 0, actor.colour) for actor in clip.actors]
    shown: list[list[Pose]] = []
    for act in clip.acts:
        shown += [poses] * (act.start - len(shown))
        shown += _perform(act, poses, clip.actors)
        poses = shown[-1]
    return shown + [poses] * (frames - len(shown))


def _possible(clip: Clip, frames: int) -> bool:
    """Whether all stay in the picture and apart, but for the frames in which they touch."""
    touching = {act.start for act in clip.acts if act.kind == "hit"}
    apart = 5 * sum(
        RADIUS[actor.size] for actor in clip.actors
    )  # 1.25 times the radii, in quarters of a pixel
    for frame, poses in enumerate(play(clip, frames)):
        if any(not 4 * LOW <= place <= 4 * HIGH for pose in poses for place in (pose.y, pose.x)):
            return False
        if len(poses) == 2 and frame not in touching and _distance(*poses) < apart:
            return False
    return True


def key_frames(clip: Clip, frames: int) -> np.ndarray:
    """1 in the first frame of each act, else 0. -> float32 [frames]."""
    keys = np.zeros(frames, np.float32)
    keys[[act.start for act in clip.acts]] = 1.0
    return keys


def render(clip: Clip, frames: int, size: int = 64, noise: float = 0.0) -> np.ndarray:
    """Draw the clip: a new uint8 [frames, size, size, 3]. `noise` is a standard deviation, as a share of white."""
    draws = drawing.draws(clip.look)
    empty, bits = drawing.background(draws, size)
    tints = [next(draws).to_bytes(8, "little")[:3] for _ in clip.actors]
    video = np.empty((frames, size, size, 3), np.uint8)
    last = None
    for frame, poses in enumerate(play(clip, frames)):
        if poses is last and not noise:  # at rest
            video[frame] = video[frame - 1]
            continue
        image = empty.copy()
        for actor, pose, tint in zip(clip.actors, poses, tints, strict=True):
            radius, y, x = RADIUS[actor.size] * size / 64, pose.y * size // 64, pose.x * size // 64
            drawing.paint(image, actor.shape, radius, y, x, drawing.tinted(pose.colour, tint), pose.turn % 8)
        # The noise of each frame begins somewhere else in the table.
        video[frame] = drawing.finish(image, noise, bits + (frame << 20) * 7919)
        last = poses
    return video


# ---------------------------------------------------------------------------------------------- the grammar

# As in data/scenes.py: symbol: {what it becomes: probability}. X is who acts and Y who is hit, each in the colour of that moment;
# TO is the direction, PACE the pace, NEW the new colour.
RULES = {
    "MOVES": {"moves": 0.6, "goes": 0.4},
    "TURNS": {"turns": 0.6, "spins": 0.4},
    "BECOMES": {"becomes": 0.6, "changes to": 0.4},
    "HITS": {"hits": 0.6, "bumps into": 0.4},
    "SLOWLY": {"slowly": 1.0},
    "QUICKLY": {"quickly": 0.6, "fast": 0.4},
}
SAID = {
    "move": {"X MOVES TO": 0.5, "X MOVES TO PACE": 0.5},
    "turn": {"X TURNS": 1.0},
    "change": {"X BECOMES NEW": 1.0},
    "hit": {"X HITS Y": 1.0},
}
ALL = 0.6  # of several acts a caption says all in their order, with "then" between them; else one of them, drawn evenly
THEN = " then "


class Event(NamedTuple):
    """What can be said of an act: the colour and shape of who acts, then what the kind has: direction, colour, or who is hit."""

    kind: str
    colour: str
    shape: str
    what: str | tuple[str, str]
    pace: str


def events(clip: Clip) -> tuple[Event, ...]:
    """The clip's acts as a caption tells them, in their order."""
    told, frames = [], play(clip, clip.acts[-1].start + LASTS)
    for act in clip.acts:
        before, actor = frames[act.start - 1], clip.actors[act.actor]
        what: str | tuple[str, str] = act.what
        if act.kind == "hit":
            other = 1 - act.actor
            what = before[other].colour, clip.actors[other].shape
        told.append(Event(act.kind, before[act.actor].colour, actor.shape, what, act.pace))
    return tuple(told)


@functools.lru_cache(maxsize=4096)
def _sentences(event: Event) -> Table:
    """What an act can be called."""

    def one(colour: str, shape: str) -> dict[str, float]:
        return scenes._expand(f"a {colour} {shape.upper()}", scenes.RULES)

    bindings = {"X": one(event.colour, event.shape)}
    if event.kind == "hit":
        bindings["Y"] = one(*event.what)
    else:
        bindings |= {"TO": {event.what: 1.0}, "NEW": {event.what: 1.0}, "PACE": {event.pace.upper(): 1.0}}
    return Table(scenes._expand("SAID", RULES | bindings | {"SAID": SAID[event.kind]}))


def _say(told: Sequence[Event], draws: Iterator[int]) -> str:
    bits = next(draws)
    if len(told) > 1 and (bits >> 11) * 2.0**-53 >= ALL:
        told = [told[bits % len(told)]]
    return THEN.join(_sentences(event).draw(next(draws)) for event in told)


_ONE = rf"a ({'|'.join(COLOURS)}) ({'|'.join(scenes._SHAPE)})"
_FORMS = {  # kind: who acts, and what is said of it
    "move": re.compile(rf"{_ONE} (?:moves|goes) ({'|'.join(DIRECTIONS)})(?: (slowly|quickly|fast))?"),
    "turn": re.compile(rf"{_ONE} (?:turns|spins)"),
    "change": re.compile(rf"{_ONE} (?:becomes|changes to) ({'|'.join(COLOURS)})"),
    "hit": re.compile(rf"{_ONE} (?:hits|bumps into) {_ONE}"),
}


def parse(caption: str) -> list[Event] | None:
    """What the caption says, of whatever clip, "" for a pace that it does not say; None if the grammar cannot say it."""
    claims = []
    for part in caption.split(THEN):
        for kind, form in _FORMS.items():
            if match := form.fullmatch(part):
                colour, shape, *rest = match.groups()
                what: Any = ""
                if kind == "hit":
                    what = rest[0], scenes._SHAPE[rest[1]]
                elif rest:
                    what = rest[0]
                pace = (rest[1] or "").replace("fast", "quickly") if kind == "move" else ""
                claims.append(Event(kind, colour, scenes._SHAPE[shape], what, pace))
                break
        else:
            return None
    return claims


def is_true(caption: str, clip: Clip) -> bool:
    """Whether the caption parses, and all that it says happens, in its order."""
    claims = parse(caption)
    if claims is None:
        return False
    happened = iter(events(clip))
    # Each claim is looked for among what follows the one before it.
    return all(
        any(event == claim._replace(pace=claim.pace or event.pace) for event in happened) for claim in claims
    )


def log_prob(caption: str, clip: Clip) -> float:
    """Exact log-probability of the caption given the clip, in nats; -inf if the grammar does not say it of this clip."""
    tables, parts = [_sentences(event) for event in events(clip)], caption.split(THEN)
    total = 0.0
    if len(parts) == len(tables):
        whole = ALL if len(tables) > 1 else 1.0
        total = whole * math.prod(t.probability.get(part, 0.0) for t, part in zip(tables, parts, strict=True))
    elif len(parts) == 1:
        total = (1 - ALL) * sum(t.probability.get(caption, 0.0) for t in tables) / len(tables)
    return math.log(total) if total else -math.inf


def entropy(clip: Clip) -> tuple[float, float]:
    """Exact entropy of a caption given the clip, in nats, and its expected tokens, with the end token."""
    tables = [_sentences(event) for event in events(clip)]

    def words(probability: dict[str, float]) -> float:
        return sum(p * (text.count(" ") + 1) for text, p in probability.items())

    every = sum(t.entropy for t in tables), sum(words(t.probability) for t in tables) + len(tables) - 1
    if len(tables) == 1:
        return every[0], every[1] + 1
    one: dict[str, float] = {}
    for text, p in itertools.chain.from_iterable(t.probability.items() for t in tables):
        one[text] = one.get(text, 0.0) + p / len(tables)
    single = Table(one)
    choice = -ALL * math.log(ALL) - (1 - ALL) * math.log(1 - ALL)
    nats = choice + ALL * every[0] + (1 - ALL) * single.entropy
    return nats, 1 + ALL * every[1] + (1 - ALL) * words(one)


# A hit is the longest sentence (a colour shape bumps into a colour shape), and is said three times; one more ends the text.
MAX_WORDS = MOST_ACTS * 8 + MOST_ACTS - 1

# ------------------------------------------------------------------------------------------ choosing a clip


class Wish(NamedTuple):
    """An act of which some things are drawn: those that are None."""

    kind: str
    actor: int | None = None
    what: str | None = None
    pace: str | None = None


_CODES = {
    name: k + 1 for k, name in enumerate(("", *scenes._PAIRS, *COLOURS, *DIRECTIONS, *PACES, *SAID, *RADIUS))
}


def pick(draws: Iterator[int], options: Sequence) -> Any:
    """One of the options, each as likely."""
    return options[next(draws) % len(options)]


def split_of(clip: Clip) -> str:
    """The split that a clip of these actors and acts belongs to, whatever its places, times, look, index and seed.

    A hash gives one tenth to "val" and one to "test".
    """
    numbers = [
        len(clip.actors),
        *(_CODES[name] for a in clip.actors for name in ((a.colour, a.shape), a.size)),
    ]
    for act in clip.acts:
        numbers += [_CODES[act.kind], act.actor, _CODES[act.what], _CODES[act.pace]]
    return scenes._hashed_split(numbers)


def _propose(
    draws: Iterator[int], frames: int, shape: str | None, wishes: Sequence[Wish], pair: bool
) -> Clip | None:
    """A clip of one or a `pair` of actors, whose first has this shape, with such acts; None where that cannot be."""
    first = shape or pick(draws, SHAPES)
    shapes = [first, *([pick(draws, [s for s in SHAPES if s != first])] if pair else [])]
    lattice = range(LOW, HIGH + 1, STEP)
    places = [(pick(draws, lattice), pick(draws, lattice)) for _ in shapes]
    if any(wish.kind == "hit" for wish in wishes):
        (y, x), other = places
        places[1] = (y, other[1]) if next(draws) & 1 else (other[0], x)  # in line
    actors = tuple(
        Actor(pick(draws, list(COLOURS)), s, pick(draws, list(RADIUS)), *place)
        for s, place in zip(shapes, places, strict=True)
    )
    poses = [Pose(4 * actor.y, 4 * actor.x, 0, actor.colour) for actor in actors]
    rest = frames - 1 - len(wishes) * (LASTS + 1)
    waits = sorted(next(draws) % (rest + 1) for _ in wishes)
    acts = []
    for k, (kind, actor, what, pace) in enumerate(wishes):
        actor = next(draws) % len(actors) if actor is None else actor
        if kind == "move":
            what, pace = what or pick(draws, list(DIRECTIONS)), pace or pick(draws, list(PACES))
        elif kind == "change":
            what = what or pick(draws, [c for c in COLOURS if c != poses[actor].colour])
        elif kind == "hit":
            what = _towards(poses, actor, actors)
        impossible = (
            what is None and kind == "hit",
            kind == "turn" and actors[actor].shape not in TURNED,
            kind == "change" and what == poses[actor].colour,
        )
        if any(impossible):
            return None
        acts.append(Act(kind, actor, what or "", pace or "", 1 + waits[k] + k * (LASTS + 1)))
        poses = _perform(acts[-1], poses, actors)[-1]
    clip = Clip(actors, tuple(acts), next(draws))
    return clip if _possible(clip, frames) else None


def _towards(poses: Sequence[Pose], actor: int, actors: Sequence[Actor]) -> str | None:
    """The direction from one actor to the other, where they are in line and far enough apart for a hit to be seen."""
    if len(poses) < 2:
        return None
    dy, dx = poses[1 - actor].y - poses[actor].y, poses[1 - actor].x - poses[actor].x
    gap = _distance(*poses) - 4 * sum(RADIUS[a.size] for a in actors)
    if gap < 4 * 8 or min(abs(dy), abs(dx)) > 4 * 3:
        return None
    if abs(dx) > abs(dy):
        return "right" if dx > 0 else "left"
    return "down" if dy > 0 else "up"


def draw_acts(draws: Iterator[int], count: int, kinds: Sequence[str]) -> list[Wish]:
    """Acts of these kinds, each as often, but one hit at most: the two are hardly ever in line again."""
    acts: list[Wish] = []
    for _ in range(count):
        kind = pick(draws, kinds)
        kinds = [k for k in kinds if k != "hit" or kind != "hit"]
        acts.append(Wish(kind))
    return acts


def draw_clip(
    draws: Iterator[int],
    split: str,
    frames: int,
    wishes: Sequence[Wish],
    shape: str | None = None,
    accept: Callable[[Clip], bool] = lambda clip: True,
) -> Clip:
    """A clip of the split with such acts, whose first actor has this shape, and that is accepted."""
    pair = any(wish.kind == "hit" or wish.actor == 1 for wish in wishes)
    while True:
        clip = _propose(draws, frames, shape, wishes, pair or bool(next(draws) & 1))
        if clip is not None and split_of(clip) == split and accept(clip):
            return clip


# -------------------------------------------------------------------------------------------------- sources


class Clips:
    """Random access to drawn clips with captions and key frames.

    An example is {"video": uint8 [frames, size, size, 3], "captions": [5 strings], "key_frames": float32 [frames], 1 in the first
    frame of each act, "name": "clips/train/17"}. It depends on these arguments and the index only. No two splits share actors and
    acts, whatever the seed (see `split_of`).

    Args:
      split: "train", "val" or "test".
      seed: another seed, other clips.
      frames: at least MIN_FRAMES = 10.
      size: width and height in pixels, at least 24.
      length: number of clips; by default 1000, and endless (2^31 - 1) for train.
      noise: standard deviation of the pixel noise, as a share of white.

    Raises:
      ValueError: unknown split, too few frames or pixels, or a noise below 0.
    """

    _kind = "clips"

    def __init__(
        self,
        split: str = "train",
        seed: int = 0,
        frames: int = 12,
        size: int = 64,
        length: int | None = None,
        noise: float = 0.0,
    ):
        registry.choose(LENGTHS, split, f"split of {self._kind}:")
        if frames < MIN_FRAMES:
            raise ValueError(f"frames is {frames}: three acts take at least {MIN_FRAMES} frames.")
        if size < 24:
            raise ValueError(f"size is {size}: the shapes of clips need at least 24 pixels.")
        if noise < 0:
            raise ValueError(f"noise is {noise}: a standard deviation cannot be negative.")
        self.split, self.seed, self.frames, self.size, self.noise = split, seed, frames, size, noise
        self.length = LENGTHS[split] if length is None else length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        clip, draws = self._start(index)
        told = events(clip)
        return {
            "video": render(clip, self.frames, self.size, self.noise),
            "captions": [_say(told, draws) for _ in range(CAPTIONS)],
            "key_frames": key_frames(clip, self.frames),
            "name": self.name(index),
        }

    def captions(self, index: int) -> list[str]:
        """The five captions of `self[index]`, without drawing it."""
        clip, draws = self._start(index)
        told = events(clip)
        return [_say(told, draws) for _ in range(CAPTIONS)]

    def clip(self, index: int) -> Clip:
        """The clip of `self[index]`."""
        return self._start(index)[0]

    def name(self, index: int) -> str:
        """What messages call the clip."""
        return f"{self._kind}/{self.split}/{index}"

    def is_true(self, index: int, caption: str) -> bool:
        """See `is_true` of this module."""
        return is_true(caption, self.clip(index))

    def log_prob(self, index: int, caption: str) -> float:
        """See `log_prob` of this module."""
        return log_prob(caption, self.clip(index))

    def entropy(self, index: int) -> tuple[float, float]:
        """See `entropy` of this module."""
        return entropy(self.clip(index))

    def _draws(self, index: int) -> Iterator[int]:
        index = operator.index(index)
        if not 0 <= index < self.length:
            raise IndexError(f"{self._kind}/{self.split} has no example {index}; it has {self.length}.")
        return drawing.draws(self.seed, SPLITS.index(self.split), index)

    def _start(self, index: int) -> tuple[Clip, Iterator[int]]:
        """The clip, and the stream that its captions are drawn from."""
        draws = self._draws(index)
        wishes = draw_acts(draws, 1 + next(draws) % MOST_ACTS, list(SAID))
        return draw_clip(draws, self.split, self.frames, wishes), draws
