"""Collections through Beam: what is kept comes back, what is dropped is counted, equal images once, breaks cost nothing."""

import csv
import http.server
import importlib.util
import io
import json
import sys
import tarfile
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmgen_jax.data import collection, sources
from mmgen_jax.data.collection import CollectionError, Inputs, Rules
from mmgen_jax.data.quarantine import BrokenExample

needs_beam = pytest.mark.skipif(
    importlib.util.find_spec("apache_beam") is None,
    reason='needs apache_beam (pip install "mmgen_jax[beam]")',
)
# Beam's own warnings are not ours.
pytestmark = pytest.mark.filterwarnings("ignore")


def image(seed, width=40, height=32, kind="PNG"):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def test_what_is_kept_of_an_example():
    rules = Rules(resize=16, min_size=20, max_aspect=2.0, min_words=2, max_words=3, max_bytes=20_000)
    data, captions, _ = collection.examine(image(0), ["one", "two words", "one two three four"], rules)
    assert captions == ["two words"]
    assert Image.open(io.BytesIO(data)).size == (20, 16) and data[:2] == b"\xff\xd8"
    as_it_is = collection.examine(image(0), "two words", Rules(resize=32))
    assert as_it_is[0] == image(0)
    # The same pixels, whatever the file.
    bitmap = io.BytesIO()
    Image.open(io.BytesIO(image(0))).save(bitmap, "BMP")
    assert collection.examine(bitmap.getvalue(), "two words", Rules())[2] == as_it_is[2]
    assert collection.examine(image(1), "two words", Rules())[2] != as_it_is[2]
    for data, text, reason in (
        (image(0), None, "no caption"),
        (image(0), [" ", 3], "no caption"),
        (image(0), "one", "caption too short or too long"),
        (bytes(20_001), "two words", "too many bytes"),
        (image(0, 19, 25), "two words", "image too small"),
        (image(0, 41, 20), "two words", "image too long"),
        (b"", "two words", "zero bytes"),
        (BrokenExample("http 404: x"), "two words", "http 404"),
    ):
        with pytest.raises(BrokenExample, match=f"^{reason}"):
            collection.examine(data, text, rules)


@pytest.fixture(scope="module")
def web():
    """(address of a server, {path: how often it was asked for})."""
    asked = Counter()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked[self.path] += 1
            status = (
                404
                if self.path == "/none"
                else 503
                if self.path == "/busy" and asked[self.path] == 1
                else 200
            )
            self.send_response(status)
            self.end_headers()
            self.wfile.write(image(100))

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def test_what_is_fetched(web, tmp_path):
    address, asked = web
    rules = Rules(timeout=5.0, max_bytes=50)
    assert collection.fetch(f"{address}/a", "", Rules()) == image(100)
    assert len(collection.fetch(f"{address}/a", "", rules)) == 51  # no more than shows that it is too much
    assert collection.fetch(f"{address}/busy", "", Rules()) == image(100) and asked["/busy"] == 2
    (tmp_path / "x.png").write_bytes(image(0))
    assert collection.fetch("x.png", str(tmp_path), rules) == image(0)
    for what, reason in (
        (f"{address}/none", "http 404"),
        ("http://127.0.0.1:1/x", "unreachable"),
        ("http://[bad/x", "unreachable"),
        ("y.png", "missing file"),
        (None, "no address"),
        (" ", "no address"),
    ):
        with pytest.raises(BrokenExample, match=f"^{reason}"):
            collection.fetch(what, str(tmp_path), rules)
    assert asked["/none"] == 1, "what is not there is not asked for again"


def test_neighbouring_parts_make_a_shard():
    parts = [{"part": f"{k}", "kept": k % 3, "bytes": 100 * (k % 3)} for k in range(9)]
    assert collection._plan(parts, 2) == [["1", "2", "4"], ["5", "7", "8"]]
    assert collection._plan(parts, 100) == [[name] for name in "124578"]
    assert collection._plan(parts, None) == [["1", "2", "4", "5", "7", "8"]]


def lists(folder, web):
    """Two lists and a tar of 11, 3 and 4 examples, and a tar that is cut; 7 are kept."""
    for name, data in {
        "a": image(0),
        "b": image(1),
        "small": image(2, 8, 8),
        "long": image(3, 90, 20),
    }.items():
        (folder / f"{name}.png").write_bytes(data)
    (folder / "cut.png").write_bytes(image(4)[:60])
    rows = [
        ("a.png", "a first picture"),
        ("b.png", "a second picture"),
        ("a.png", "the first again"),
        ("small.png", "a small picture"),
        ("long.png", "a long picture"),
        ("cut.png", "a broken picture"),
        ("missing.png", "no picture"),
        ("a.png", "short"),
        ("a.png", ""),
        (f"{web}/a", "from the net"),
        (f"{web}/none", "not on the net"),
    ]
    with (folder / "list.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "said"), *rows])
    more = {
        "path": ["b.png", str(folder / "c.png"), "d.png"],
        "said": ["again b", "ein drittes Bild, schön", "a fourth"],
    }
    (folder / "c.png").write_bytes(image(5))
    (folder / "d.png").write_bytes(image(6, 64, 64))
    pq.write_table(pa.table(more), folder / "list.parquet")
    with tarfile.open(folder / "pairs.tar", "w") as tar:

        def add(name, data):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))

        add("0.png", image(7)), add("0.txt", b"in a tar\nand again")
        add("1.png", image(5)), add("1.txt", b"the third picture")
        add("2.txt", b"no picture here")
        add("3.jpg", image(8, kind="JPEG")), add("3.json", json.dumps({"said": "as it says"}).encode())
    (folder / "cut.tar").write_bytes((folder / "pairs.tar").read_bytes()[:3000])
    patterns = (f"{folder}/list.csv", f"{folder}/list.parquet"), (f"{folder}/{{pairs,cut}}.tar",)
    return Inputs(*patterns, image="path", caption="said", rows=4)


RULES = Rules(resize=48, min_size=16, max_aspect=3.0, min_words=2, timeout=5.0)
KEPT = ["a.png", "b.png", "/a", "c.png", "d.png", "pairs.tar/0", "pairs.tar/3"]
DROPPED = {
    "duplicate": 3,
    "image too small": 1,
    "image too long": 1,
    "truncated or damaged": 1,
    "missing file": 1,
    "caption too short or too long": 1,
    "no caption": 1,
    "http 404": 1,
    "no image": 1,
    "damaged tar": 1,
}


def check(out, counts):
    assert (counts["read"], counts["kept"], counts["shards"]) == (19, 7, 3)
    assert counts["dropped"] == DROPPED
    assert counts["names"]["image too small"] == ["small.png"] and counts["names"]["damaged tar"] == [
        "cut.tar"
    ]
    data = sources.make({"name": "tfds:mine", "data_dir": str(out), "split": "train"})
    names = [data[i]["name"] for i in range(len(data))]
    assert len(names) == 7 and all(name.endswith(end) for name, end in zip(names, KEPT, strict=True)), names
    assert data[0]["image"] == image(0) and data[0]["captions"] == ["a first picture"]
    assert data.captions(3) == ["ein drittes Bild, schön"] and data.captions(5) == ["in a tar", "and again"]
    assert Image.open(io.BytesIO(data[4]["image"])).size == (48, 48)
    assert json.loads((out / "mine-train.counts.json").read_text()) == counts


@needs_beam
def test_a_collection(web, tmp_path):
    inputs, out = lists(tmp_path, web[0]), tmp_path / "out"
    check(out, collection.prepare(inputs, RULES, str(out), "mine", "train", shards=3))
    assert sorted(path.name for path in out.iterdir()) == ["mine", "mine-train.counts.json"]
    with pytest.raises(ValueError, match='has a split "train" already'):
        collection.prepare(inputs, RULES, str(out), "mine", "train")
    with pytest.raises(CollectionError, match=r"Kept 0 of 3 examples; dropped: 3 image too small"):
        only = Inputs((f"{tmp_path}/list.parquet",), image="path", caption="said")
        collection.prepare(only, Rules(min_size=500), str(out), "mine", "val")
    assert not list(out.glob(".prepare_data-*"))


@needs_beam
def test_a_break_costs_nothing_that_was_finished(web, tmp_path, monkeypatch):
    inputs, out = lists(tmp_path, web[0]), tmp_path / "out"

    def again(name, monkeypatch):
        """Break at a function, and forget which parts or shards were written: their own files say so."""
        with monkeypatch.context() as patch:
            patch.setattr(collection, name, lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                collection.prepare(inputs, RULES, str(out), "mine", "train", shards=3)
        (work,) = out.glob(".prepare_data-*")
        return work

    work = again("_plan", monkeypatch)
    (work / "parts.jsonl").unlink()
    for path in tmp_path.glob("*.png"):
        path.unlink()  # nobody looks at them again
    work = again("_publish", monkeypatch)
    for path in [*(work / "parts").glob("*.array_record"), *work.glob("shards-*.jsonl")]:
        path.unlink()
    check(out, collection.prepare(inputs, RULES, str(out), "mine", "train", shards=3))


@needs_beam
def test_mistakes_are_named(tmp_path):
    (tmp_path / "list.tsv").write_text("path\tsaid\nx.png\thello\n")
    out = str(tmp_path / "out")

    def run(path, **more):
        collection.prepare(Inputs((str(path),), **more), Rules(), out, "mine", "train")

    with pytest.raises(FileNotFoundError, match=r"No file matches .*none\.tsv"):
        run(tmp_path / "none.tsv")
    with pytest.raises(Exception, match=r'list\.tsv has no column "pth".* Did you mean "path"'):
        run(tmp_path / "list.tsv", image="pth", caption="said")
    (tmp_path / "list.doc").write_text("x")
    with pytest.raises(Exception, match=r"list\.doc: a list is a \.parquet, \.csv or \.tsv file"):
        run(tmp_path / "list.doc")


@needs_beam
def test_the_command_line(web, tmp_path, capsys):
    lists(tmp_path, web[0])
    path = Path(__file__).resolve().parents[2] / "scripts" / "prepare_data.py"
    spec = importlib.util.spec_from_file_location("prepare_collection", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    fixed = ["--list", f"{tmp_path}/list.parquet", "--image", "path", "--caption", "said"]
    out = ["--out", str(tmp_path / "out"), "--name", "mine", "--beam=--runner=DirectRunner"]
    script.main([*fixed, *out, "--resize", "32", "--min-words", "2"])
    printed = capsys.readouterr()
    assert "Kept 3 of 3 examples; dropped: none." in printed.err
    assert len(sources.make(json.loads(printed.out.removeprefix("source = ")))) == 3
    with pytest.raises(SystemExit, match=r"prepare_data: .*has a split"):
        script.main([*fixed, *out])


def test_without_beam(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(ImportError, match=r'pip install "mmgen_jax\[beam\]"'):
        collection.prepare(Inputs(("x.csv",)), Rules(), str(tmp_path), "mine", "train")
