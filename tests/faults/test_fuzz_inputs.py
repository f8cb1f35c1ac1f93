"""Damaged and hostile inputs: each gives a right result or a clear error, and never a crash, a hang or a wrong number.

MMGEN_FUZZ=6000 pytest -n 0 -rP tests/faults/test_fuzz_inputs.py     so many mutated inputs; without it CI's part
"""

import contextlib
import gzip
import io
import json
import os
import pickle
import re
import resource
import shutil
import signal
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import jax.numpy as jnp
import ml_collections
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmgen_jax.core import config as config_lib
from mmgen_jax.core import errors, step_folders
from mmgen_jax.core.checkpoint import Checkpointer, CheckpointError
from mmgen_jax.data import image_transforms, sources, text, transforms
from mmgen_jax.data.idx import idx_bytes, read_idx
from mmgen_jax.data.quarantine import BrokenExample
from mmgen_jax.pretrained import files

INPUTS = int(os.environ.get("MMGEN_FUZZ", "1200"))
SECONDS = 10  # of computing, that one input may take
MEMORY = 2**30  # bytes, likewise; the bombs below would take more
SPECIAL = (
    b"\0",
    b"\xff" * 4,
    b"\x7f\xff\xff\xff",
    b"\x80\0\0\0",
    b"[" * 5000,
    b"9" * 5000,
    b"NaN",
    b"1e999",
    b"-1",
)
SPECIAL += (
    b"null",
    b'"',
    b"{",
    b"\n",
    b"\xed\xa0\x80",
    b"../../x",
    b"/etc/passwd",
    b"(" * 300,
    b"\xef\xbb\xbf",
)


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """One to three small changes, of the kinds that disks, networks and people make."""
    for _ in range(rng.integers(1, 4)):
        size = len(data)
        here, there = sorted(rng.integers(0, size + 1, 2).tolist())
        short = min(here + int(rng.integers(1, 9)), size)
        kind = rng.integers(8)
        if kind == 0 and here < size:
            data = data[:here] + bytes([data[here] ^ 1 << int(rng.integers(8))]) + data[here + 1 :]
        elif kind == 1:
            data = data[:here]
        elif kind == 2:
            data = data[:here] + data[short:]
        elif kind == 3:
            data = data[:here] + data[here:there] * 2 + data[there:]
        elif kind == 4:
            data = data[:here] + rng.bytes(short - here) + data[short:]
        elif kind == 5:
            special = SPECIAL[int(rng.integers(len(SPECIAL)))]
            data = data[:here] + special + data[here + (len(special) if rng.random() < 0.5 else 0) :]
        elif kind == 6:
            data = data[there:] + data[here:there] + data[:here]
        else:
            data = data[:here] + bytes(there - here) + data[there:]
    return data


@contextlib.contextmanager
def limit():
    """Computing for too long, or memory that no small input needs, ends it."""

    def hangs(*_):
        raise AssertionError(f"more than {SECONDS} s of computing over one input")

    before = signal.signal(signal.SIGPROF, hangs)
    memory = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, memory[1]))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, memory)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def clear(error: Exception, name: str) -> bool:
    """An error of ours that names what was wrong; an image's name is put before it by the quarantine."""
    if isinstance(error, BrokenExample):
        return bool(str(error))
    return errors.on_purpose(error) and (name in str(error))


@pytest.fixture
def fuzz(tmp_path):
    """fuzz(what, share, whole, read, check, name): mutate `whole` and read it, INPUTS * share times."""

    def run(what, share, whole, read, check=lambda found: None, name="input"):
        counts, number = Counter(), max(int(INPUTS * share), 1)
        check(read(whole))  # the test itself is right
        for seed in range(number):
            data = mutate(whole, np.random.default_rng([zlib.crc32(what.encode()), seed]))
            try:
                with limit():
                    found = read(data)
            except Exception as error:
                if not clear(error, name):
                    (tmp_path / "failed").write_bytes(data)
                    raise AssertionError(f"{what}, input {seed}: {type(error).__name__}: {error}") from error
                counts["refused"] += 1
            else:
                try:
                    check(found)
                except AssertionError as error:
                    raise AssertionError(f"{what}, input {seed}, a wrong result: {error}") from error
                counts["unchanged" if data == whole else "right"] += 1
        print(f"{what}: {number} inputs, {dict(counts)}")

    return run


# ------------------------------------------------------------------------------------------------------------- images


def picture():
    ramp = np.arange(24 * 32 * 3).reshape(24, 32, 3) % 251
    return Image.fromarray(ramp.astype(np.uint8))


def encoded(kind, **options):
    file = io.BytesIO()
    picture().save(file, kind, **options)
    return file.getvalue()


def decode(data):
    return image_transforms.decode()({"image": data}, np.random.default_rng(0))["image"]


def test_png(fuzz):
    """A PNG has checksums: what is decoded is the picture."""

    def check(found):
        np.testing.assert_array_equal(np.asarray(found), np.asarray(picture()))

    fuzz("png", 0.13, encoded("PNG"), decode, check)


@pytest.mark.parametrize("kind", ["JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_pictures_without_checksums(fuzz, kind):
    """A flipped bit may be another picture here, but it is a picture: RGB, of a size that is allowed."""

    def check(found):
        assert found.mode == "RGB" and 0 < found.width * found.height <= 2**26
        assert np.asarray(found).dtype == np.uint8

    fuzz(kind.lower(), 0.13 if kind == "JPEG" else 0.01, encoded(kind), decode, check)


# ------------------------------------------------------------------------------------------------------ caption files


def check_source(source):
    for i in range(len(source)):
        captions = source.captions(i)
        assert captions and all(isinstance(one, str) and one.strip() == one != "" for one in captions)
        assert isinstance(source.name(i), str)
        try:
            image = source[i]["image"]
        except BrokenExample:
            continue
        assert isinstance(image, bytes | np.ndarray)


@pytest.fixture
def images(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / name).write_bytes(encoded("PNG"))
    return tmp_path


CAPTIONS = {
    "a.png": ["a red dog", "ein Hündchen"],
    "b.png": ["a cat"],
    "c.png": ["two birds", "birds", "many birds"],
}


def as_jsonl():
    rows = [{"image": k, "captions": v, "split": "train"} for k, v in CAPTIONS.items()]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_coco():
    entries = [{"id": i, "file_name": name} for i, name in enumerate(CAPTIONS)]
    texts = [{"image_id": i, "caption": c} for i, own in enumerate(CAPTIONS.values()) for c in own]
    return json.dumps({"images": entries, "annotations": texts}).encode()


def as_karpathy():
    entries = [
        {"filename": k, "split": "train", "sentences": [{"raw": c} for c in v]} for k, v in CAPTIONS.items()
    ]
    return json.dumps({"images": entries}).encode()


def as_tokens():
    return "".join(f"{k}#{i}\t{c}\n" for k, v in CAPTIONS.items() for i, c in enumerate(v)).encode()


def as_parquet():
    file = io.BytesIO()
    table = {"image": [b"abc"] * 3, "captions": list(CAPTIONS.values()), "name": list(CAPTIONS)}
    pq.write_table(pa.table(table), file)
    return file.getvalue()


def as_tar(captions=CAPTIONS, change=lambda info: info):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, own in captions.items():
            texts = "\n".join(own).encode()
            for member, data in ((name, encoded("PNG")), (name.replace(".png", ".txt"), texts)):
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(change(info), io.BytesIO(data))
    return file.getvalue()


@pytest.mark.parametrize("skip", ["error", "skip"])
@pytest.mark.parametrize(
    ("spec", "make"),
    [
        ({"name": "jsonl", "path": "input", "split": "train"}, as_jsonl),
        ({"name": "coco", "captions": "input", "images": "."}, as_coco),
        ({"name": "karpathy", "path": "input", "images": ".", "split": "train"}, as_karpathy),
        ({"name": "flickr8k", "tokens": "input", "images": "."}, as_tokens),
        ({"name": "parquet", "path": "input"}, as_parquet),
        ({"name": "webdataset", "path": "input"}, as_tar),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_caption_files(fuzz, images, spec, make, skip):
    spec = {
        k: str(images / v) if k in ("path", "captions", "tokens", "images") else v for k, v in spec.items()
    }

    def read(data):
        (images / "input").write_bytes(data)
        source = sources.make({**spec, "on_missing": skip})
        check_source(source)
        return source

    fuzz(f"{spec['name']}, on_missing={skip}", 0.02, make(), read)


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def asked(**more):
    return {"question": "is it red?", "answer": "yes", **more}


def as_archive():
    file = io.BytesIO()
    np.savez(file, images=np.zeros((2, 4, 4, 3), np.uint8))
    return file.getvalue()


def as_table(**columns):
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


ASKED = {"question_id": 7, "image_id": "a", "question": "is it red?", "multiple_choices": ["yes", "no"]}
NOTE = {"question_id": 7, "image_id": "a", "question_type": "is it", "answers": [{"answer": "yes"}]}
QUESTIONS = {  # name of the source and the file: (its spec, the fuzzed file, its content)
    "vqa questions": ({"questions": "input", "annotations": "notes"}, "input", json.dumps({"questions": [ASKED]}).encode()),
    "vqa annotations": ({"questions": "asked", "annotations": "input"}, "input", json.dumps({"annotations": [NOTE]}).encode()),
    "daquar lines": ({"path": "input.jsonl"}, "input.jsonl", lines(asked(image="a.png", split="train"))),
    "daquar text": ({"path": "input"}, "input", b"what is on the desk in the image3 ?\nbook, scissor\n"),
    "clevr": (
        {"questions": "input"},
        "input",
        json.dumps({"questions": [asked(split=".", image_filename="a.png", program=[{"function": "exist"}])]}).encode(),
    ),
    "gqa": ({"questions": "input"}, "input", json.dumps({"1": asked(imageId="a", types={"structural": "verify"})}).encode()),
    "easy_vqa folder": ({"path": "."}, "questions.json", json.dumps([["is it red?", "yes", "a"]]).encode()),
    "easy_vqa table": (
        {"path": "input"},
        "input",
        as_table(image=[b"x"], image_id=[0], questions=[["is it?", "what?"]], answers=[["yes", "no"]]),
    ),
    "shapes_vqa lines": ({"path": ".", "split": "input"}, "input_qa.jsonl", lines(asked(index=0))),
    "shapes_vqa archive": ({"path": ".", "split": "input"}, "input_images.npz", as_archive()),
    "nlvr lines": (
        {"path": "input", "images": ".", "orders": 1},
        "input",
        lines({"identifier": "1-0", "sentence": "a box", "label": "true", "directory": "."}),
    ),
    "nlvr table": (
        {"path": "input.parquet"},
        "input.parquet",
        as_table(image=[b"x"], name=["a"], sentence=["a box"], label=[True]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("skip", ["error", "skip"])
@pytest.mark.parametrize("what", QUESTIONS)
def test_question_files(fuzz, images, what, skip):
    spec, file, whole = QUESTIONS[what]
    kept = {
        "asked": json.dumps({"questions": [ASKED]}).encode(),
        "notes": json.dumps({"annotations": [NOTE]}).encode(),
        "input_qa.jsonl": lines(asked(index=0)),
        "input_images.npz": as_archive(),
        "image3.png": encoded("PNG"),
        "input-1-0-0.png": encoded("PNG"),
    }
    for name, data in kept.items():
        (images / name).write_bytes(data)
    (images / "images").mkdir()
    (images / "images" / "a.png").write_bytes(encoded("PNG"))
    name = what.split()[0]
    spec = {key: value if key in ("split", "orders") else str(images / value) for key, value in spec.items()}
    spec |= {"images": str(images)} if name in ("vqa", "clevr", "gqa") else {}
    spec |= (
        {"image_file": "{id}.png"}
        if name == "vqa"
        else {"suffix": ".png"}
        if name in ("daquar", "gqa")
        else {}
    )

    def read(data):
        (images / file).write_bytes(data)
        source = sources.make({"name": name, **spec, "on_missing": skip})
        for i in range(len(source)):
            answers, texts = (
                source.answers(i),
                [source.question(i), source.question_type(i), source.answer_type(i)],
            )
            assert answers and all(
                isinstance(one, str) and one.strip() == one != "" for one in [*answers, *texts]
            )
            assert isinstance(source.name(i), str) and isinstance(source.group(i), str)
            try:
                example = source[i]
            except BrokenExample:
                continue
            assert isinstance(example["image"], bytes | np.ndarray) and example["question"] == texts[0]
        return source

    fuzz(f"{what}, on_missing={skip}", 0.01, whole, read, name="input" if "input" in file else file)


def test_folder_of_texts(fuzz, images):
    def read(data):
        (images / "a.txt").write_bytes(data)
        source = sources.make({"name": "folder", "path": str(images), "on_missing": "skip"})
        check_source(source)
        return source

    fuzz("folder", 0.02, "\n".join(CAPTIONS["a.png"]).encode(), read, name=str(images))


def test_list_of_names(fuzz, images):
    (images / "images").mkdir()
    (images / "text").mkdir()
    (images / "train").mkdir()
    for name, own in CAPTIONS.items():
        stem = name.removesuffix(".png")
        (images / "images" / f"{stem}.jpg").write_bytes(encoded("JPEG"))
        (images / "text" / f"{stem}.txt").write_text("\n".join(own))

    def read(data):
        (images / "train" / "filenames.pickle").write_bytes(data)
        source = sources.make({"name": "cub", "path": str(images), "on_missing": "skip"})
        check_source(source)
        return source

    fuzz("filenames.pickle", 0.03, pickle.dumps(["a", "b", "c"], 2), read, name="filenames.pickle")


@pytest.mark.parametrize("packed", [True, False])
def test_idx(fuzz, tmp_path, packed):
    pixels = np.arange(5 * 4 * 4).astype(np.uint8).reshape(5, 4, 4)
    whole = gzip.compress(idx_bytes(pixels)) if packed else idx_bytes(pixels)

    def read(data):
        (tmp_path / "input").write_bytes(data)
        return read_idx(str(tmp_path / "input"), 3)

    def check(found):
        assert found.dtype == np.uint8 and found.ndim == 3
        if packed:  # gzip has a checksum
            np.testing.assert_array_equal(found, pixels)

    fuzz(f"idx{'.gz' * packed}", 0.02, whole, read, check)


# ------------------------------------------------------------------------------------------------------------ configs


def test_config_files(fuzz, load_config, tmp_path):
    """What a workdir's config.json says is either what the run was made with, or named key by key, or refused."""
    original = load_config()
    whole = config_lib.to_json(original).encode()

    def read(data):
        (tmp_path / "config.json").write_bytes(data)
        return config_lib.load_json(tmp_path / "config.json")

    def filled(tree):
        """Without the sections that are empty, which say nothing."""
        if not isinstance(tree, dict):
            return tree
        return {key: filled(value) for key, value in tree.items() if filled(value) != {}}

    def check(found):
        assert isinstance(found, ml_collections.ConfigDict)
        same = filled(json.loads(config_lib.to_json(found))) == filled(json.loads(whole))
        assert same == (not config_lib.differences(original, found))

    fuzz("config.json", 0.06, whole, read, check, name="config.json")


def test_config_arguments(fuzz):
    def read(data):
        return config_lib.parse_arg(
            data.decode("utf-8", "replace"), tiny=False, steps=1900, rate=0.1, name="x"
        )

    def check(found):
        assert {k: type(v) for k, v in found.items()} == dict(tiny=bool, steps=int, rate=float, name=str)

    fuzz("config arguments", 0.05, b"tiny,steps=100,rate=0.5,name=abc", read, check, name="onfig argument")


def test_pipelines(fuzz):
    def read(data):
        return transforms.parse(
            data.decode("utf-8", "replace"), {"tokenizer": text.train({"name": "bytes"}, [])}
        )

    whole = b"decode | random_resized_crop(32, min_area=0.5) | flip | color_jitter(0.2) | caption(max_len=8)"
    fuzz("transforms", 0.06, whole, read, lambda found: [callable(step) for step in found], name="")


def test_tokenizers(fuzz, tmp_path):
    tokenizer = text.train({"name": "words", "min_count": 1}, ["a red dog runs", "a cat sits"])
    tokenizer.save(tmp_path / "tokenizer.json")
    whole = (tmp_path / "tokenizer.json").read_bytes()

    def read(data):
        (tmp_path / "tokenizer.json").write_bytes(data)
        return text.load(tmp_path / "tokenizer.json")

    def check(found):
        ids = found.encode("a red cat")
        assert all(isinstance(k, int) and 0 <= k < found.vocab_size for k in ids)
        assert isinstance(found.decode(ids), str) and found.fingerprint

    fuzz("tokenizer.json", 0.05, whole, read, check, name="tokenizer.json")


# -------------------------------------------------------------------------------------------------------- checkpoints


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """(its folder, what it holds)."""
    folder = tmp_path_factory.mktemp("checkpoint") / "checkpoints"
    kernel = jnp.linspace(-1.0, 1.0, 96).reshape(8, 12)
    tree = {
        "step": jnp.int32(4),
        "params": {"model": {"kernel": kernel, "half": kernel[0].astype(jnp.bfloat16)}},
    }
    tree["variables"] = {"model": {"mean": jnp.arange(3.0)}}
    checkpointer = Checkpointer(folder, facts={"tokenizer": "abc"})
    checkpointer.save(4, tree, wait=True)
    checkpointer.close()
    return folder, tree


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_checkpoint_files(fuzz, checkpoint, tmp_path, sealed, same):
    """A changed file is refused, also where its fingerprint was made anew and only the arrays' checksums are left."""
    folder, tree = checkpoint
    names = [p.relative_to(folder).as_posix() for p in sorted((folder / "4").rglob("*")) if p.is_file()]
    if not sealed:  # the checksums are in facts/metadata
        names = [name for name in names if "facts" not in name and not name.endswith("manifest.json")]
    for name in names:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(folder, tmp_path / "run")

        def read(data, name=name):
            (tmp_path / "run" / name).write_bytes(data)
            if not sealed:
                (tmp_path / "run" / "4" / step_folders.MANIFEST).unlink()
                step_folders.seal(tmp_path / "run" / "4", 4)
            return Checkpointer(tmp_path / "run", say=lambda _: None).restore_arrays(4)

        def check(found):
            same(
                {"params": found[0], "variables": found[1]},
                {key: tree[key] for key in ("params", "variables")},
            )

        fuzz(f"checkpoint {name}", (0.1 if sealed else 0.04) / len(names), (folder / name).read_bytes(), read, check,
             name="")  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ weights

ARRAYS = {"a.weight": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.array([1, -2, 3], np.int64)}


def test_safetensors(fuzz, tmp_path):
    """The format has no checksums: right is what its header and bytes say, read here by other means."""
    from safetensors.numpy import save

    def plain(data):
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        header.pop("__metadata__", None)
        spans = {k: v["data_offsets"] for k, v in header.items()}
        return {k: data[8 + size + start : 8 + size + end] for k, (start, end) in spans.items()}

    def read(data):
        (tmp_path / "input").write_bytes(data)
        return data, dict(files.read(tmp_path / "input"))

    def check(found):
        data, arrays = found
        right = plain(data)
        for wrapper in files.WRAPPERS:
            right = {name.removeprefix(wrapper): value for name, value in right.items()}
        assert {name: x.tobytes() for name, x in arrays.items()} == right

    fuzz("safetensors", 0.1, save(ARRAYS), read, check)


@pytest.mark.parametrize("legacy", [False, True])
def test_pytorch(fuzz, tmp_path, legacy):
    torch = pytest.importorskip("torch")
    file = io.BytesIO()
    tensors = {name: torch.from_numpy(x.copy()) for name, x in ARRAYS.items()}
    torch.save(tensors, file, _use_new_zipfile_serialization=not legacy)

    def read(data):
        (tmp_path / "input").write_bytes(data)
        return dict(files.read(tmp_path / "input"))

    def check(found):
        if legacy:  # no checksums: whatever comes was in the file
            assert sum(x.nbytes for x in found.values()) < 10 * len(file.getvalue())
        else:
            assert found.keys() == ARRAYS.keys()
            for name, x in ARRAYS.items():
                np.testing.assert_array_equal(found[name], x)

    fuzz(f"PyTorch{' before 1.6' * legacy}", 0.1, file.getvalue(), read, check)


# ------------------------------------------------------------------------------------------- what is made to do harm


def test_a_png_that_declares_too_many_pixels_is_refused():
    data = bytearray(encoded("PNG"))
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    with pytest.raises(BrokenExample, match="decompression bomb"):
        decode(bytes(data))


def test_a_png_whose_text_is_a_bomb_is_refused():
    body = b"zTXt" + b"comment\0\0" + zlib.compress(bytes(2**23))
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    whole = encoded("PNG")
    with pytest.raises(BrokenExample, match="damaged"):
        decode(whole[:33] + chunk + whole[33:])


def test_a_gzip_bomb_is_refused(tmp_path, monkeypatch):
    from mmgen_jax.data import idx

    monkeypatch.setattr(idx, "MOST", 2**20)
    (tmp_path / "input").write_bytes(gzip.compress(bytes(2**24)))
    with pytest.raises(ValueError, match="decompression bomb"):
        idx.read_idx(str(tmp_path / "input"), 3)


@pytest.mark.parametrize("packed", ["data.pkl", "data/0", "byteorder"])
def test_a_zip_bomb_is_refused(tmp_path, packed):
    """PyTorch compresses nothing, so nothing that is compressed is unpacked."""
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.zeros(2**20)}, tmp_path / "whole.pt")
    with zipfile.ZipFile(tmp_path / "whole.pt") as whole, zipfile.ZipFile(tmp_path / "input", "w") as bomb:
        for name in whole.namelist():
            kind = zipfile.ZIP_DEFLATED if name.endswith(f"/{packed}") else zipfile.ZIP_STORED
            bomb.writestr(name, whole.read(name), kind)
    with pytest.raises(ValueError, match=rf"{packed} is damaged .*it is compressed, .* decompression bomb"):
        dict(files.read(tmp_path / "input"))


@pytest.mark.parametrize("name", ["../outside.png", "/outside.png", "a/../../outside.png"])
def test_a_tar_that_points_outside_is_refused(tmp_path, name):
    (tmp_path / "input").write_bytes(as_tar({name: ["a dog"]}))
    with pytest.raises(ValueError, match=re.escape(f"{name} points outside the archive's folder")):
        sources.make({"name": "webdataset", "path": str(tmp_path / "input")})


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_in_a_tar_are_not_followed(tmp_path, kind):
    def link(info):
        if info.name.endswith(".png"):
            info.type, info.linkname, info.size = kind, "/etc/passwd", 0
        return info

    (tmp_path / "input").write_bytes(as_tar({"a.png": ["a dog"]}, link))
    with pytest.raises(ValueError, match="captions without image"):
        sources.make({"name": "webdataset", "path": str(tmp_path / "input")})


def test_a_tar_that_leads_back_to_its_start_ends(tmp_path):
    def back(info):
        info.pax_headers = {"size": "-3584"}
        return info

    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("a.txt", "b.txt"):
            info = tarfile.TarInfo(name)
            tar.addfile(back(info))
    (tmp_path / "input").write_bytes(file.getvalue())
    with limit(), pytest.raises(ValueError, match="input"):
        sources.make({"name": "webdataset", "path": str(tmp_path / "input")})


def test_shards_outside_their_folder_are_refused(tmp_path):
    from safetensors.numpy import save_file

    save_file(ARRAYS, tmp_path / "other.safetensors")
    (tmp_path / "weights").mkdir()
    index = tmp_path / "weights" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"b": "../other.safetensors"}}))
    with pytest.raises(ValueError, match=r"names the file \.\./other.safetensors, which is not beside it"):
        files.read(index)


class Runs:
    """A pickle of it runs a command when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("where", ["new", "old", "names"])
def test_a_pickle_that_takes_all_memory_is_refused(images, where):
    """It numbers its one object 2^31, for which Python's reader makes room."""
    data = b"\x80\x02]r\xff\xff\xff\x7f."
    path = images / "input"
    if where == "names":
        for folder in ("images", "text", "train"):
            (images / folder).mkdir()
        (images / "train" / "filenames.pickle").write_bytes(data)
    elif where == "new":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", data)
    else:
        path.write_bytes(b"".join(pickle.dumps(x, 2) for x in (files.LEGACY_MAGIC, 1001, {})) + data)
    with limit(), pytest.raises(ValueError, match="decompression bomb"):
        files.read(path) if where != "names" else sources.make({"name": "cub", "path": str(images)})


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("where", ["zip", "old", "names"])
def test_a_pickle_that_would_run_is_refused(images, where, protocol):
    ran, path = images / "ran", images / "input"
    data = pickle.dumps({"a": Runs(ran)}, protocol)
    pickle.loads(data)
    assert ran.exists(), "it does run"
    ran.unlink()
    if where == "names":
        for folder in ("images", "text", "train"):
            (images / folder).mkdir()
        (images / "train" / "filenames.pickle").write_bytes(data)
        with pytest.raises(ValueError, match="it asks for"):
            sources.make({"name": "cub", "path": str(images)})
    else:
        if where == "zip":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("archive/data.pkl", data)
        else:
            path.write_bytes(
                b"".join(pickle.dumps(x, protocol) for x in (files.LEGACY_MAGIC, 1001, {})) + data
            )
        with pytest.raises(
            ValueError, match=r"input (holds .*system, which is not plain weights; it was not run|is no)"
        ):
            files.read(path)
    assert not ran.exists()


def test_a_checkpoint_of_nothing_is_refused(tmp_path):
    (tmp_path / "4" / "state").mkdir(parents=True)
    (tmp_path / "4" / "facts").mkdir()
    with pytest.raises(CheckpointError, match="is damaged"):
        Checkpointer(tmp_path).restore_arrays(4)
