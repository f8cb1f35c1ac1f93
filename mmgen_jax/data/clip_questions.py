"""Questions about the drawn clips of data/clips.py, each with one answer that is known."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from mmgen_jax.core import registry
from mmgen_jax.data.clips import (
    DIRECTIONS,
    MOST_ACTS,
    PACES,
    SAID,
    TURNED,
    Clip,
    Clips,
    Wish,
    draw_acts,
    draw_clip,
    pick,
    render,
)
from mmgen_jax.data.scenes import COLOURS, SHAPES

QUESTIONS = {  # kind: (its text with what is asked about, what that may be, the answers)
    "direction": ("which way does the {} move", SHAPES, tuple(DIRECTIONS)),
    "speed": ("how fast does the {} move", SHAPES, tuple(PACES)),
    "first": ("what happens first", ("",), ("move", "turn", "change", "hit")),
    "last": ("what happens last", ("",), ("move", "turn", "change", "hit")),
    "colour": ("which colour does the {} become", SHAPES, tuple(COLOURS)),
    "change": ("what changes about the {}", tuple(TURNED), ("place", "angle", "colour")),
    "count": ("how many times does something {}", ("move", "turn", "change"), ("0", "1", "2", "3")),
}
_CHANGES = {"move": "place", "turn": "angle", "change": "colour"}


class Question(NamedTuple):
    """kind: of QUESTIONS; about: a shape, or the kind of act that is counted."""

    kind: str
    about: str

    @property
    def text(self) -> str:
        return QUESTIONS[self.kind][0].format(self.about)


def answer(question: Question, clip: Clip) -> str | None:
    """The answer, or None where the clip has not exactly one: the shape is not there, moves twice, or was pushed."""
    kinds = [act.kind for act in clip.acts]
    kind, about = question
    if kind in ("first", "last"):
        return kinds[0 if kind == "first" else -1] if len(kinds) > 1 else None
    # Who hits or is hit changes its place too.
    hits = "hit" in kinds
    if kind == "count":
        return None if hits and about == "move" else str(kinds.count(about))
    own = [act for act in clip.acts if clip.actors[act.actor].shape == about]
    if kind == "change":
        return _CHANGES[own[0].kind] if len(own) == 1 and not hits else None
    if kind == "colour":
        changes = [act for act in own if act.kind == "change"]
        return changes[0].what if len(changes) == 1 else None
    moves = [act for act in own if act.kind == "move"]
    if len(moves) != 1 or hits:
        return None
    return moves[0].what if kind == "direction" else moves[0].pace


def _wishes(draws: Iterator[int], question: Question, wanted: str) -> list[Wish]:
    """Acts with which a clip can have the answer that is wanted."""
    kind, about = question
    calm = [k for k in SAID if k != "hit"]
    if kind == "count":
        times, others = int(wanted), [k for k in (calm if about == "move" else SAID) if k != about]
        least = max(times, 1)
        more = draw_acts(draws, least - times + next(draws) % (MOST_ACTS + 1 - least), others)
        acts = [Wish(about)] * times + more
        for k in range(len(acts) - 1, 0, -1):
            other = next(draws) % (k + 1)
            acts[k], acts[other] = acts[other], acts[k]
        return acts
    if kind in ("first", "last"):
        more = draw_acts(draws, 1 + next(draws) % (MOST_ACTS - 1), calm if wanted == "hit" else list(SAID))
        own = Wish(wanted)
        return [own, *more] if kind == "first" else [*more, own]
    changed = {name: act for act, name in _CHANGES.items()}
    own = {
        "direction": Wish("move", 0, wanted),
        "speed": Wish("move", 0, pace=wanted),
        "colour": Wish("change", 0, wanted),
        "change": Wish(changed.get(wanted, ""), 0),
    }[kind]
    # What would give a second answer is done by the other actor.
    acts = [
        wish._replace(actor=1) if kind == "change" or wish.kind == own.kind else wish
        for wish in draw_acts(draws, next(draws) % MOST_ACTS, list(SAID) if kind == "colour" else calm)
    ]
    acts.insert(next(draws) % (len(acts) + 1), own)
    return acts


def _further(clip: Clip, first: Question, kinds: Sequence[str], draws: Iterator[int]) -> Iterator[Question]:
    """Questions that the clip answers, of these kinds; none again before all have been asked."""
    asked = {first}
    while True:
        left = {
            kind: [
                question
                for question in (Question(kind, about) for about in QUESTIONS[kind][1])
                if question not in asked and answer(question, clip) is not None
            ]
            for kind in kinds
        }
        while any(left.values()):
            kind = pick(draws, [kind for kind in kinds if left[kind]])
            yield left[kind].pop(next(draws) % len(left[kind]))
        asked = set()


class ClipQuestions(Clips):
    """Random access to drawn clips with one question each.

    An example is {"video", "question", "answers": [one string], "choices", "question_type": a key of QUESTIONS, "answer_type":
    "number" or "other", "name"}. The question is drawn first, then its answer evenly from "choices", then a clip that has it: a
    model that sees the question alone is right in one of so many. For the arguments see `Clips`.

    Args:
      kinds: which of QUESTIONS are asked; by default all, each as often, and one that is named twice twice as often.
      per_clip: for training: so many questions a clip, "question" is a list of them and "answers" a list of lists. The first is
        as ever; the others are those that its clip happens to answer, and not balanced.
    """

    _kind = "clip_questions"

    def __init__(
        self,
        split: str = "train",
        seed: int = 0,
        frames: int = 12,
        size: int = 64,
        length: int | None = None,
        noise: float = 0.0,
        kinds: Sequence[str] = tuple(QUESTIONS),
        per_clip: int = 1,
    ):
        super().__init__(split, seed, frames, size, length, noise)
        for kind in kinds:
            registry.choose(QUESTIONS, kind, "kind of question about clips:")
        if not kinds:
            raise ValueError(f"kinds is empty; choose from: {', '.join(QUESTIONS)}.")
        if per_clip < 1:
            raise ValueError(f"per_clip is {per_clip}: there is at least one question a clip.")
        self.kinds, self.per_clip = tuple(kinds), per_clip

    def __getitem__(self, index: int) -> dict[str, Any]:
        question, wanted, _ = self._ask(index)
        clip, draws = self._start(index)
        asked, answers = question.text, [wanted]
        if self.per_clip > 1:
            more = itertools.islice(_further(clip, question, self.kinds, draws), self.per_clip - 1)
            every = [question, *more]
            asked, answers = [q.text for q in every], [[answer(q, clip)] for q in every]
        return {
            "video": render(clip, self.frames, self.size, self.noise),
            "question": asked,
            "answers": answers,
            "choices": self.choices(index),
            "question_type": question.kind,
            "answer_type": self.answer_type(index),
            "name": self.name(index),
        }

    def question(self, index: int) -> str:
        """The question of `self[index]`, without drawing its clip."""
        return self._ask(index)[0].text

    def answers(self, index: int) -> list[str]:
        """The answer of `self[index]`, without drawing its clip."""
        return [self._ask(index)[1]]

    def choices(self, index: int) -> list[str]:
        """The answers that the question can have, for a multiple choice."""
        return list(QUESTIONS[self.question_type(index)][2])

    def question_type(self, index: int) -> str:
        """A key of QUESTIONS."""
        return self._ask(index)[0].kind

    def answer_type(self, index: int) -> str:
        """ "number" or "other"."""
        return "number" if self.question_type(index) == "count" else "other"

    def captions(self, index: int) -> list[str]:
        """There are none."""
        del index
        return []

    def _ask(self, index: int) -> tuple[Question, str, Iterator[int]]:
        draws = self._draws(index)
        kind = pick(draws, self.kinds)
        _, about, answers = QUESTIONS[kind]
        return Question(kind, pick(draws, about)), pick(draws, answers), draws

    def _start(self, index: int) -> tuple[Clip, Iterator[int]]:
        question, wanted, draws = self._ask(index)
        # Drawn once: were they drawn again with each trial, what is rarely possible would be rare.
        wishes = _wishes(draws, question, wanted)
        shape = question.about if question.about in SHAPES else None
        clip = draw_clip(
            draws, self.split, self.frames, wishes, shape, lambda clip: answer(question, clip) == wanted
        )
        return clip, draws
