"""Questions about scenes: true answers, balance for those who do not look, disjoint splits, the same on every machine."""

import hashlib
import itertools
import json
import pickle
from collections import Counter, defaultdict

import numpy as np
import pytest

from mmgen_jax.data import scene_questions as lib
from mmgen_jax.data import scenes, sources
from mmgen_jax.data.scene_questions import SceneQuestions
from mmgen_jax.data.scenes import Object, Scene

SCENE = Scene(
    (
        Object("red", "circle", "large", 0, 0),
        Object("red", "star", "small", 0, 2),
        Object("blue", "star", "large", 1, 1),
        Object("green", "cross", "small", 2, 1),
    )
)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("is there a red star?", "yes"),
        ("is there a blue circle?", "no"),
        ("is there a large cross?", "no"),
        ("is there a small red star?", "yes"),
        ("how many stars are there?", "2"),
        ("how many red objects are there?", "2"),
        ("how many crosses are there?", "1"),
        ("how many large rings are there?", "0"),
        ("what colour is the circle?", "red"),
        ("what colour is the large star?", "blue"),
        ("what colour is the star?", None),  # there are two
        ("what colour is the ring?", None),  # there is none
        ("what shape is the small red object?", "star"),
        ("what shape is the red object?", None),
        ("what size is the green cross?", "small"),
        ("are there more stars than crosses?", "yes"),
        ("are there more crosses than circles?", "no"),
        ("are there fewer blue objects than red objects?", "yes"),
        ("are there as many circles as crosses?", "yes"),
        ("are there as many stars as crosses?", "no"),
        ("are there as many rings as hearts?", "yes"),
        ("is the circle the same colour as the cross?", "no"),
        ("is the blue object the same size as the circle?", "yes"),
        ("is the circle the same colour as the star?", None),
        ("is the circle bigger than the cross?", "yes"),
        ("is the cross bigger than the circle?", "no"),
        ("is the circle bigger than the blue star?", "no"),
        ("is the circle left of the cross?", "yes"),
        ("is the cross left of the blue star?", "no"),  # the same column
        ("is the cross below the blue star?", "yes"),
        ("is the circle above the red star?", "no"),
        ("what colour is the object below the blue object?", "green"),
        ("what shape is the red object right of the cross?", "star"),
        ("what colour is the star above the green object?", None),  # both stars are
        ("what size is the object left of the circle?", None),
        ("how many objects are above the cross?", "3"),
        ("how many red objects are left of the cross?", "1"),
        ("how many stars are below the cross?", "0"),
        ("is there a star right of the cross?", "yes"),
        ("is there a circle right of the cross?", "no"),
        ("is there a star right of the red object?", None),
        # Other words for the same.
        ("What color is the BIG star ?", "blue"),
        ("is the disc to the left of the plus", "yes"),
        ("how many boxes are there", "0"),
        # Not of this grammar.
        ("where is the star?", None),
        ("is there a red red star?", None),
        ("", None),
    ],
)
def test_answers_by_hand(question, answer):
    assert lib.answer(question, SCENE) == answer
    assert answer is None or answer in lib.possible(question)


def test_answers_from_distant_places_agree():
    """The same relations and counts, said of mirrored scenes."""
    mirrored = Scene(tuple(o._replace(column=2 - o.column) for o in SCENE.objects))
    for question in ("is the {} left of the {}?", "is there a {} left of the {}?"):
        for a, b in itertools.permutations(("circle", "cross", "blue star"), 2):
            other = question.replace("left", "right")
            assert lib.answer(question.format(a, b), SCENE) == lib.answer(other.format(a, b), mirrored)


@pytest.mark.parametrize(("split", "per_image"), [("train", 1), ("val", 1), ("test", 3)])
def test_every_answer_is_true(split, per_image):
    source = SceneQuestions(split, per_image=per_image, seed=3)
    for i in range(120):
        scene, question, (answer,) = source.scene(i), source.question(i), source.answers(i)
        assert lib.answer(question, scene) == answer, (i, question, scene)
        assert answer in lib.possible(question)
        form, slots = lib.parse(question)
        assert lib._text(form, slots) == question
        assert (
            2 <= len(scene.objects) <= 5
            and scenes._hashed_split(map(scenes._NUMBER.get, scene.objects)) == split
        )
        assert (
            len({o[3:] for o in scene.objects}) == len({o[:2] for o in scene.objects}) == len(scene.objects)
        )


def test_examples():
    source = sources.make({"name": "scene_questions", "split": "val", "size": 32, "length": 5})
    assert len(source) == 5 and source.captions(0) == []
    for i in range(5):
        example = source[i]
        np.testing.assert_array_equal(example.pop("image"), scenes.render(source.scene(i), 32))
        assert example == {
            "question": source.question(i),
            "answers": source.answers(i),
            "question_type": source.question_type(i),
            "answer_type": source.answer_type(i),
            "choices": list(lib.possible(source.question(i))),
            "name": f"scene_questions/val/{i}",
        }
    with pytest.raises(IndexError, match="val has no question 5; it has 5"):
        source[5]
    assert pickle.loads(pickle.dumps(source)).question(3) == source.question(3)
    assert {lib.answer_type(answer) for answer in ("yes", "3", "small")} == {"yes/no", "number", "other"}


def asked(source, count):
    """(type, question, answer) of the first questions."""
    return [(source.question_type(i), source.question(i), source.answers(i)[0]) for i in range(count)]


def test_who_does_not_look_stays_at_chance():
    """The best constant answer for each question text, of 16,000 training questions, is at chance in 16,000 test questions."""
    count = 16000
    seen, means = defaultdict(Counter), Counter()
    for kind, question, answer in asked(SceneQuestions("train"), count):
        seen[question][answer] += 1
        seen[kind, lib.possible(question)][answer] += 1
    right, chance, number = Counter(), Counter(), Counter()
    for kind, question, answer in asked(SceneQuestions("test", length=count), count):
        best = (seen.get(question) or seen[kind, lib.possible(question)]).most_common(1)[0][0]
        right[kind] += best == answer
        chance[kind] += 1 / len(lib.possible(question))
        number[kind] += 1
    for kind in lib.TYPES:
        assert abs(number[kind] - count / 8) < 5 * (count / 8) ** 0.5
        share, expected = right[kind] / number[kind], chance[kind] / number[kind]
        error = (expected * (1 - expected) / number[kind]) ** 0.5
        assert abs(share - expected) < 4 * error < 0.046, f"{kind}: {share:.3f}, chance {expected:.3f}"
        means[kind] = expected
    assert means["existence"] == means["relation"] == means["comparison"] == means["size"] == 1 / 2
    assert means["colour"] == means["shape"] == 1 / 8 and means["count"] == 1 / 4


def test_each_possible_answer_is_as_likely():
    """For every set of possible answers of a type: how often each is true, against the same number each (chi-squared)."""
    tables = defaultdict(Counter)
    for kind, question, answer in asked(SceneQuestions("train", seed=1), 12000):
        tables[kind, lib.possible(question)][answer] += 1
    for (_, possible), table in tables.items():
        expected = table.total() / len(possible)
        chi = sum((table[answer] - expected) ** 2 / expected for answer in possible)
        assert chi < len(possible) - 1 + 4 * (2 * len(possible)) ** 0.5, table
    assert set().union(*(table for table in tables.values())) == set(lib.ANSWERS)


def test_types_are_asked_as_often_as_they_are_named():
    source = SceneQuestions("train", types=("relation", "size", "relation", "relation"), length=2000)
    types = Counter(source.question_type(i) for i in range(len(source)))
    assert types.keys() == {"relation", "size"} and abs(types["relation"] / 2000 - 3 / 4) < 0.04


def test_splits_share_no_scene():
    found = {}
    for split in lib.SPLITS:
        source = SceneQuestions(split, types=["existence"], max_objects=4)
        found[split] = {source.scene(i).objects for i in range(150)}
    assert not found["train"] & found["val"] | found["train"] & found["test"] | found["val"] & found["test"]
    questions = [SceneQuestions("train", seed=seed).question(i) for seed in (0, 1) for i in range(20)]
    assert questions[:20] != questions[20:]


def test_questions_about_the_same_image():
    source, count = SceneQuestions("train", per_image=4), 200
    images = [[source.scene(4 * group + k) for k in range(4)] for group in range(count // 4)]
    assert sum(len(set(own)) for own in images) < 0.6 * count
    assert any(len(set(own)) == 1 for own in images)
    assert [source.group(i) for i in (0, 3, 4)] == [f"scene_questions/train/{k}" for k in (0, 0, 1)]
    alone = SceneQuestions("train")
    assert [source.question(i) for i in range(20)] == [alone.question(i) for i in range(20)]


def test_the_same_on_every_machine():
    digest = hashlib.sha256()
    for split, more in itertools.product(lib.SPLITS, ({}, {"per_image": 2, "max_objects": 6, "seed": 5})):
        source = SceneQuestions(split, **more)
        for i in range(12):
            said = [source.question(i), source.answers(i), source.scene(i)]
            digest.update(json.dumps(said).encode())
    assert digest.hexdigest() == "196d9be6a8827ea17eeacdd2e75206cc79497a560534bcefff534e658e035e7a", (
        "Other questions than before: change this value only if you mean to, and say so, as results are no longer comparable."
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "vall"}, 'Unknown split "vall".*Did you mean "val"'),
        ({"types": ["color"]}, 'Unknown type "color".*Did you mean "colour"'),
        ({"types": []}, 'Unknown type ""'),
        ({"size": 20}, "at least 24 pixels"),
        ({"noise": -0.1}, "cannot be negative"),
        ({"max_objects": 3}, "max_objects is 3"),
        ({"max_objects": 7}, "max_objects is 7"),
        ({"per_image": 0}, "at least one question"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(ValueError, match=message):
        SceneQuestions(**arguments)
