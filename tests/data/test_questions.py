"""Questions about images: every format, what malformed input gets, and the real data sets where they are."""

import io
import json
import pickle
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmgen_jax.data import sources, transforms


def image(value=0):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path, content):
    """bytes, text, or else JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = content if isinstance(content, (bytes, str)) else json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def images(root, *names):
    for value, name in enumerate(names):
        write(root / name, image(value))
    return str(root)


def lines(*rows):
    return "\n".join(map(json.dumps, rows))


def said(source):
    """All that a source says without reading an image, and that its examples say the same."""
    rows = []
    for i in range(len(source)):
        row = (
            source.question(i),
            source.answers(i),
            source.question_type(i),
            source.answer_type(i),
            source.name(i),
        )
        example = source[i]
        keys = ("question", "answers", "question_type", "answer_type", "name")
        assert tuple(example[key] for key in keys) == row
        rows.append(row)
    with pytest.raises(IndexError):
        source[len(source)]
    assert source.captions(0) == [] and pickle.loads(pickle.dumps(source)).question(0) == source.question(0)
    return rows


# ---------------- VQA

ASKED = [
    {"question_id": 90, "image_id": 9, "question": "What is this?"},
    {"question_id": 91, "image_id": 9, "question": "Is it red? "},
    {"question_id": 250, "image_id": 25, "question": "How many?"},
]
NOTES = [
    {
        "question_id": number,
        "image_id": picture,
        "question_type": kind,
        "answer_type": answer_kind,
        "multiple_choice_answer": answers[0],
        "answers": [
            {"answer": a, "answer_confidence": "yes", "answer_id": k} for k, a in enumerate(answers, 1)
        ],
    }
    for number, picture, kind, answer_kind, answers in (
        (250, 25, "how many", "number", ["2"] * 6 + ["3"] * 4),
        (90, 9, "what is", "other", ["cat"] * 10),
        (91, 9, "is it", "yes/no", ["no"] * 10),
    )
]
FILES = ("COCO_train2014_000000000009.jpg", "COCO_train2014_000000000025.jpg")


def vqa(tmp_path, asked=ASKED, notes=NOTES, **more):
    images(tmp_path / "images", *FILES)
    spec = {
        "name": "vqa",
        "questions": write(tmp_path / "q.json", {"data_subtype": "train2014", "questions": asked}),
        "images": str(tmp_path / "images"),
    }
    if notes is not None:
        spec["annotations"] = write(tmp_path / "a.json", {"annotations": notes})
    return sources.make({**spec, **more})


def test_vqa(tmp_path):
    source = vqa(tmp_path)
    assert said(source) == [
        ("What is this?", ["cat"] * 10, "what is", "other", FILES[0]),
        ("Is it red?", ["no"] * 10, "is it", "yes/no", FILES[0]),
        ("How many?", ["2"] * 6 + ["3"] * 4, "how many", "number", FILES[1]),
    ]
    assert [source[i]["image"] for i in range(3)] == [image(0), image(0), image(1)]
    assert not hasattr(source, "choices")


def test_vqa_without_annotations_has_secret_answers(tmp_path):
    source = vqa(tmp_path, notes=None)
    assert said(source)[2] == ("How many?", [], "how many?", "", FILES[1])


def test_vqa_multiple_choice(tmp_path):
    asked = [{**row, "multiple_choices": ["no", "2", "cat"]} for row in ASKED]
    source = vqa(tmp_path, asked)
    assert source.choices(1) == source[1]["choices"] == ["no", "2", "cat"]


def test_other_data_in_the_format_of_vqa(tmp_path):
    images(tmp_path / "images", "image9.png", "image25.png")
    assert said(vqa(tmp_path, image_file="image{id}.png"))[0][-1] == "image9.png"
    with pytest.raises(ValueError, match=r"image_file='\{ids\}\.png' is no name for the image_id 9"):
        vqa(tmp_path, image_file="{ids}.png")


@pytest.mark.parametrize(
    ("asked", "notes", "message"),
    [
        (ASKED, NOTES[:2], r"question without annotation in .*a\.json: 1 \(question_id 91\)"),
        (ASKED[:1], NOTES, r"annotation without question in .*a\.json: 2 \(question_id (91|250); question_id (250|91)\)"),
        (ASKED, [{**NOTES[0], "image_id": 9}, *NOTES[1:]], r"another image: 1 \(question_id 250 \(image_id 25, annotated 9\)\)"),
        ([*ASKED, ASKED[0]], NOTES, r"question that comes twice: 1 \(question_id 90\)"),
        (ASKED, [*NOTES, NOTES[0]], r"annotation that comes twice in .*: 1 \(question_id 250\)"),
        ([*ASKED[:2], {**ASKED[2], "question": " "}], NOTES, r"image without question: 1 \(question_id 250\)"),
        (ASKED, [{**NOTES[0], "answers": []}, *NOTES[1:]], r"question without answer: 1 \(question_id 250 \('How many"),
        (ASKED, [{**NOTES[0], "answers": [{"answer": 2}]}, *NOTES[1:]], r"question without answer: 1"),
        ([*ASKED[:2], {**ASKED[2], "image_id": 26}], [{**NOTES[0], "image_id": 26}, *NOTES[1:]],
         r"question without image: 1 \(question_id 250 \(COCO_train2014_000000000026\.jpg\)\)"),
    ],
)  # fmt: skip
def test_vqa_what_does_not_match(tmp_path, asked, notes, message):
    with pytest.raises(ValueError, match=f'(?s)has unusable entries.*{message}.*on_missing="skip"'):
        vqa(tmp_path, asked, notes)
    assert 1 <= len(vqa(tmp_path, asked, notes, on_missing="skip")) <= 3


def test_vqa_wrong_files(tmp_path):
    with pytest.raises(ValueError, match=r'entry 0 of "questions" has no "question_id"'):
        vqa(tmp_path, [{"image_id": 1, "question": "?"}])
    with pytest.raises(ValueError, match=r'a\.json: entry 0 of "annotations" has no "answers"'):
        vqa(tmp_path, notes=[{"question_id": 90, "image_id": 9}])
    with pytest.raises(ValueError, match=r'has no list "questions"'):
        vqa(tmp_path, questions=write(tmp_path / "x.json", {"annotations": []}))
    with pytest.raises(ValueError, match=r"broken JSON.*copy it again"):
        vqa(tmp_path, questions=write(tmp_path / "x.json", '{"questions": [{"ques'))
    with pytest.raises(FileNotFoundError, match=r"None of the images .* Is that the right folder"):
        vqa(tmp_path, image_file="{id}.jpg")
    with pytest.raises(FileNotFoundError, match=r"none\.json does not exist"):
        vqa(tmp_path, annotations=str(tmp_path / "none.json"))
    with pytest.raises(ValueError, match=r'Unknown key "image" in data source "vqa"\. Did you mean "images"'):
        vqa(tmp_path, image="x")
    with pytest.raises(ValueError, match="holds no usable question"):
        vqa(tmp_path, [], [])


# ---------------- DAQUAR

DAQUAR = """what is on the desk in the image3 ?
book, scissor
how many chairs are there in the image7 ?
2
what is the colour of the box of the image3 ?
red
"""


def test_daquar_text(tmp_path):
    images(tmp_path, "image3.png", "image7.png")
    spec = {"name": "daquar", "path": write(tmp_path / "qa.37.raw.train.txt", DAQUAR)}
    assert said(sources.make(spec)) == [
        ("what is on the desk ?", ["book, scissor"], "what is", "other", "image3.png"),
        ("how many chairs are there ?", ["2"], "how many", "number", "image7.png"),
        ("what is the colour of the box ?", ["red"], "what is", "other", "image3.png"),
    ]
    assert len(sources.make({**spec, "single": True})) == 2
    write(tmp_path / "qa.37.raw.train.txt", DAQUAR.removesuffix("red\n"))
    with pytest.raises(ValueError, match="has 5 lines, question and answer in turn"):
        sources.make(spec)
    write(tmp_path / "qa.37.raw.train.txt", "what is it ?\nbox\n")
    with pytest.raises(ValueError, match=r'line 1: no "\.\.\. in the image3 \?"'):
        sources.make(spec)


def test_daquar_keeps_rooms_together(tmp_path):
    numbers = (9, 3, 4, 5, 10, 12)
    names = [f"images/image{number}.jpg" for number in numbers]
    images(tmp_path, *names, "images/hall.jpg")
    rows = [
        {"image": name, "question": "what is it ?", "answer": "box"} for name in [*names, "images/hall.jpg"]
    ]
    source = sources.make({"name": "daquar", "path": write(tmp_path / "qa.jsonl", lines(*rows))})
    found = [source.group(i) for i in range(7)]
    assert found == ["image9", "image3", "image3", "image3", "image9", "image12", "images/hall.jpg"]


def test_daquar_json_lines(tmp_path):
    images(tmp_path / "images", "image3.jpg")
    row = {
        "image": "images/image3.jpg",
        "question": "what is it ?",
        "answer": "box",
        "answers": ["box"],
        "split": "train",
    }
    spec = {
        "name": "daquar",
        "path": write(tmp_path / "qa.jsonl", lines(row, {**row, "split": "val"})),
        "split": "val",
    }
    assert said(sources.make(spec)) == [("what is it ?", ["box"], "what is", "other", "images/image3.jpg")]
    with pytest.raises(ValueError, match=r'has no split "test"\. It has: train, val'):
        sources.make({**spec, "split": "test"})
    write(
        tmp_path / "qa.jsonl",
        lines(row, {k: v for k, v in row.items() if k != "answer"}, {**row, "image": None}),
    )
    with pytest.raises(
        ValueError,
        match=r"(?s)question without answer: 1 \(line 2 .*question without image: 1 \(line 3 \(None",
    ):
        sources.make({**spec, "split": None})


# ---------------- CLEVR and GQA


def test_clevr(tmp_path):
    images(tmp_path / "images" / "val", "CLEVR_val_000000.png", "CLEVR_val_000001.png")
    rows = [
        {
            "image_filename": f"CLEVR_val_00000{k}.png",
            "split": "val",
            "question": text,
            "answer": answer,
            "program": [{"function": "scene"}, {"function": kind}],
        }
        for k, text, answer, kind in (
            (0, "Are there more cubes than balls?", "yes", "greater_than"),
            (1, "How many cubes are there?", "3", "count"),
        )
    ]
    spec = {"name": "clevr", "images": str(tmp_path / "images")}
    source = sources.make({**spec, "questions": write(tmp_path / "q.json", {"questions": rows})})
    assert said(source) == [
        ("Are there more cubes than balls?", ["yes"], "greater_than", "yes/no", "val/CLEVR_val_000000.png"),
        ("How many cubes are there?", ["3"], "count", "number", "val/CLEVR_val_000001.png"),
    ]
    secret = [{k: v for k, v in row.items() if k not in ("answer", "program")} for row in rows]
    source = sources.make({**spec, "questions": write(tmp_path / "q.json", {"questions": secret})})
    assert said(source)[1][1:4] == ([], "how many", "")
    with pytest.raises(ValueError, match=r"question without answer: 1 \(question 1"):
        sources.make({**spec, "questions": write(tmp_path / "q.json", {"questions": [rows[0], secret[1]]})})


def test_gqa(tmp_path):
    images(tmp_path / "images", "2370799.jpg", "5.jpg")
    first = {
        "imageId": "2370799", "question": "Is the sky dark?", "answer": "yes", "types": {"structural": "verify"}
    }  # fmt: skip
    second = {"imageId": "5", "question": "What is on the wall?", "answer": "pipe"}
    spec = {"name": "gqa", "images": str(tmp_path / "images")}
    expected = [
        ("Is the sky dark?", ["yes"], "verify", "yes/no", "2370799.jpg"),
        ("What is on the wall?", ["pipe"], "what is", "other", "5.jpg"),
    ]
    whole = write(tmp_path / "q.json", {"02930152": first, "07333408": second})
    assert said(sources.make({**spec, "questions": whole})) == expected
    write(tmp_path / "parts" / "q_0.json", {"02930152": first})
    write(tmp_path / "parts" / "q_1.json", {"07333408": second})
    assert said(sources.make({**spec, "questions": str(tmp_path / "parts")})) == expected
    with pytest.raises(ValueError, match=r'the question 1 has no "imageId"'):
        sources.make({**spec, "questions": write(tmp_path / "q.json", {"1": {"question": "?"}})})
    with pytest.raises(ValueError, match="no object of questions"):
        sources.make({**spec, "questions": write(tmp_path / "q.json", [])})
    with pytest.raises(ValueError, match=r"question without image: 1 \(question 3 \(7\.jpg\)\)"):
        sources.make(
            {**spec, "questions": write(tmp_path / "q.json", {"2": first, "3": {**second, "imageId": "7"}})}
        )


# ---------------- easy-VQA, SHAPES, NLVR


def test_easy_vqa(tmp_path):
    table = {
        "image": [image(0), image(1)],
        "image_id": [4, 5],
        "questions": [["what shape is it?", "is it red?"], ["is it blue?"]],
        "answers": [["circle", "no"], ["yes"]],
        "split": ["train", "val"],
    }
    pq.write_table(pa.table(table), tmp_path / "data.parquet")
    spec = {"name": "easy_vqa", "path": str(tmp_path / "data.parquet")}
    source = sources.make(spec)
    assert said(source) == [
        ("what shape is it?", ["circle"], "what shape", "other", "data.parquet/4"),
        ("is it red?", ["no"], "is it", "yes/no", "data.parquet/4"),
        ("is it blue?", ["yes"], "is it", "yes/no", "data.parquet/5"),
    ]
    assert [source[i]["image"] for i in range(3)] == [image(0), image(0), image(1)]
    assert [row[0] for row in said(sources.make({**spec, "split": "val"}))] == ["is it blue?"]
    with pytest.raises(ValueError, match="has no split"):
        sources.make({**spec, "split": "test"})
    folder = tmp_path / "train"
    images(folder / "images", "0.png", "1.png")
    write(folder / "questions.json", [["what shape is it?", "circle", 1], ["is it red?", "no", 0]])
    assert [row[::4] for row in said(sources.make({"name": "easy_vqa", "path": str(folder)}))] == [
        ("what shape is it?", "1.png"),
        ("is it red?", "0.png"),
    ]
    pq.write_table(
        pa.table({**table, "image": [None, image(1)], "answers": [["circle", "no"], []]}),
        tmp_path / "data.parquet",
    )
    with pytest.raises(
        ValueError, match=r"(?s)do not match: 1 \(row 1 \(1 and 0\)\).*question without image: 2 \(row 0"
    ):
        sources.make(spec)
    pq.write_table(pa.table({"image": [b""]}), tmp_path / "data.parquet")
    with pytest.raises(ValueError, match='has no column "image_id"; it has: image'):
        sources.make(spec)
    write(tmp_path / "data.parquet", b"PAR1")
    with pytest.raises(ValueError, match="no whole Parquet file"):
        sources.make(spec)


def test_shapes_vqa(tmp_path):
    pixels = np.arange(2 * 30 * 30 * 3).reshape(2, 30, 30, 3).astype(np.uint8)
    np.savez(tmp_path / "val_images.npz", images=pixels)
    row = {
        "index": 1,
        "question": "is a circle red",
        "program": "(is circle red)",
        "answer": "yes",
        "split": "val",
    }
    write(tmp_path / "val_qa.jsonl", lines(row, {**row, "index": 0, "answer": "no"}))
    spec = {"name": "shapes_vqa", "path": str(tmp_path), "split": "val"}
    source = sources.make(spec)
    assert said(source) == [
        ("is a circle red", ["yes"], "is a", "yes/no", "val_images.npz[1]"),
        ("is a circle red", ["no"], "is a", "yes/no", "val_images.npz[0]"),
    ]
    np.testing.assert_array_equal(source[0]["image"], pixels[1])
    with pytest.raises(ValueError, match=r'has no split "test"\. It has: val'):
        sources.make({**spec, "split": "test"})
    write(tmp_path / "val_qa.jsonl", lines(row, {**row, "index": 2}))
    with pytest.raises(ValueError, match=r"question without image: 1 \(line 2 \(2\)\)"):
        sources.make(spec)
    write(tmp_path / "val_images.npz", b"PK")
    with pytest.raises(ValueError, match='no whole archive with "images"'):
        sources.make(spec)


def test_nlvr(tmp_path):
    row = {"identifier": "12-0", "sentence": "There is a box", "label": "true", "directory": "3"}
    images(tmp_path / "images" / "3", *(f"dev-{number}-0-{k}.png" for number in (12, 13) for k in range(2)))
    other = {**row, "identifier": "13-0", "label": "false"}
    spec = {"name": "nlvr", "path": write(tmp_path / "dev.json", lines(row, other)), "orders": 2}
    source = sources.make(spec)
    assert said(source) == [
        ("There is a box", [said_], "statement", "true/false", f"3/dev-{number}-0-{k}.png")
        for number, said_ in ((12, "true"), (13, "false"))
        for k in range(2)
    ]
    assert {source.group(i) for i in range(4)} == {"there is a box"}
    with pytest.raises(ValueError, match=r"question without image: 8 \(line 1 \(3/dev-12-0-2\.png\)"):
        sources.make({**spec, "orders": 6})
    table = {"image": [image()], "name": ["a.png"], "sentence": ["A box"], "label": [False]}
    pq.write_table(pa.table(table), tmp_path / "data.parquet")
    spec = {"name": "nlvr", "path": str(tmp_path / "data.parquet")}
    assert said(sources.make(spec)) == [("A box", ["false"], "statement", "true/false", "a.png")]


def test_nlvr_s_groups_share_no_statement_and_no_picture(tmp_path):
    """What has the same words, or the same boxes in any order, belongs together, and so does what these link."""
    a, b, c, d = (np.full((4, 100, 3), value, np.uint8) for value in (0, 60, 120, 180))

    def boxes(*three):
        gap = np.full((4, 50, 3), 255, np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(np.concatenate([three[0], gap, three[1], gap, three[2]], axis=1)).save(buffer, "PNG")
        return buffer.getvalue()

    rows = [
        ("A box.", boxes(a, b, c)),
        ("two  towers", boxes(c, a, b)),
        ("Two towers!", boxes(d, d, a)),
        ("a box", boxes(d, d, b)),
        ("A tower", boxes(d, a, a)),
        ("a tower", boxes(d, b, a)),
        ("four", boxes(d, a, b)),
    ]
    table = {"image": [x for _, x in rows], "name": list("abcdefg"), "sentence": [text for text, _ in rows]}
    pq.write_table(pa.table({**table, "label": [True] * 7}), tmp_path / "data.parquet")
    source = sources.make({"name": "nlvr", "path": str(tmp_path / "data.parquet")})
    assert [source.group(i) for i in range(7)] == ["a box"] * 4 + ["a tower"] * 3
    base = {"label": "true", "directory": "3"}
    drawn = [{**base, "identifier": f"{k}-0", "sentence": str(k), "structured_rep": r} for k, r in enumerate(
        ([[{"x": 1}], [], []], [[], [], [{"x": 1}]], [[{"x": 2}], [], []])
    )]  # fmt: skip
    images(tmp_path / "images" / "3", *(f"dev-{k}-0-0.png" for k in range(3)))
    source = sources.make({"name": "nlvr", "path": write(tmp_path / "dev.json", lines(*drawn)), "orders": 1})
    assert [source.group(i) for i in range(3)] == ["0", "0", "2"]


# ---------------- parts


def test_parts_keep_an_image_s_questions_together(tmp_path):
    asked = [{"question_id": k, "image_id": k % 20, "question": f"Is it {k}?"} for k in range(100)]
    images(tmp_path / "images", *(f"{k}.jpg" for k in range(20)))
    more = {"notes": None, "image_file": "{id}.jpg"}
    whole = vqa(tmp_path, asked, **more)
    folds = [vqa(tmp_path, asked, part=f"held out 1/3, fold {k}", **more) for k in range(3)]
    rest = vqa(tmp_path, asked, part="but 1/3, fold 2", **more)
    found = [{part.question(i): part.name(i) for i in range(len(part))} for part in folds]
    assert sum(map(len, found)) == len(whole) and len(set().union(*found)) == len(whole)
    assert sum(len(set(names.values())) for names in found) == 20
    assert {rest.question(i) for i in range(len(rest))} == {*found[0], *found[1]}
    part = folds[0]
    assert (part.question_type(0), part.answers(0), part.answer_type(0), part.group(0)) == (
        "is it",
        [],
        "",
        part.name(0),
    )
    assert not hasattr(part, "choices") and pickle.loads(pickle.dumps(part)).question(0) == part.question(0)
    assert vqa(tmp_path, asked, part="held out 1/3", **more).question(0) == part.question(0)
    with pytest.raises(ValueError, match=r"part is .held out 1/3, fold 3.; .*counted from 0"):
        vqa(tmp_path, asked, part="held out 1/3, fold 3", **more)
    choice = [{**row, "multiple_choices": ["yes", "no"]} for row in asked]
    assert vqa(tmp_path, choice, part="but 1/3", **more).choices(3) == ["yes", "no"]


def test_several_questions_about_the_same(tmp_path):
    """Each comes first once; those that follow it are about its image, around, and all else is said of it alone."""
    places = [1, 2, 1, 1, 2, 3]
    asked = [
        {"question_id": k, "image_id": place, "question": f"Is it {k}?"} for k, place in enumerate(places)
    ]
    notes = [
        {"question_id": k, "image_id": place, "answers": [{"answer": f"answer {k}"}] * 2}
        for k, place in enumerate(places)
    ]
    images(tmp_path / "images", *(f"{k}.jpg" for k in range(4)))
    plain = vqa(tmp_path, asked, notes, image_file="{id}.jpg")
    source = vqa(tmp_path, asked, notes, image_file="{id}.jpg", together=2)
    assert len(source) == len(plain)
    for i, other in enumerate([2, 4, 3, 0, 1, 5]):
        example = source[i]
        assert example["question"] == [f"Is it {i}?", f"Is it {other}?"]
        assert example["answers"] == [[f"answer {i}"] * 2, [f"answer {other}"] * 2]
        rest = ("image", "name", "question_type", "answer_type")
        assert [example[key] for key in rest] == [plain[i][key] for key in rest]
        assert source.question(i) == plain.question(i) and source.name(i) == plain.name(i)
    part = vqa(tmp_path, asked, notes, image_file="{id}.jpg", part="but 1/2", together=3)
    again = pickle.loads(pickle.dumps(part))
    assert (
        again[0]["question"] == part[0]["question"]
        and len(part[0]["answers"]) == 3
        and not hasattr(part, "choices")
    )
    with pytest.raises(ValueError, match="together is 1"):
        vqa(tmp_path, asked, notes, image_file="{id}.jpg", together=1)
    with pytest.raises(ValueError, match="which this source does not have"):
        sources.make({"name": "scenes", "together": 2})


# ---------------- the real data


def folder(shared_data, name):
    path = shared_data / name
    if not path.is_dir():
        pytest.skip(f"needs the data set at {path}, which this machine does not have")
    return path


def see(source):
    """The first image decodes."""
    example = source[0]
    for transform in transforms.parse("decode", {}):
        example = transform(example, np.random.default_rng(0))
    return example["image"].shape


def test_real_daquar(shared_data):
    path = folder(shared_data, "daquar_112")
    source = sources.make({"name": "daquar", "path": str(path / "qa.jsonl"), "split": "train"})
    assert len(source) == 6795 and see(source) == (84, 112, 3)
    assert len({source.name(i) for i in range(len(source))}) == 794  # one of the 795 is asked nothing
    assert len({source.group(i) for i in range(len(source))}) == 124
    again = sources.make(
        {
            "name": "vqa",
            "questions": str(path / "questions_vqa_v2_format.json"),
            "annotations": str(path / "annotations_vqa_v2_format.json"),
            "images": str(path / "images"),
            "image_file": "image{id}.jpg",
        }
    )
    assert len(again) == 6795
    assert all(again.question(i) == source.question(i) for i in range(0, 6795, 50))
    assert {again.answer_type(i) for i in range(len(again))} <= {"yes/no", "number", "other"}


def test_real_easy_vqa(shared_data):
    path = folder(shared_data, "easy_vqa")
    source = sources.make({"name": "easy_vqa", "path": str(path / "data.parquet"), "split": "train"})
    assert len(source) == 38575 and see(source) == (64, 64, 3)
    answers = Counter(source.answers(i)[0] for i in range(len(source)))
    assert set(answers) == set((path / "answers.txt").read_text().split())


def test_real_shapes_vqa(shared_data):
    path = folder(shared_data, "shapes_vqa")
    for split, count in (("train", 704), ("val", 1024)):
        source = sources.make({"name": "shapes_vqa", "path": str(path), "split": split})
        assert len(source) == count and see(source) == (30, 30, 3)
        assert {source.answers(i)[0] for i in range(count)} == {"yes", "no"}


def test_real_nlvr(shared_data):
    path = folder(shared_data, "nlvr_dev")
    source = sources.make({"name": "nlvr", "path": str(path / "data.parquet")})
    assert len(source) == 1978 and see(source) == (100, 400, 3)
    folds = [sources.Part(source, f"held out 1/5, fold {k}") for k in range(5)]
    said_ = [{fold.question(i).lower().strip(" .") for i in range(len(fold))} for fold in folds]
    assert sum(map(len, said_)) == len(set().union(*said_)) and min(map(len, folds)) > 200
