"""scripts/prepare_data.py: a source comes back from ArrayRecord with the same bytes, captions and order."""

import importlib.util
import io
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmgen_jax.data import sources
from mmgen_jax.data.quarantine import TooManyBroken

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "prepare_data.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("prepare_data", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def image(i):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(i).integers(0, 256, (6 + i % 3, 8, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, ("JPEG", "PNG")[i % 2])
    return buffer.getvalue()


def table(path, images, split="train"):
    rows = {
        "image": images,
        "captions": [[f"caption {i}", "zweite Überschrift"][: 1 + i % 2] for i in range(len(images))],
        "name": [f"{i}.jpg" for i in range(len(images))],
        "split": [split] * len(images),
    }
    pq.write_table(pa.table(rows), path)
    return str(path)


def run(script, tmp_path, *more, split="train"):
    fixed = ["--source", "parquet", "--arg", f"path={tmp_path / 'x.parquet'}", "--out", str(tmp_path / "out")]
    script.main([*fixed, "--name", "my_data", "--split", split, *more])


def test_round_trip(script, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(script, "BLOCK", 8)
    path = table(tmp_path / "x.parquet", [image(i) for i in range(21)])
    run(script, tmp_path, "--arg", "split=train", "--shards", "4")
    line = capsys.readouterr().out.strip()
    spec = json.loads(line.removeprefix("source = "))
    prepared = sources.make(spec)
    original = sources.parquet(path=path)
    assert len(prepared) == len(original)
    for i in range(len(original)):
        assert prepared[i] == original[i]
        assert prepared.captions(i) == original.captions(i)
    with pytest.raises(IndexError):
        prepared[len(prepared)]
    folder = tmp_path / "out" / "my_data" / "1.0.0"
    assert len(list(folder.glob("*.array_record-*"))) == 4
    assert not list((tmp_path / "out").glob(".prepare*"))
    assert "tensorflow" not in sys.modules


def test_a_second_split_joins_and_a_third_of_the_same_name_does_not(script, tmp_path):
    table(tmp_path / "x.parquet", [image(i) for i in range(5)])
    run(script, tmp_path)
    table(tmp_path / "x.parquet", [image(i) for i in range(3)])
    run(script, tmp_path, split="val")

    def count(split):
        return len(sources.tfds(dataset="my_data", data_dir=str(tmp_path / "out"), split=split))

    assert (count("train"), count("val"), count("train[:2]")) == (5, 3, 2)
    with pytest.raises(SystemExit, match='has a split "val" already'):
        run(script, tmp_path, split="val")
    with pytest.raises(ValueError, match=r'no split "test" .*It has: train, val'):
        count("test")
    with pytest.raises(ValueError, match='Did you mean "captions"'):
        sources.tfds(dataset="my_data", data_dir=str(tmp_path / "out"), captions="caption")


def test_broken_images_are_left_out_and_listed(script, tmp_path, capsys):
    images = [image(i) for i in range(10)]
    images[3], images[7] = b"", images[7][:40]
    table(tmp_path / "x.parquet", images)
    run(script, tmp_path, "--max-broken", "0.3")
    prepared = sources.tfds(dataset="my_data", data_dir=str(tmp_path / "out"))
    assert [prepared[i]["name"] for i in range(8)] == [f"{i}.jpg" for i in (0, 1, 2, 4, 5, 6, 8, 9)]
    listing = (tmp_path / "out" / "my_data-train.quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["name"] for line in listing] == ["3.jpg", "7.jpg"]
    assert "left out 2 broken ones" in capsys.readouterr().err


def test_too_many_broken_leave_nothing_that_looks_whole(script, tmp_path):
    table(tmp_path / "x.parquet", [image(0)] * 20 + [b""] * 20)
    with pytest.raises(SystemExit, match="zero bytes"):
        run(script, tmp_path)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["my_data-train.quarantine.jsonl"]
    table(tmp_path / "x.parquet", [image(0)] * 20)
    run(script, tmp_path)
    assert len(sources.tfds(dataset="my_data", data_dir=str(tmp_path / "out"))) == 20


def test_all_broken(script, tmp_path):
    source = sources.parquet(path=table(tmp_path / "x.parquet", [b""] * 3))
    with pytest.raises(TooManyBroken):
        script.prepare(source, tmp_path / "out", "my_data", "train", max_broken=1.0)


def test_an_interrupted_run_leaves_nothing(script, tmp_path):
    class Interrupted:
        def __len__(self):
            return 600

        def __getitem__(self, index):
            if index == 500:
                raise KeyboardInterrupt
            return {"image": image(index), "captions": ["x"], "name": str(index)}

    with pytest.raises(KeyboardInterrupt):
        script.prepare(Interrupted(), tmp_path / "out", "my_data", "train")
    assert list((tmp_path / "out").iterdir()) == []


def test_arrays_come_back_as_lossless_png(script, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 5, 3)).astype(np.uint8)
    source = sources.Pairs(pixels, [["a"], ["b"], ["c"]], ["0", "1", "2"])
    assert script.prepare(source, tmp_path, "digits", "train") == (3, 0)
    prepared = sources.make({"name": "tfds:digits", "data_dir": str(tmp_path)})
    for i in range(3):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(prepared[i]["image"]))), pixels[i])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--arg", "split=dev"], "no split"),
        (["--arg", "splt=dev"], 'Did you mean "split"'),
        (["--arg", "split"], "write KEY=VALUE"),
        (["--name", "My-Data"], "no good name"),
        (["--shards", "9"], "--shards must lie between 1"),
    ],
)
def test_errors_are_one_message(script, tmp_path, more, message):
    table(tmp_path / "x.parquet", [image(0)])
    with pytest.raises(SystemExit, match=f"prepare_data: .*{message}"):
        run(script, tmp_path, *more)


def test_help_teaches(script, capsys):
    with pytest.raises(SystemExit) as end:
        script.main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for part in ("parquet", "karpathy", "examples:", "tfds:my_photos", "--shards"):
        assert part in text
