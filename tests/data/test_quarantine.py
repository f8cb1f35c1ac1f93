"""The quarantine: one line per broken example, over epochs and resumed runs, and a stop with a summary."""

import json
import threading

import pytest

from mmgen_jax.data.quarantine import BrokenExample, Quarantine, TooManyBroken, read_bytes


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_each_example_is_written_once(tmp_path):
    path = tmp_path / "run" / "quarantine.jsonl"
    quarantine = Quarantine(path, total=1000)
    assert not path.exists()
    for _ in range(3):
        quarantine.add(7, "a.jpg", "zero bytes")
    quarantine.add(8, "ü.jpg", "missing file: ü.jpg")
    assert quarantine.count == 2
    assert lines(path) == [
        {"source": "train", "index": 7, "name": "a.jpg", "reason": "zero bytes"},
        {"source": "train", "index": 8, "name": "ü.jpg", "reason": "missing file: ü.jpg"},
    ]


def test_a_resumed_run_knows_what_was_found(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    Quarantine(path, total=1000).add(7, "a.jpg", "zero bytes")
    resumed = Quarantine(path, total=1000)
    resumed.add(7, "a.jpg", "zero bytes")
    assert resumed.count == 1
    assert len(lines(path)) == 1


def test_sources_share_a_file_but_not_their_indices(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    train, val = Quarantine(path, total=100), Quarantine(path, total=100, source="val")
    train.add(1, "a.jpg", "zero bytes")
    val.add(1, "b.jpg", "zero bytes")
    assert [entry["source"] for entry in lines(path)] == ["train", "val"]
    assert Quarantine(path, total=100, source="val").count == 1


def test_half_a_line_of_a_killed_run_does_no_harm(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    Quarantine(path, total=1000).add(1, "a.jpg", "zero bytes")
    with path.open("a") as file:
        file.write('{"source": "train", "ind')
    resumed = Quarantine(path, total=1000)
    resumed.add(2, "b.jpg", "zero bytes")
    assert Quarantine(path, total=1000).count == 2


def test_too_many_stop_the_run_with_a_summary(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    quarantine = Quarantine(path, total=1000, max_share=0.01)
    for i in range(10):
        reason = "zero bytes" if i % 2 else f"missing file: /data/{i}.jpg"
        quarantine.add(i, f"{i}.jpg", reason)
    with pytest.raises(TooManyBroken) as error:
        quarantine.add(10, "10.jpg", "missing file: /data/10.jpg")
    message = str(error.value)
    assert "11 of 1000" in message and "1.1%" in message and "1.0%" in message
    assert "6  missing file  0.jpg, 2.jpg, 4.jpg, ..." in message
    assert "5  zero bytes" in message
    assert str(path) in message and "max_share" in message


def test_a_few_in_a_small_source_are_allowed_but_not_all_of_them(tmp_path):
    small = Quarantine(tmp_path / "small.jsonl", total=20)
    for i in range(7):
        small.add(i, str(i), "zero bytes")
    whole = Quarantine(tmp_path / "whole.jsonl", total=2)
    whole.add(0, "0", "zero bytes")
    with pytest.raises(TooManyBroken):
        whole.add(1, "1", "zero bytes")


def test_max_share_of_zero_and_one(tmp_path):
    strict = Quarantine(tmp_path / "strict.jsonl", total=100, max_share=0, minimum=1)
    with pytest.raises(TooManyBroken):
        strict.add(0, "0", "zero bytes")
    lax = Quarantine(tmp_path / "lax.jsonl", total=10, max_share=1)
    for i in range(10):
        lax.add(i, str(i), "zero bytes")
    with pytest.raises(ValueError, match="max_share must lie between 0 and 1"):
        Quarantine(tmp_path / "x.jsonl", total=10, max_share=5)


def test_threads(tmp_path):
    quarantine = Quarantine(tmp_path / "quarantine.jsonl", total=10**6)

    def work():
        for i in range(50):
            quarantine.add(i, str(i), "zero bytes")

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(entry["index"] for entry in lines(tmp_path / "quarantine.jsonl")) == list(range(50))


def test_read_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert read_bytes(tmp_path / "a") == b"abc"
    with pytest.raises(BrokenExample, match=r"^missing file: .*b\.jpg"):
        read_bytes(tmp_path / "b.jpg")
    with pytest.raises(BrokenExample, match=r"^unreadable file: "):
        read_bytes(tmp_path)
