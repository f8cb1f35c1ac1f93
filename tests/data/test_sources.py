"""Sources: every format, what malformed input gets, and the real data sets where they are."""

import gzip
import io
import json
import pickle
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ml_collections import ConfigDict
from PIL import Image

from mmgen_jax.data import sources
from mmgen_jax.data.idx import idx_bytes
from mmgen_jax.data.quarantine import BrokenExample


def image(value=0):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path, content):
    """bytes, text, or else JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, (bytes, str)):
        content = json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return str(path)


def images(root, *names):
    for value, name in enumerate(names):
        write(root / name, image(value))
    return str(root)


def check(source, names, captions):
    """The source holds images() of these names, in this order, with these captions."""
    assert len(source) == len(names)
    for i, (name, texts) in enumerate(zip(names, captions, strict=True)):
        assert source.captions(i) == texts
        assert source.name(i) == name
        assert source[i] == {"image": image(i), "captions": texts, "name": name}
    with pytest.raises(IndexError):
        source[len(source)]
    # Worker processes get a copy.
    assert pickle.loads(pickle.dumps(source))[0] == source[0]


# ---------------- jsonl

ROWS = [
    {"image": "a.png", "captions": ["a dog", "ein Hündchen"], "split": "train"},
    {"image": "b.png", "captions": "one cat", "split": "train"},
    {"image": "sub/c.png", "captions": ["a cow "], "split": "val"},
]


def jsonl(tmp_path, rows=ROWS, raw=None, **kwargs):
    images(tmp_path, "a.png", "b.png", "sub/c.png")
    text = raw if raw is not None else "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    return sources.make({"name": "jsonl", "path": write(tmp_path / "x.jsonl", text), **kwargs})


def test_jsonl(tmp_path):
    texts = [["a dog", "ein Hündchen"], ["one cat"], ["a cow"]]
    check(jsonl(tmp_path), ["a.png", "b.png", "sub/c.png"], texts)
    check(jsonl(tmp_path, split="train"), ["a.png", "b.png"], texts[:2])


def test_jsonl_with_other_keys_folder_byte_order_mark_and_blank_lines(tmp_path):
    rows = [{"file": "a.png", "text": "x", "part": "p"}]
    raw = b"\xef\xbb\xbf\n" + json.dumps(rows[0]).encode() + b"\r\n\n"
    images(tmp_path / "elsewhere", "a.png")
    keys = {"image_key": "file", "captions_key": "text", "split_key": "part", "split": "p"}
    source = jsonl(tmp_path, raw=raw, images=str(tmp_path / "elsewhere"), **keys)
    check(source, ["a.png"], [["x"]])


def test_jsonl_cut_in_mid_file(tmp_path):
    raw = "\n".join(map(json.dumps, ROWS))[:-20]
    with pytest.raises(ValueError, match=r"x\.jsonl, line 3: broken JSON .* copy it again"):
        jsonl(tmp_path, raw=raw)
    with pytest.raises(ValueError, match=r"x\.jsonl, line 1: expected a JSON object"):
        jsonl(tmp_path, raw="[1]\n")


def test_jsonl_empty_file(tmp_path):
    with pytest.raises(ValueError, match=r"x\.jsonl holds no usable example"):
        jsonl(tmp_path, raw="")


def test_jsonl_unusable_entries_are_counted_and_named(tmp_path):
    bad = [{"captions": ["x"]}] * 7 + [
        {"image": "b.png", "captions": []},
        {"image": "b.png", "captions": ["x", "  "]},
        {"image": "b.png", "captions": [3]},
    ]
    with pytest.raises(ValueError) as error:
        jsonl(tmp_path, rows=ROWS + bad)
    message = str(error.value)
    for part in (
        "x.jsonl has unusable entries",
        'captions without image: 7 (line 4: no "image"; line 5',
        "and 2 more",
        "image without captions: 1 (line 11 (b.png))",
        "empty caption: 1 (line 12 (b.png), caption 2)",
        "caption that is no text: 1 (line 13 (b.png), caption 1: 3)",
        'on_missing="skip"',
        'image_key="image"',
    ):
        assert part in message
    kept = jsonl(tmp_path, rows=ROWS + bad, on_missing="skip")
    assert [kept.captions(i) for i in range(len(kept))][3:] == [["x"]]


def test_jsonl_not_utf8(tmp_path):
    raw = json.dumps(ROWS[0]).encode() + b'\n{"image": "b.png", "captions": ["caf\xe9"]}\n'
    with pytest.raises(ValueError, match=r"x\.jsonl, line 2: not UTF-8 \(byte 0xe9 at column 37\).*iconv"):
        jsonl(tmp_path, raw=raw)


def test_unknown_split_says_which_exist(tmp_path):
    with pytest.raises(ValueError, match=r'x\.jsonl has no split "test"\. It has: train, val\.'):
        jsonl(tmp_path, split="test")
    with pytest.raises(ValueError, match=r'line 1: no field "part".*Set split_key'):
        jsonl(tmp_path, split="train", split_key="part")


def test_a_missing_image_is_broken_when_it_is_read(tmp_path):
    source = jsonl(tmp_path)
    (tmp_path / "b.png").unlink()
    source = jsonl(tmp_path, rows=[ROWS[0], {"image": "gone.png", "captions": ["x"]}])
    assert source.captions(1) == ["x"] and source.name(1) == "gone.png"
    with pytest.raises(BrokenExample, match=r"missing file: .*gone\.png"):
        source[1]


def test_when_no_image_is_there_the_folder_is_wrong(tmp_path):
    (tmp_path / "other").mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"x\.jsonl names is in .*other; expected for example .*a\.png"
    ):
        jsonl(tmp_path, images=str(tmp_path / "other"))


# ---------------- parquet


def parquet(tmp_path, table=None, **kwargs):
    if table is None:
        table = {
            "image": [image(0), image(1), image(2)],
            "captions": [["a dog", "x"], ["y"], ["z"]],
            "name": ["a", "b", "c"],
            "split": ["train", "train", "val"],
        }
    pq.write_table(pa.table(table), tmp_path / "x.parquet")
    return sources.make({"name": "parquet", "path": str(tmp_path / "x.parquet"), **kwargs})


def test_parquet(tmp_path):
    check(parquet(tmp_path), ["a", "b", "c"], [["a dog", "x"], ["y"], ["z"]])
    check(parquet(tmp_path, split="train"), ["a", "b"], [["a dog", "x"], ["y"]])


def test_parquet_folder_other_columns_and_structs_of_bytes(tmp_path):
    for i in range(2):
        struct_column = [{"bytes": image(i), "path": None}]
        pq.write_table(pa.table({"img": struct_column, "text": [f"t{i}"]}), tmp_path / f"{i}.parquet")
    (tmp_path / "README.md").write_text("not Parquet")
    spec = {"name": "parquet", "path": str(tmp_path), "image": "img", "captions": "text"}
    check(sources.make(spec), ["row 0", "row 1"], [["t0"], ["t1"]])


def test_parquet_joins_columns_of_captions(tmp_path):
    """Names and tags; a row may have none of one kind."""
    table = {
        "image": [image(0), image(1)],
        "captions": [["a dog"], []],
        "tags": [["pet", "animal"], ["sun"]],
        "title": ["Dog", "Sun"],
    }
    source = parquet(tmp_path, table, captions=("captions", "tags", "title"))
    check(source, ["row 0", "row 1"], [["a dog", "pet", "animal", "Dog"], ["sun", "Sun"]])
    with pytest.raises(ValueError, match=r'no column "tag"\. Did you mean "tags"'):
        parquet(tmp_path, table, captions=("captions", "tag"))


def test_a_part_of_a_source(tmp_path):
    rows = [{"image": f"{i}.jpg", "captions": [f"caption {i}"], "split": "train"} for i in range(200)]
    images(tmp_path, *(row["image"] for row in rows))
    held_out, others = (jsonl(tmp_path, rows, part=part) for part in ("held out 1/10", "but 1/10"))
    names = [[source.name(i) for i in range(len(source))] for source in (held_out, others)]
    assert 10 <= len(held_out) <= 30
    assert sorted(names[0] + names[1]) == sorted(row["image"] for row in rows)
    assert held_out[0]["name"] == names[0][0]
    assert held_out.captions(0) == held_out[0]["captions"] == [f"caption {names[0][0].removesuffix('.jpg')}"]
    again = jsonl(tmp_path, rows[::2], part="held out 1/10")
    assert {again.name(i) for i in range(len(again))} <= set(names[0]), "an example stays where it is"


def test_a_part_keeps_the_classes(tmp_path):
    table = {"image": [image(i) for i in range(9)], "captions": ["x"] * 9, "kind": ["a", "b", "c"] * 3}
    whole = parquet(tmp_path, table, label="kind")
    part = parquet(tmp_path, table, label="kind", part="but 1/2")
    assert part.classes == whole.classes == ["a", "b", "c"]
    assert [part.label(i) for i in range(len(part))] == [int(part[i]["label"]) for i in range(len(part))]


def test_part_errors(tmp_path):
    with pytest.raises(ValueError, match=r"part is 'a tenth'; it is \"held out 1/10\""):
        parquet(tmp_path, part="a tenth")
    with pytest.raises(ValueError, match="names of the examples, which this source does not have"):
        sources.make({"name": "scenes", "length": 5, "part": "but 1/10"})


def test_parquet_errors(tmp_path):
    with pytest.raises(ValueError, match=r'no column "caption"\. Did you mean "captions"'):
        parquet(tmp_path, captions="caption")
    with pytest.raises(ValueError, match=r'no split "dev"\. It has: train, val'):
        parquet(tmp_path, split="dev")
    with pytest.raises(ValueError, match="not the bytes of images"):
        parquet(tmp_path, image="name")
    whole = (tmp_path / "x.parquet").read_bytes()
    (tmp_path / "x.parquet").write_bytes(whole[:-30])
    with pytest.raises(ValueError, match=r"x\.parquet is no whole Parquet file .* copy it again"):
        sources.make({"name": "parquet", "path": str(tmp_path / "x.parquet")})
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds no \*\.parquet"):
        sources.make({"name": "parquet", "path": str(tmp_path / "empty")})


def test_parquet_unusable_rows(tmp_path):
    table = {"image": [image(0), None, image(2), image(3)], "captions": [["a"], ["b"], [], [""]]}
    with pytest.raises(ValueError) as error:
        parquet(tmp_path, table)
    for part in (
        "captions without image: 1 (row 1 (row 1))",
        "image without captions: 1 (row 2",
        "empty caption: 1 (row 3",
    ):
        assert part in str(error.value)
    check(parquet(tmp_path, table, on_missing="skip"), ["row 0"], [["a"]])


def test_parquet_not_utf8(tmp_path):
    bad = pa.Array.from_buffers(pa.string(), 2, pa.array([b"ok", b"caf\xe9"]).buffers())
    with pytest.raises(ValueError, match=r"x\.parquet, row 1: not UTF-8"):
        parquet(tmp_path, {"image": [image(0), image(1)], "captions": bad})


def test_parquet_labels(tmp_path):
    table = {
        "image": [image(i) for i in range(4)],
        "captions": [["a"], ["b"], ["c"], ["d"]],
        "split": ["train", "train", "val", "val"],
        "kind": ["pear", "apple", "fig", "pear"],
        "number": [10, 9, 10, 2],
        "share": [0.5, 1.0, 1.5, 2.0],
    }
    source = parquet(tmp_path, table, split="val", label="kind")
    assert source.classes == ["apple", "fig", "pear"]  # of all splits
    assert [source.label(i) for i in range(2)] == [1, 2]
    assert source[1]["label"] == 2 and source[1]["label"].dtype == np.int32
    numbers = parquet(tmp_path, table, label="number")
    assert numbers.classes == ["2", "9", "10"] and numbers.label(0) == 2
    table["kind"] = pa.array(["pear", "apple", None, "pear"]).dictionary_encode()
    assert len(parquet(tmp_path, table, label="kind", on_missing="skip")) == 3
    with pytest.raises(ValueError, match=r"image without label: 1 \(row 2"):
        parquet(tmp_path, table, label="kind")
    with pytest.raises(ValueError, match=r'no column "knd"\. Did you mean "kind"'):
        parquet(tmp_path, table, label="knd")
    with pytest.raises(ValueError, match='"share" holds double, not labels'):
        parquet(tmp_path, table, label="share")
    assert not hasattr(parquet(tmp_path, table), "classes")


# ---------------- webdataset


def tar(path, members, form=tarfile.PAX_FORMAT):
    """A tar of (name, content), in this order."""
    with tarfile.open(path, "w", format=form) as file:
        for name, content in members:
            content = content if isinstance(content, bytes) else content.encode("utf-8")
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return str(path)


def webdataset(path, **kwargs):
    return sources.make({"name": "webdataset", "path": str(path), **kwargs})


PAIRS = [("17.png", image(0)), ("17.txt", "a dog\nein Hündchen\n"), ("17.cls", "3")]
MORE = [
    ("sub/19.json", json.dumps({"caption": "a cow", "url": "x"})),
    ("sub/19.PNG", image(2)),
    ("sub/19.seg.png", b"a key ends at the first dot"),
    ("sub/._19.jpg", b"Mac"),
    ("README.md", "about"),
]
LONG = "folder/" + "n" * 200


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_webdataset(tmp_path, form):
    tar(tmp_path / "00.tar", [*PAIRS, (f"{LONG}.txt", "one cat"), (f"{LONG}.png", image(1))], form)
    tar(tmp_path / "01.tar", MORE, form)
    names = ["00.tar/17", f"00.tar/{LONG}", "01.tar/sub/19"]
    texts = [["a dog", "ein Hündchen"], ["one cat"], ["a cow"]]
    for path in ("", "*.tar", "{00..01}.tar", "0{0,1}.tar", "0[01].tar"):
        check(webdataset(tmp_path / path), names, texts)
    check(webdataset(tmp_path / "00.tar"), names[:2], texts[:2])


def test_webdataset_fields_of_json(tmp_path):
    path = tar(tmp_path / "x.tar", [("a.png", image(0)), ("a.json", '{"text": ["x", "y"]}')])
    check(webdataset(path, captions_key="text"), ["x.tar/a"], [["x", "y"]])
    with pytest.raises(ValueError, match=r'without captions: 1 \(x\.tar/a\)(.|\n)*captions_key="caption"'):
        webdataset(path)


def test_webdataset_unusable_pairs_are_counted_and_named(tmp_path):
    members = [*PAIRS, ("b.png", image(1)), ("c.txt", "no image"), ("d.png", image(2)), ("d.txt", " ")]
    path = tar(tmp_path / "x.tar", [*members, ("17.txt", "again")])
    with pytest.raises(ValueError) as error:
        webdataset(path)
    for part in (
        "image without captions: 2 (x.tar/b; x.tar/d)",
        "captions without image: 1 (x.tar/c)",
        "file written twice: 1 (x.tar/17.txt)",
        'on_missing="skip"',
    ):
        assert part in str(error.value)
    assert len(webdataset(path, on_missing="skip")) == 1
    with pytest.raises(ValueError, match="holds no image with a"):
        webdataset(tar(tmp_path / "none.tar", [("a.bin", b"x")]))


def test_webdataset_cut_or_compressed(tmp_path):
    path = tmp_path / "x.tar"
    tar(path, PAIRS)
    whole, size = path.read_bytes(), len(image(0))  # 512 bytes of header, an image of less than 512, the next
    cases = [
        (
            whole[: 512 + size - 1],
            rf"x\.tar is cut: 17\.png begins at byte 512 and has {size} bytes, .* at byte",
        ),
        (whole[:1500], r"x\.tar is cut or damaged: at byte 1024 of 1500"),
        (whole[:1024], r"x\.tar is cut or damaged: at byte 1024 of 1024"),
        (whole[:1024] + b"\1" * 1024, r"x\.tar is cut or damaged: at byte 1024 of 2048"),
        (whole[:200], r"x\.tar is no plain tar file .* copy it again"),
        (b"", r"x\.tar is no plain tar file"),
        (gzip.compress(whole), r"x\.tar is no plain tar file .*unpack it with gunzip"),
    ]
    for data, message in cases:
        path.write_bytes(data)
        with pytest.raises(ValueError, match=message):
            webdataset(path)


def test_webdataset_bad_texts_and_paths(tmp_path):
    path = tar(tmp_path / "x.tar", [("a.png", image(0)), ("a.txt", b"one\ncaf\xe9")])
    with pytest.raises(ValueError, match=r"x\.tar, a\.txt, line 2: not UTF-8"):
        webdataset(path)
    for broken in ('{"caption": ', "[]", b"\xff\xfe\xfd"):
        path = tar(tmp_path / "x.tar", [("a.png", image(0)), ("a.json", broken)])
        with pytest.raises(ValueError, match=r"x\.tar, a\.json is no JSON object .*Repair it"):
            webdataset(path)
    with pytest.raises(FileNotFoundError, match=r"01\.tar does not exist.*a tar file of image-text pairs"):
        webdataset(tmp_path / "{01..03}.tar")
    with pytest.raises(FileNotFoundError, match=r"No file matches .*y\*\.tar"):
        webdataset(tmp_path / "y*.tar")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds no \*\.tar file"):
        webdataset(tmp_path / "empty")


# ---------------- folder


def test_folder(tmp_path):
    images(tmp_path, "a.png", "sub/b.JPG")
    write(tmp_path / "a.txt", "first caption\r\nsecond caption\n\n")
    write(tmp_path / "sub/b.txt", "third")
    write(tmp_path / "README.txt", "about this folder")
    texts = [["first caption", "second caption"], ["third"]]
    check(sources.folder(path=str(tmp_path)), ["a.png", "sub/b.JPG"], texts)
    assert len(sources.folder(path=str(tmp_path), split="sub")) == 1
    with pytest.raises(ValueError, match=r'no split "train"\. It has: sub'):
        sources.folder(path=str(tmp_path), split="train")


def test_folder_unpaired(tmp_path):
    images(tmp_path, "a.png", "b.png", "c.png")
    write(tmp_path / "a.txt", "fine")
    write(tmp_path / "c.txt", "")
    write(tmp_path / "d.txt", "no image")
    with pytest.raises(ValueError) as error:
        sources.folder(path=str(tmp_path))
    assert "captions without image: 1 (d.txt)" in str(error.value)
    assert "image without captions: 2 (b.png; c.txt)" in str(error.value)
    check(sources.folder(path=str(tmp_path), on_missing="skip"), ["a.png"], [["fine"]])


def test_folder_bad_texts(tmp_path):
    images(tmp_path, "a.png")
    write(tmp_path / "a.txt", "one\n\ntwo")
    with pytest.raises(ValueError, match=r"empty caption: 1 \(a\.txt, caption 2\)"):
        sources.folder(path=str(tmp_path))
    write(tmp_path / "a.txt", b"one\ncaf\xe9")
    with pytest.raises(ValueError, match=r"a\.txt, line 2: not UTF-8"):
        sources.folder(path=str(tmp_path))


def test_folder_without_pairs(tmp_path):
    with pytest.raises(ValueError, match=r"holds no image with a \.txt"):
        sources.folder(path=str(tmp_path))


# ---------------- coco, karpathy, flickr8k

COCO = {
    "images": [{"id": 7, "file_name": "a.png"}, {"id": 3, "file_name": "b.png"}],
    "annotations": [
        {"id": 1, "image_id": 3, "caption": "of b"},
        {"id": 2, "image_id": 7, "caption": "of a\n"},
        {"id": 3, "image_id": 3, "caption": "b again"},
    ],
}


def coco(tmp_path, content=COCO, **kwargs):
    folder = images(tmp_path / "images", "a.png", "b.png")
    spec = {"name": "coco", "captions": write(tmp_path / "captions.json", content), "images": folder}
    return sources.make({**spec, **kwargs})


def test_coco(tmp_path):
    check(coco(tmp_path), ["a.png", "b.png"], [["of a"], ["of b", "b again"]])


@pytest.mark.parametrize("share", [0.3, 0.6, 0.99])
def test_coco_cut_in_mid_file(tmp_path, share):
    text = json.dumps(COCO, indent=1)
    where = r"captions\.json, line \d+, column \d+ \(character \d+ of \d+\).*it was cut, copy it again"
    with pytest.raises(ValueError, match=where):
        coco(tmp_path, text[: int(len(text) * share)])


def test_coco_broken_in_the_middle_and_of_another_kind(tmp_path):
    with pytest.raises(ValueError, match="repair it there"):
        coco(tmp_path, '{"images": [}], "annotations": []}')
    with pytest.raises(ValueError, match='has no list "annotations"'):
        coco(tmp_path, {"images": []})
    with pytest.raises(ValueError, match='entry 0 of "annotations" has no "caption"'):
        coco(tmp_path, {"images": [], "annotations": [{"image_id": 3}]})
    with pytest.raises(ValueError, match=r"captions\.json, line 1: not UTF-8"):
        coco(tmp_path, b'{"images": "\xe9"}')


def test_coco_unpaired(tmp_path):
    content = {
        "images": [*COCO["images"], {"id": 9, "file_name": "c.png"}],
        "annotations": [*COCO["annotations"], {"image_id": 8, "caption": "nothing"}],
    }
    with pytest.raises(ValueError) as error:
        coco(tmp_path, content)
    assert "captions without image: 1 (image_id 8)" in str(error.value)
    assert "image without captions: 1 (c.png)" in str(error.value)
    assert len(coco(tmp_path, content, on_missing="skip")) == 2


def karpathy_json(*rows):
    return {
        "images": [
            {"filename": name, "split": split, "sentences": [{"raw": text} for text in texts], **more}
            for name, split, texts, more in rows
        ]
    }


def test_karpathy(tmp_path):
    folder = images(tmp_path / "images", "one/a.png", "b.png", "c.png")
    content = karpathy_json(
        ("a.png", "train", ["x", "y"], {"filepath": "one"}),
        ("b.png", "restval", ["z"], {}),
        ("c.png", "test", ["w"], {}),
    )
    path = write(tmp_path / "dataset.json", content)

    def make(**kwargs):
        return sources.karpathy(path=path, images=folder, **kwargs)

    check(make(), ["one/a.png", "b.png", "c.png"], [["x", "y"], ["z"], ["w"]])
    check(make(split="train"), ["one/a.png", "b.png"], [["x", "y"], ["z"]])
    check(make(split="train", restval=False), ["one/a.png"], [["x", "y"]])
    assert len(make(split="test")) == len(make(split="restval")) == 1
    with pytest.raises(ValueError, match=r'no split "val"\. It has: restval, test, train'):
        make(split="val")


def test_karpathy_without_captions(tmp_path):
    path = write(tmp_path / "dataset.json", karpathy_json(("a.png", "train", [], {})))
    with pytest.raises(ValueError, match=r"image without captions: 1 \(a\.png\)"):
        sources.karpathy(path=path, images=images(tmp_path, "a.png"))


def test_flickr8k(tmp_path):
    folder = images(tmp_path / "images", "a.png", "b.png")
    tokens = write(tmp_path / "token.txt", "a.png#0\tone .\na.png#1\ttwo\nb.png#0\tthree\n")
    split = write(tmp_path / "split.txt", "b.png\n\na.png\n")
    check(sources.flickr8k(tokens=tokens, images=folder), ["a.png", "b.png"], [["one .", "two"], ["three"]])
    chosen = sources.flickr8k(tokens=tokens, images=folder, split_list=split)
    assert [chosen.name(i) for i in range(2)] == ["b.png", "a.png"]
    write(tmp_path / "split.txt", "c.png\na.png\n")
    with pytest.raises(ValueError, match=r"image without captions: 1 \(c\.png \(in .*split\.txt\)\)"):
        sources.flickr8k(tokens=tokens, images=folder, split_list=split)
    write(tmp_path / "token.txt", "a.png#0\tone\nb.pn")
    with pytest.raises(ValueError, match=r"token\.txt, line 2: expected name\.jpg#0<tab>caption.*copy it"):
        sources.flickr8k(tokens=tokens, images=folder)
    write(tmp_path / "token.txt", "a.png#0\tone\nb.png#0\t \n")
    with pytest.raises(ValueError, match=r"empty caption: 1 \(line 2 \(b\.png\)"):
        sources.flickr8k(tokens=tokens, images=folder)


# ---------------- idx


PIXELS = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
LABELS = np.array([1, 0], np.uint8)


def idx(tmp_path, pixels=None, labels=None, **kwargs):
    paths = {
        "images": write(
            tmp_path / "images.gz", gzip.compress(idx_bytes(PIXELS)) if pixels is None else pixels
        ),
        "labels": write(tmp_path / "labels", idx_bytes(LABELS) if labels is None else labels),
    }
    return sources.make({"name": "idx", "classes": ("zero", "one"), **paths, **kwargs})


def test_idx(tmp_path):
    source = idx(tmp_path, templates=["a {name}", "the {name} here"])
    assert len(source) == 2
    assert source.captions(0) == ["a one", "the one here"]
    assert source[0]["image"].shape == (3, 4, 3)
    np.testing.assert_array_equal(source[1]["image"][:, :, 2], PIXELS[1])
    assert source.classes == ["zero", "one"] and [source.label(i) for i in range(2)] == [1, 0]
    assert source[0]["label"] == 1 and source[0]["label"].dtype == np.int32


def test_idx_errors(tmp_path):
    with pytest.raises(ValueError, match=r"label 1 at index 0, but `classes` has only 1"):
        idx(tmp_path, classes=["zero"])
    with pytest.raises(ValueError, match=r"lacks \{name\}"):
        idx(tmp_path, templates=["a picture"])
    with pytest.raises(ValueError, match=r"2 images, .* has 3 labels: captions without images"):
        idx(tmp_path, labels=idx_bytes(np.zeros(3, np.uint8)))
    with pytest.raises(ValueError, match="images and labels swapped"):
        idx(tmp_path, pixels=idx_bytes(LABELS))
    with pytest.raises(ValueError, match=r"images\.gz is cut: its header promises \[2, 3, 4\]"):
        idx(tmp_path, pixels=idx_bytes(PIXELS)[:-1])
    for cut in (gzip.compress(idx_bytes(PIXELS))[:-9], b"", b"\0\0\x08\x03\0"):
        with pytest.raises(ValueError, match=r"images\.gz is cut or damaged .*Download it again"):
            idx(tmp_path, pixels=cut)


# ---------------- make, missing paths


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "parqet", "path": "x"}, 'Unknown data source "parqet". Did you mean "parquet"'),
        ({"name": "jsonl", "pth": "x"}, 'Unknown key "pth" in data source "jsonl". Did you mean "path"'),
        ({"name": "coco", "captions": "x"}, "needs a value for: images"),
        ({"path": "x"}, 'needs a "name"'),
        ({"name": "tfds:x", "spilt": "train"}, 'Did you mean "split"'),
    ],
)
def test_make_errors(spec, message):
    with pytest.raises(ValueError, match=message):
        sources.make(spec)


def test_make_takes_a_config_dict(tmp_path):
    jsonl(tmp_path)
    spec = ConfigDict({"name": "jsonl", "path": str(tmp_path / "x.jsonl"), "split": "val"})
    assert len(sources.make(spec)) == 1


def test_on_missing_is_checked(tmp_path):
    with pytest.raises(ValueError, match=r'Unknown value of on_missing "skp". Did you mean "skip"'):
        jsonl(tmp_path, on_missing="skp")


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"name": "jsonl", "path": "{}"}, "a file of JSON lines"),
        ({"name": "parquet", "path": "{}"}, "a Parquet file"),
        ({"name": "folder", "path": "{}"}, "a folder of images"),
        ({"name": "webdataset", "path": "{}"}, "a tar file"),
        ({"name": "coco", "captions": "{}", "images": "."}, r"cocodataset\.org"),
        ({"name": "karpathy", "path": "{}", "images": "."}, "dataset_<name>"),
        ({"name": "flickr8k", "tokens": "{}", "images": "."}, r"Flickr8k\.token\.txt"),
        ({"name": "idx", "images": "{}", "labels": "{}", "classes": ["a"]}, "MNIST"),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_missing_paths_say_what_was_expected(spec, expected, tmp_path):
    missing = str(tmp_path / "nowhere")
    spec = {key: missing if value == "{}" else value for key, value in spec.items()}
    with pytest.raises(FileNotFoundError, match=f"nowhere does not exist.*Expected there: .*{expected}"):
        sources.make(spec)


def test_a_folder_for_a_file_and_the_other_way_round(tmp_path):
    with pytest.raises(ValueError, match=r"is a folder\. Expected there: a file of JSON lines"):
        sources.jsonl(path=str(tmp_path))
    with pytest.raises(ValueError, match=r"is a file\. Expected there: a folder"):
        sources.folder(path=write(tmp_path / "x", "y"))
    with pytest.raises(FileNotFoundError, match=r"Expected there: the images that .*captions\.json names"):
        coco(tmp_path, images=str(tmp_path / "none"))


def test_tfds_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No prepared data set no_such.*scripts/prepare_data\.py"):
        sources.make({"name": "tfds:no_such", "data_dir": str(tmp_path)})


# ---------------- real data


def test_real_flickr8k(shared_data):
    path = shared_data / "flickr8k_96"
    train = sources.make({"name": "parquet", "path": str(path / "data.parquet"), "split": "train"})
    dev = sources.make({"name": "parquet", "path": str(path), "split": "dev"})
    assert (len(train), len(dev)) == (6000, 1000)
    assert all(len(dev.captions(i)) == 5 for i in range(1000))
    assert dev[5]["image"].startswith(b"\xff\xd8")


def test_real_mnist(shared_data):
    path = shared_data / "mnist_train"
    source = sources.idx(
        images=str(path / "train-images-idx3-ubyte.gz"),
        labels=str(path / "train-labels-idx1-ubyte.gz"),
        classes=list("0123456789"),
        templates=["the digit {name}"],
    )
    assert len(source) == 60000
    assert source[0]["captions"] == ["the digit 5"]
    assert source[0]["image"].shape == (28, 28, 3)
