"""Questions about drawn scenes, with their answers: from a grammar, answered by parsing, balanced for those who do not look.

A question and its answer are drawn first, each answer that the question can have as likely as the others, and then a scene of
which it is true. So whoever reads the question alone stays at chance, whatever the question.
"""

import functools
import itertools
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mmgen_jax.core.registry import nearest
from mmgen_jax.data import drawing, scenes
from mmgen_jax.data.answers import YES_NO, answer_type
from mmgen_jax.data.scenes import COLOURS, GRID, LENGTHS, RADIUS, RELATIONS, RULES, SHAPES, Object, Scene

SPLITS = ("train", "val", "test")
TYPES = ("existence", "count", "colour", "shape", "size", "comparison", "relation", "chain")
# In the order in which they are said.
VALUES = {"size": tuple(RADIUS), "colour": tuple(COLOURS), "shape": SHAPES}
NUMBERS = ("0", "1", "2", "3")
ANSWERS = (*YES_NO, *NUMBERS, *itertools.chain.from_iterable(VALUES.values()))
FEWEST, MOST = 2, 6  # objects in a scene
_TRIES = 50  # scenes that are drawn to find one for another question about the same image
_ENOUGH = 10**6  # and for one question, which never takes so many

Fields = Mapping[str, str]  # a description: {"colour": "red", "shape": "star"}; {} is any object
Pick = Callable[[Sequence], Any]  # one of a sequence, evenly
Slots = Mapping[str, Any]  # what a question's form is filled with: a and b are descriptions


class Want(NamedTuple):
    """What an object that a question needs is like; `beside`: is it in the question's relation to the question's first object?"""

    fields: Fields
    beside: bool | None = None


class Form(NamedTuple):
    """A kind of question.

    Attributes:
      type: one of TYPES.
      text: with slots: {a} is a description, {as} its plural; {b}, {bs}; {relation}; {field} of VALUES; {than} of MORE.
      draw: pick -> slots.
      answers: slots -> the possible answers.
      answer: (objects, slots) -> the true one; None where "the {a}" is no object, or more than one.
      wants: (slots, answer, pick) -> objects that make it true, but for accidents.
    """

    type: str
    text: str
    draw: Callable[[Pick], Slots]
    answers: Callable[[Slots], Sequence[str]]
    answer: Callable[[Sequence[Object], Slots], str | None]
    wants: Callable[[Slots, str, Pick], list[Want]]


class Asked(NamedTuple):
    """A question: its form, what fills it, and the answer that it is to have."""

    form: Form
    slots: Slots
    answer: str


def _picker(draws: Iterator[int]) -> Pick:
    return lambda options: options[next(draws) % len(options)]


# ---------------------------------------------------------------------------------------------- the grammar

MORE = {"more": operator.gt, "fewer": operator.lt}
_SIDES = {"LEFT": "left of", "RIGHT": "right of", "ABOVE": "above", "BELOW": "below"}  # what is asked
# What is understood: "to the left of" too.
_SAID = {words: name for name in RELATIONS for words in RULES[name]}


def _describe(fields: Fields, plural: bool = False) -> str:
    shape = fields.get("shape", "object")
    ending = "" if not plural else "es" if shape.endswith("s") else "s"
    return " ".join([*(fields[key] for key in ("size", "colour") if key in fields), shape + ending])


def _read(text: str) -> Fields:
    """A description's words, which may be those of captions too ("big", "box"), in singular or plural."""
    fields = {}
    for word in text.split():
        if word in scenes._SIZE:
            fields["size"] = scenes._SIZE[word]
        elif word in COLOURS:
            fields["colour"] = word
        elif singular := next((w for w in (word, word[:-1], word[:-2]) if w in scenes._SHAPE), None):
            fields["shape"] = scenes._SHAPE[singular]
    return fields


def _fits(o: Object, fields: Fields) -> bool:
    return all(getattr(o, key) == value for key, value in fields.items())


def _all(objects: Sequence[Object], fields: Fields) -> list[Object]:
    return [o for o in objects if _fits(o, fields)]


def _the(objects: Sequence[Object], *descriptions: Fields) -> list[Object] | None:
    """The object of each description; None unless each fits exactly one."""
    found = [_all(objects, fields) for fields in descriptions]
    return [own[0] for own in found] if all(len(own) == 1 for own in found) else None


def _beside(objects: Sequence[Object], slots: Slots) -> list[Object] | None:
    """The objects a in the relation to the object b."""
    anchor = _the(objects, slots["b"])
    if anchor is None:
        return None
    return [o for o in _all(objects, slots["a"]) if RELATIONS[slots["relation"]](o, anchor[0])]


def _yes(true: bool | None) -> str | None:
    return None if true is None else YES_NO[not true]


def _number(found: Sequence | None) -> str | None:
    return None if found is None else str(len(found))


def _field(found: Sequence[Object] | None, field: str) -> str | None:
    return getattr(found[0], field) if found is not None and len(found) == 1 else None


def _fields(pick: Pick, *choices: tuple[str, ...], other: Fields | None = None) -> Fields:
    """A description by one of these choices of fields, another one than `other`."""
    keys = pick(choices)
    while True:
        fields = {key: pick(VALUES[key]) for key in keys}
        if fields != other:
            return fields


def _pair(pick: Pick, *choices: tuple[str, ...]) -> dict[str, Fields]:
    """Two different descriptions by the same fields."""
    keys = pick(choices)
    a = _fields(pick, keys)
    return {"a": a, "b": _fields(pick, keys, other=a)}


def _where(pick: Pick, *choices: tuple[str, ...], but: str = "") -> dict[str, Any]:
    """{a} {relation} {b}, with a described by one of these choices of fields; b not by `but`, which would rule answers out."""
    a = _fields(pick, *choices)
    b = _fields(pick, *((key,) for key in ("colour", "shape") if key != but), other=a)
    return {"a": a, "b": b, "relation": pick(tuple(RELATIONS))}


_BUT = {  # {field that is asked for: the fields by which the object may be called}
    "colour": (("shape",), ("size", "shape")),
    "shape": (("colour",), ("size", "colour")),
    "size": (("colour",), ("shape",), ("colour", "shape")),
}


def _compared(field: str) -> tuple[tuple[str, ...], ...]:
    """As _BUT, of two objects: a size would not tell two of a scene apart."""
    return tuple(keys for keys in _BUT[field] if "size" not in keys)


def _numbers(pick: Pick, holds: Callable[[int, int], bool], slots: Slots) -> list[Want]:
    """Numbers of a and b, at most two each, that satisfy a condition."""
    a, b = pick([pair for pair in itertools.product(range(3), repeat=2) if holds(*pair)])
    return [Want(slots["a"])] * a + [Want(slots["b"])] * b


def _two(pick: Pick, slots: Slots, field: str, holds: Callable[[str, str], bool]) -> list[Want]:
    """Objects a and b whose values of a field satisfy a condition."""
    a, b = pick([pair for pair in itertools.product(VALUES[field], repeat=2) if holds(*pair)])
    return [Want({**slots["a"], field: a}), Want({**slots["b"], field: b})]


def _bigger(a: str, b: str) -> bool:
    return RADIUS[a] > RADIUS[b]


FORMS = (
    Form(
        "existence",
        "is there a {a}",
        lambda pick: {
            "a": _fields(
                pick,
                ("colour",),
                ("shape",),
                ("colour", "shape"),
                ("size", "colour"),
                ("size", "shape"),
                ("size", "colour", "shape"),
            )
        },
        lambda slots: YES_NO,
        lambda objects, slots: _yes(bool(_all(objects, slots["a"]))),
        lambda slots, answer, pick: [Want(slots["a"])] if answer == "yes" else [],
    ),
    Form(
        "count",
        "how many {as} are there",
        lambda pick: {"a": _fields(pick, ("size",), ("colour",), ("shape",), ("size", "colour"), ("size", "shape"))},
        lambda slots: NUMBERS,
        lambda objects, slots: _number(_all(objects, slots["a"])),
        lambda slots, answer, pick: [Want(slots["a"])] * int(answer),
    ),
    *(
        Form(
            field,
            "what {field} is the {a}",
            lambda pick, field=field: {"field": field, "a": _fields(pick, *_BUT[field])},
            lambda slots: VALUES[slots["field"]],
            lambda objects, slots: _field(_all(objects, slots["a"]), slots["field"]),
            lambda slots, answer, pick: [Want({**slots["a"], slots["field"]: answer})],
        )
        for field in VALUES
    ),
    Form(
        "comparison",
        "are there {than} {as} than {bs}",
        lambda pick: {"than": pick(tuple(MORE)), **_pair(pick, ("colour",), ("shape",))},
        lambda slots: YES_NO,
        lambda objects, slots: _yes(
            MORE[slots["than"]](len(_all(objects, slots["a"])), len(_all(objects, slots["b"])))
        ),
        lambda slots, answer, pick: _numbers(
            pick, lambda a, b: MORE[slots["than"]](a, b) == (answer == "yes"), slots
        ),
    ),
    Form(
        "comparison",
        "are there as many {as} as {bs}",
        lambda pick: _pair(pick, ("colour",), ("shape",)),
        lambda slots: YES_NO,
        lambda objects, slots: _yes(len(_all(objects, slots["a"])) == len(_all(objects, slots["b"]))),
        lambda slots, answer, pick: _numbers(pick, lambda a, b: (a == b) == (answer == "yes"), slots),
    ),
    Form(
        "comparison",
        "is the {a} the same {field} as the {b}",
        lambda pick: {"field": (field := pick(tuple(VALUES))), **_pair(pick, *_compared(field))},
        lambda slots: YES_NO,
        lambda objects, slots: _yes(
            (found := _the(objects, slots["a"], slots["b"]))
            and getattr(found[0], slots["field"]) == getattr(found[1], slots["field"])
        ),
        lambda slots, answer, pick: _two(
            pick, slots, slots["field"], lambda a, b: (a == b) == (answer == "yes")
        ),
    ),
    Form(
        "comparison",
        "is the {a} bigger than the {b}",
        lambda pick: _pair(pick, *_compared("size")),
        lambda slots: YES_NO,
        lambda objects, slots: _yes(
            (found := _the(objects, slots["a"], slots["b"])) and _bigger(found[0].size, found[1].size)
        ),
        lambda slots, answer, pick: _two(pick, slots, "size", lambda a, b: _bigger(a, b) == (answer == "yes")),
    ),
    Form(
        "relation",
        "is the {a} {relation} the {b}",
        lambda pick: {
            "relation": pick(tuple(RELATIONS)),
            **_pair(pick, ("colour",), ("shape",), ("colour", "shape")),
        },
        lambda slots: YES_NO,
        lambda objects, slots: _yes(
            (found := _the(objects, slots["a"], slots["b"])) and RELATIONS[slots["relation"]](*found)
        ),
        lambda slots, answer, pick: [Want(slots["b"]), Want(slots["a"], answer == "yes")],
    ),
    *(
        Form(
            "chain",
            "what {field} is the {a} {relation} the {b}",
            lambda pick, field=field: {
                "field": field,
                **_where(pick, (), *((key,) for key in ("colour", "shape") if key != field), but=field),
            },
            lambda slots: VALUES[slots["field"]],
            lambda objects, slots: _field(_beside(objects, slots), slots["field"]),
            lambda slots, answer, pick: [Want(slots["b"]), Want({**slots["a"], slots["field"]: answer}, True)],
        )
        for field in VALUES
    ),
    Form(
        "chain",
        "how many {as} are {relation} the {b}",
        lambda pick: _where(pick, (), ("colour",), ("shape",), ("size",)),
        lambda slots: NUMBERS,
        lambda objects, slots: _number(_beside(objects, slots)),
        lambda slots, answer, pick: [Want(slots["b"]), *[Want(slots["a"], True)] * int(answer)],
    ),
    Form(
        "chain",
        "is there a {a} {relation} the {b}",
        lambda pick: _where(pick, ("colour",), ("shape",)),
        lambda slots: YES_NO,
        lambda objects, slots: _yes(None if (found := _beside(objects, slots)) is None else bool(found)),
        lambda slots, answer, pick: [
            Want(slots["b"]),
            *[Want(slots["a"], answer == "yes")] * (answer == "yes" or pick((0, 1))),
        ],
    ),
)  # fmt: skip
_OF_TYPE = {kind: [form for form in FORMS if form.type == kind] for kind in TYPES}


# ------------------------------------------------------------------------------------ asking and answering


def _text(form: Form, slots: Slots) -> str:
    words = {key: slots[key] for key in ("field", "than") if key in slots}
    if "relation" in slots:
        words["relation"] = _SIDES[slots["relation"]]
    for key in ("a", "b"):
        if key in slots:
            words |= {key: _describe(slots[key]), f"{key}s": _describe(slots[key], plural=True)}
    return form.text.format(**words) + "?"


@functools.cache
def _patterns() -> list[tuple[re.Pattern, Form]]:
    def one_of(words) -> str:
        return "|".join(sorted(words, key=len, reverse=True))

    one = rf"(?:(?:{one_of(scenes._SIZE)}) )?(?:(?:{one_of(COLOURS)}) )?(?:{one_of([*scenes._SHAPE, 'object'])})"
    slots = {key: f"(?P<{key}>{one})" for key in "ab"} | {f"{key}s": f"(?P<{key}>{one}e?s)" for key in "ab"}
    slots |= {"relation": f"(?P<relation>{one_of(_SAID)})", "than": f"(?P<than>{one_of(MORE)})"}
    # Forms that differ in what they draw share a text, of which the first is enough.
    texts = {form.text: form for form in reversed(FORMS)}
    return [
        (re.compile(text.format(**slots, field=f"(?P<field>{one_of(VALUES)})")), form)
        for text, form in texts.items()
    ]


def parse(question: str) -> tuple[Form, Slots] | None:
    """What a question asks, of whatever scene; None if the grammar cannot ask it. "?", case and "color" do not matter."""
    text = " ".join(question.lower().replace("?", " ").replace("color", "colour").split())
    for pattern, form in _patterns():
        match = pattern.fullmatch(text)
        if match:
            slots: dict[str, Any] = match.groupdict()
            slots |= {key: _read(slots[key]) for key in "ab" if key in slots}
            if "relation" in slots:
                slots["relation"] = _SAID[slots["relation"]]
            return form, slots
    return None


def answer(question: str, scene: Scene) -> str | None:
    """The true answer; None if the grammar has no such question, or asks for "the" object where there is none, or several."""
    parsed = parse(question)
    return None if parsed is None else parsed[0].answer(scene.objects, parsed[1])


def possible(question: str) -> tuple[str, ...]:
    """The answers that a question can have, each as likely in the data; none if the grammar cannot ask it."""
    parsed = parse(question)
    return () if parsed is None else tuple(parsed[0].answers(parsed[1]))


# ---------------------------------------------------------------------------------------------- the scenes


@functools.lru_cache(maxsize=8192)
def _ask(types: tuple[str, ...], *key: int) -> Asked:
    """A question, and the answer that it is to have, as `key` says."""
    pick = _picker(drawing.draws(*key))
    form = pick(_OF_TYPE[pick(types)])
    slots = form.draw(pick)
    return Asked(form, slots, pick(form.answers(slots)))


def _draw(asked: Sequence[Asked], most: int, pick: Pick) -> list[Object] | None:
    """Objects that make the answers true, but for accidents: those that are wanted, and others. None if they have no place."""
    objects: list[Object] = []
    free = list(itertools.product(range(GRID), repeat=2))

    def place(want: Want, relation: str | None = None, anchor: Object | None = None) -> bool:
        fields = {key: want.fields.get(key) or pick(values) for key, values in VALUES.items()}
        if any(o.colour == fields["colour"] and o.shape == fields["shape"] for o in objects):
            return False
        cells = free
        if anchor is not None and want.beside is not None:
            cells = [c for c in free if RELATIONS[relation](Object("", "", "", *c), anchor) == want.beside]
        if not cells:
            return False
        row, column = pick(cells)
        free.remove((row, column))
        objects.append(Object(**fields, row=row, column=column))
        return True

    for form, slots, answer in asked:
        first = len(objects)
        for want in form.wants(slots, answer, pick):
            if not place(want, slots.get("relation"), objects[first] if len(objects) > first else None):
                return None
    if len(objects) > most:
        return None
    # The others are often what is meant but for one thing, and never what a chain would have to count.
    near = [slots[key] for _, slots, _ in asked for key in "ab" if len(slots.get(key, ())) > 1]
    chain = next((slots for _, slots, _ in asked if slots.get("a") == {}), None)
    anchor = (chain and _the(objects, chain["b"])) or [None]
    for _ in range(pick(range(FEWEST, most + 1)) - len(objects)):
        fields: dict[str, str] = {}
        if near and pick((True, False)):
            fields = dict(pick(near))
            key = pick(tuple(fields))
            fields[key] = pick([value for value in VALUES[key] if value != fields[key]])
        if not place(Want(fields, False), chain and chain["relation"], anchor[0]):
            return None
    return objects


def _find(asked: Sequence[Asked], split: str, most: int, draws: Iterator[int], tries: int) -> Scene | None:
    """A scene of the split that gives all the answers; None if that many draws bring none."""
    pick = _picker(draws)
    for _ in range(tries):
        objects = _draw(asked, most, pick)
        if objects is None or any(form.answer(objects, slots) != answer for form, slots, answer in asked):
            continue
        numbers = sorted(scenes._NUMBER[o] for o in objects)
        if scenes._hashed_split(numbers) == split:
            return Scene(tuple(scenes._OBJECTS[n] for n in numbers), next(draws))
    return None


@functools.lru_cache(maxsize=8192)
def _scenes(
    split: str, seed: int, group: int, most: int, per_image: int, types: tuple[str, ...]
) -> list[Scene]:
    """The scene of each of a group's questions: the same for as many of them as it can be."""
    place = SPLITS.index(split)
    asked = [_ask(types, seed, place, group * per_image + k) for k in range(per_image)]
    draws = drawing.draws(seed, place, group, 1)

    def find(asked: list[Asked], tries: int) -> Scene | None:
        return _find(asked, split, most, draws, tries)

    together, shared, alone = asked[:1], find(asked[:1], _ENOUGH), {}
    for k, own in enumerate(asked[1:], 1):
        scene = find([*together, own], _TRIES)
        if scene is None:
            alone[k] = find([own], _ENOUGH)
        else:
            together, shared = [*together, own], scene
    return [alone.get(k, shared) for k in range(per_image)]


# -------------------------------------------------------------------------------------------------- source


class SceneQuestions:
    """Random access to questions about drawn scenes.

    An example is {"image": uint8 [size, size, 3], "question": "what colour is the star?", "answers": ["red"], "question_type":
    one of TYPES, "answer_type": "other", "choices": all colours, "name": "scene_questions/train/17"}. It depends on these
    arguments and the index only. Types are as likely as each other, and so are the answers that a question can have, which are
    its choices. No two splits share a set of objects, whatever the seed; scenes may have any pair of colour and shape.

    Args:
      split: "train", "val" or "test".
      seed: another seed, other questions.
      size: width and height of the image in pixels, at least 24.
      length: number of questions; by default 1000, and endless (2^31 - 1) for train.
      noise: standard deviation of the pixel noise, as a share of white.
      max_objects: scenes have two to this many objects, 4 to 6.
      per_image: so many questions in a row are about the same image; but one that could be so only with another answer gets
        an image of its own, as the answers' balance goes first.
      types: which TYPES are asked, each as often as it is named here; None asks all evenly.

    Raises:
      ValueError: an unknown split or type, or a number out of its range.
    """

    def __init__(
        self,
        split: str = "train",
        seed: int = 0,
        size: int = 64,
        length: int | None = None,
        noise: float = 0.0,
        max_objects: int = 5,
        per_image: int = 1,
        types: Sequence[str] | None = None,
    ):
        self.split, self.seed, self.size, self.noise = _split(split), seed, _size(size), _noise(noise)
        self.length = LENGTHS[split] if length is None else length
        if not len(NUMBERS) <= max_objects <= MOST:
            raise ValueError(
                f"max_objects is {max_objects}: scenes of questions have up to {len(NUMBERS)} objects, or up to {MOST}."
            )
        if per_image < 1:
            raise ValueError(f"per_image is {per_image}: there is at least one question an image.")
        self.max_objects, self.per_image = max_objects, per_image
        self.types = TYPES if types is None else tuple(types)
        for kind in self.types or [""]:
            if kind not in TYPES:
                raise ValueError(f'Unknown type "{kind}" of questions.{nearest(kind, TYPES)}')

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        asked = self._asked(index)
        return {
            "image": scenes.render(self.scene(index), self.size, self.noise),
            "question": _text(asked.form, asked.slots),
            "answers": [asked.answer],
            "question_type": asked.form.type,
            "answer_type": answer_type(asked.answer),
            "choices": self.choices(index),
            "name": self.name(index),
        }

    def captions(self, index: int) -> list[str]:
        """There are none."""
        del index
        return []

    def question(self, index: int) -> str:
        """The question of `self[index]`, without drawing it; so do the other methods."""
        asked = self._asked(index)
        return _text(asked.form, asked.slots)

    def answers(self, index: int) -> list[str]:
        """The one answer."""
        return [self._asked(index).answer]

    def choices(self, index: int) -> list[str]:
        """The answers that the question can have, for a multiple choice."""
        asked = self._asked(index)
        return list(asked.form.answers(asked.slots))

    def question_type(self, index: int) -> str:
        """One of TYPES."""
        return self._asked(index).form.type

    def answer_type(self, index: int) -> str:
        """ "yes/no", "number" or "other"."""
        return answer_type(self._asked(index).answer)

    def name(self, index: int) -> str:
        """What messages call the example."""
        return f"scene_questions/{self.split}/{index}"

    def group(self, index: int) -> str:
        """The same for the questions that were meant to be about one image."""
        return f"scene_questions/{self.split}/{_checked(self, index) // self.per_image}"

    def scene(self, index: int) -> Scene:
        """The scene that is asked about."""
        group, k = divmod(_checked(self, index), self.per_image)
        return _scenes(self.split, self.seed, group, self.max_objects, self.per_image, self.types)[k]

    def _asked(self, index: int) -> Asked:
        return _ask(self.types, self.seed, SPLITS.index(self.split), _checked(self, index))


def _checked(source: Any, index: int) -> int:
    index = operator.index(index)
    if not 0 <= index < source.length:
        raise IndexError(f"{source.split} has no question {index}; it has {source.length}.")
    return index


def _split(split: str) -> str:
    if split not in SPLITS:
        raise ValueError(f'Unknown split "{split}" of questions about scenes.{nearest(split, SPLITS)}')
    return split


def _size(size: int) -> int:
    if size < 24:
        raise ValueError(f"size is {size}: the shapes of scenes need at least 24 pixels.")
    return size


def _noise(noise: float) -> float:
    if noise < 0:
        raise ValueError(f"noise is {noise}: a standard deviation cannot be negative.")
    return noise
