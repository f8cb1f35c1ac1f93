"""Collections larger than one machine: web-scale lists and tars, through Apache Beam, to sharded ArrayRecord that "tfds" reads.

    inputs -> parts -> fetch, check, resize -> one file a part       (each part is done once: a restart skips it)
    hashes of all parts -> the first of equal images                 (small: sixteen bytes an image)
    the kept rows of neighbouring parts -> one shard                 (each shard is done once)

Only hashes and row numbers travel between the workers, images stay in files.
"""

import contextlib
import csv
import dataclasses
import hashlib
import http.client
import io
import json
import math
import re
import shutil
import tempfile
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from mmgen_jax.core import registry
from mmgen_jax.data import image_transforms
from mmgen_jax.data import tfds as tfds_lib
from mmgen_jax.data.pairs import Problems
from mmgen_jax.data.quarantine import BrokenExample, read_bytes
from mmgen_jax.data.webdataset import braces, tar_captions, tar_images

SHARD_BYTES = 2**28
DIGEST = 16  # bytes of a hash: two of a billion different images are the same with a chance of 1e-21
NAMES = 3  # dropped examples of each reason that are named
THREADS = 16  # downloads side by side in a worker
AGENT = {"User-Agent": "mmgen_jax prepare_data"}


class CollectionError(RuntimeError):
    """A collection that cannot be prepared; says why."""


@dataclasses.dataclass(frozen=True)
class Rules:
    """What is kept, and in which size.

    Args:
      resize: pixels of the shorter side; larger images are made so small, smaller ones stay. 0 resizes none.
      quality: of the JPEG that a resized image becomes; images that need no resizing keep their bytes.
      min_size: pixels that the shorter side has at least.
      max_aspect: the longer side over the shorter one, at most.
      min_words, max_words: of a caption; an image without any such caption is dropped.
      max_bytes: of an image file.
      timeout: seconds until a download is given up.
    """

    resize: int = 0
    quality: int = 92
    min_size: int = 1
    max_aspect: float = math.inf
    min_words: int = 1
    max_words: int = 1000
    max_bytes: int = 2**25
    timeout: float = 20.0


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Where the examples come from.

    Args:
      lists: Parquet, CSV or TSV files (also .gz of the last two) with a row an image, patterns such as "part-{0..9}.csv" too.
      tars: WebDataset's tar files, or patterns of them.
      image: the lists' column of paths (from the list's folder) or addresses (http, https, gs, s3).
      caption: the lists' column of captions, or a tar's field in a .json.
      rows: of a list that are one part of the work.
    """

    lists: tuple[str, ...] = ()
    tars: tuple[str, ...] = ()
    image: str = "image"
    caption: str = "caption"
    rows: int = 1000


def prepare(
    inputs: Inputs,
    rules: Rules,
    out: str,
    name: str,
    split: str,
    *,
    shards: int | None = None,
    options: Sequence[str] = (),
) -> dict[str, Any]:
    """Write a collection as one split of the data set `name` below `out`; called again after a break, it goes on.

    Args:
      inputs, rules: see there.
      out: a folder, or gs://... with apache-beam[gcp].
      name, split: small letters, digits and _.
      shards: number of files, at most; default about 256 MiB each.
      options: for Beam, such as ["--runner=DataflowRunner", ...]; by default it runs here.

    Returns:
      {"read", "kept", "dropped": {reason: count}, "names": {reason: [the first few]}, "shards", "bytes"}, which is also
      written to <out>/<name>-<split>.counts.json; read = kept + all dropped.

    Raises:
      ValueError: nothing to read, or a split that is there already.
      CollectionError: nothing was kept.
      ImportError: without the extra "beam".
    """
    tfds_lib.check_names(name, split)
    beam = _beam()
    target = f"{out}/{name}/{tfds_lib.VERSION}"
    if split in _described(target):
        raise ValueError(
            f'{target} has a split "{split}" already. Delete the folder, or choose another name.'
        )
    files = _files(inputs)
    # The same call finds its own work again; another one never takes it for its own.
    key = json.dumps(
        [dataclasses.asdict(inputs), dataclasses.asdict(rules), files, name, split], sort_keys=True
    )
    work = f"{out}/.prepare_data-{name}-{split}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    if not _exists(f"{work}/parts.jsonl"):
        with _pipeline(beam, options) as pipeline:
            _write_lines(
                pipeline
                | beam.Create(list(enumerate(files)))
                | beam.Reshuffle()
                | "parts" >> beam.FlatMap(_parts, inputs=inputs)
                | "spread" >> beam.Reshuffle()
                | "examine" >> beam.Map(_examine_part, rules=rules, work=work),
                f"{work}/parts.jsonl",
            )
    parts = sorted(_read_lines(f"{work}/parts.jsonl"), key=lambda part: part["part"])
    kept = sum(part["kept"] for part in parts)
    if not kept:
        _filesystems().delete([work])
        raise CollectionError(tell({**_sum(parts), "kept": 0}))
    plan = _plan(parts, shards)
    if not _exists(f"{work}/shards-{len(plan)}.jsonl"):
        where = {part: k for k, group in enumerate(plan) for part in group}
        with _pipeline(beam, options) as pipeline:
            kept_rows = (
                pipeline
                | beam.Create([part for group in plan for part in group])
                | beam.Reshuffle()
                | "hashes" >> beam.FlatMap(_hashes, work=work)
                | "first of equals" >> beam.CombinePerKey(min)
                | "place" >> beam.MapTuple(lambda _, place, where=where: (where[place[0]], place))
                | beam.GroupByKey()
            )
            _write_lines(
                kept_rows | "shards" >> beam.Map(_write_shard, work=work, count=len(plan)),
                f"{work}/shards-{len(plan)}.jsonl",
            )
    written = sorted(_read_lines(f"{work}/shards-{len(plan)}.jsonl"), key=lambda shard: shard["shard"])
    counts = _sum(parts)
    counts["dropped"]["duplicate"] = kept - sum(shard["length"] for shard in written)
    counts["dropped"] = {reason: count for reason, count in counts["dropped"].items() if count}
    counts.update(kept=sum(shard["length"] for shard in written), shards=len(written))
    counts["bytes"] = sum(shard["bytes"] for shard in written)
    _publish(work, written, out, name, split)
    _write(
        f"{out}/{name}-{split}.counts.json", json.dumps(counts, indent=2, ensure_ascii=False).encode() + b"\n"
    )
    _filesystems().delete([work])
    return counts


def _beam() -> Any:
    try:
        import apache_beam
    except ImportError as error:
        raise ImportError('Lists and tars go through Apache Beam: pip install "mmgen_jax[beam]"') from error
    return apache_beam


def _filesystems() -> Any:
    """Beam's files: local, and those of the buckets whose extra is installed."""
    from apache_beam.io.filesystems import FileSystems

    return FileSystems


def _pipeline(beam: Any, options: Sequence[str]) -> Any:
    from apache_beam.options.pipeline_options import PipelineOptions

    return beam.Pipeline(options=PipelineOptions(list(options)))


def _files(inputs: Inputs) -> list[tuple[str, str]]:
    """(kind, path) of every input file, in order of the patterns and then of the names."""
    found = []
    for kind, patterns in (("list", inputs.lists), ("tar", inputs.tars)):
        for pattern in patterns:
            for one in braces(pattern):
                paths = sorted(file.path for file in _filesystems().match([one])[0].metadata_list)
                if not paths:
                    raise FileNotFoundError(f"No file matches {one} (seen from {Path.cwd()}).")
                found += [(kind, path) for path in paths]
    if not found:
        raise ValueError("Nothing to read: give lists or tars.")
    return found


def _parts(numbered: tuple[int, tuple[str, str]], inputs: Inputs) -> Iterator[tuple[str, str, str, Any]]:
    """(name of the part, kind, path, what the worker needs): a tar is one part, a list as many as it has rows."""
    number, (kind, path) = numbered
    if kind == "tar":
        yield f"{number:06d}-000000", kind, path, inputs.caption
        return
    for k, rows in enumerate(_read_list(path, inputs)):
        yield f"{number:06d}-{k:06d}", kind, path, rows


def _read_list(path: str, inputs: Inputs) -> Iterator[list[tuple[Any, Any]]]:
    """The (image, caption) of a list, some rows at a time."""

    def check(columns: Iterable[str]) -> None:
        for column in (inputs.image, inputs.caption):
            if column not in columns:
                raise ValueError(f'{path} has no column "{column}".{registry.nearest(column, columns)}')

    with _filesystems().open(path) as file:
        if re.search(r"\.parquet$", path):
            import pyarrow.parquet as pq

            table = pq.ParquetFile(file)
            check(table.schema_arrow.names)
            for batch in table.iter_batches(inputs.rows, columns=[inputs.image, inputs.caption]):
                columns = (batch.column(column).to_pylist() for column in (inputs.image, inputs.caption))
                yield list(zip(*columns, strict=True))
        elif match := re.search(r"\.(csv|tsv)(\.gz)?$", path):
            text = io.TextIOWrapper(io.BufferedReader(file), encoding="utf-8-sig", newline="")
            table = csv.DictReader(text, delimiter="," if match[1] == "csv" else "\t")
            check(table.fieldnames or ())
            rows = []
            for row in table:
                rows.append((row[inputs.image], row[inputs.caption]))
                if len(rows) == inputs.rows:
                    yield rows
                    rows = []
            if rows:
                yield rows
        else:
            raise ValueError(f"{path}: a list is a .parquet, .csv or .tsv file.")


def _examine_part(job: tuple[str, str, str, Any], *, rules: Rules, work: str) -> str:
    """Write the good examples of a part, and their hashes; returns what became of all, as JSON.

    The account is written last: where it is, the part is done.
    """
    part, kind, path, content = job
    account = f"{work}/parts/{part}.json"
    if _exists(account):
        return _read(account).decode()
    dropped: Counter = Counter()
    names: dict[str, list[str]] = {}

    encode = tfds_lib.encoder()
    hashes, size, read = [], 0, 0
    with _local_record(f"{work}/parts/{part}.array_record") as records:
        for name, image, captions in (
            _tar_rows(path, content) if kind == "tar" else _list_rows(path, content, rules)
        ):
            read += 1
            try:
                image, captions, digest = examine(image, captions, rules)
            except BrokenExample as broken:
                reason = str(broken).split(":")[0]
                dropped[reason] += 1
                names.setdefault(reason, []).append(name)
                continue
            record = encode({"image": image, "captions": captions, "name": name})
            records.write(record)
            hashes.append(digest)
            size += len(record)
    _write(f"{work}/parts/{part}.hashes", b"".join(hashes))
    text = json.dumps(
        {
            "part": part,
            "read": read,
            "kept": len(hashes),
            "bytes": size,
            "dropped": dropped,
            "names": {reason: found[:NAMES] for reason, found in names.items()},
        },
        ensure_ascii=False,
    )
    _write(account, text.encode())
    return text


def examine(image: bytes | BrokenExample, captions: Any, rules: Rules) -> tuple[bytes, list[str], bytes]:
    """(bytes of the image, captions, hash of its pixels) of an example that is kept.

    Args:
      image: its bytes, or why there are none.
      captions: a string, or a list of them.

    Raises:
      BrokenExample: it is dropped; the reason stands before the colon.
    """
    if isinstance(image, BrokenExample):
        raise image
    given = [captions] if isinstance(captions, str) else captions if isinstance(captions, list) else []
    texts = [text.strip() for text in given if isinstance(text, str) and text.strip()]
    if not texts:
        raise BrokenExample("no caption")
    texts = [text for text in texts if rules.min_words <= len(text.split()) <= rules.max_words]
    if not texts:
        raise BrokenExample("caption too short or too long")
    if len(image) > rules.max_bytes:
        raise BrokenExample(f"too many bytes: {len(image):,}")
    picture = image_transforms.decode()({"image": image}, np.random.default_rng(0))["image"]
    short, long = sorted(picture.size)
    if short < rules.min_size:
        raise BrokenExample(f"image too small: {short} pixels")
    if long > rules.max_aspect * short:
        raise BrokenExample(f"image too long: {long} x {short} pixels")
    if rules.resize and short > rules.resize:
        picture = image_transforms.resize(rules.resize)({"image": picture}, np.random.default_rng(0))["image"]
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=rules.quality)
        image = buffer.getvalue()
    pixels = repr(picture.size).encode() + picture.tobytes()
    return image, texts, hashlib.sha256(pixels).digest()[:DIGEST]


def _list_rows(path: str, rows: Sequence[tuple], rules: Rules) -> Iterator[tuple[str, Any, Any]]:
    """(name, image bytes or why there are none, captions) of some rows of a list, downloaded side by side."""
    folder = path.rpartition("/")[0]

    def load(address: Any) -> bytes | BrokenExample:
        try:
            return fetch(address, folder, rules)
        except BrokenExample as broken:
            return broken

    with ThreadPoolExecutor(THREADS) as pool:
        images = pool.map(load, (address for address, _ in rows))
        for (address, caption), image in zip(rows, images, strict=True):
            yield str(address), image, caption


def fetch(address: Any, folder: str, rules: Rules) -> bytes:
    """The bytes behind an address, or behind a path from `folder`; what may pass is tried once more.

    Raises:
      BrokenExample: there are none, or too many.
    """
    if not isinstance(address, str) or not address.strip():
        raise BrokenExample("no address")
    scheme = re.match(r"(\w+)://", address)
    if not scheme:
        path = address if address.startswith("/") or not folder else f"{folder}/{address}"
        return read_bytes(path) if "://" not in path else _read_bucket(path)
    if scheme[1].lower() not in ("http", "https"):
        return _read_bucket(address)
    for last in (False, True):
        try:
            request = urllib.request.Request(address, headers=AGENT)
            with urllib.request.urlopen(request, timeout=rules.timeout) as answer:
                return answer.read(rules.max_bytes + 1)
        except urllib.error.HTTPError as error:
            error.close()
            if last or (error.code < 500 and error.code != 429):
                raise BrokenExample(f"http {error.code}: {address}") from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            if last or isinstance(error, ValueError):
                raise BrokenExample(f"unreachable: {address} ({error})") from None
    raise AssertionError


def _read_bucket(path: str) -> bytes:
    try:
        return _read(path)
    except (OSError, ValueError) as error:
        raise BrokenExample(f"unreadable file: {path} ({error})") from None


def _tar_rows(path: str, captions_key: str) -> Iterator[tuple[str, Any, Any]]:
    """(name, image bytes or why there are none, captions) of a tar; one that is damaged counts as one example."""
    tar = path.rpartition("/")[2]
    with _local(path) as file:
        try:
            images = list(tar_images(file, Problems(file, "skip")))
        except ValueError as error:
            yield tar, BrokenExample(f"damaged tar: {error}"), None
            return
        with file.open("rb") as data:
            for key, place, parts in images:
                name, image, captions = f"{tar}/{key}", BrokenExample("no image"), None
                if place is not None:
                    data.seek(place[0])
                    image = data.read(place[1])
                    try:
                        captions = tar_captions(parts, captions_key, name)
                    except ValueError as error:
                        image = BrokenExample(f"unreadable caption: {error}")
                yield name, image, captions


def _hashes(part: str, work: str) -> Iterator[tuple[bytes, tuple[str, int]]]:
    """(hash, (part, row)) of a part's examples; the smallest place of a hash is the first example that has it."""
    data = _read(f"{work}/parts/{part}.hashes")
    for row in range(len(data) // DIGEST):
        yield data[row * DIGEST : (row + 1) * DIGEST], (part, row)


def _plan(parts: Sequence[Mapping[str, Any]], shards: int | None) -> list[list[str]]:
    """The parts of each shard: neighbours, of about the same number of bytes together."""
    full = [part for part in parts if part["kept"]]
    whole = sum(part["bytes"] for part in full)
    wanted = min(shards or max(1, round(whole / SHARD_BYTES)), len(full))
    groups: list[list[str]] = [[] for _ in range(wanted)]
    before = 0
    for part in full:
        groups[int((before + part["bytes"] / 2) / whole * wanted)].append(part["part"])
        before += part["bytes"]
    return [group for group in groups if group]


def _write_shard(job: tuple[int, Iterable[tuple[str, int]]], *, work: str, count: int) -> str:
    """Copy the kept rows of some parts into one file, in order; returns its length and size as JSON."""
    shard, places = job
    account = f"{work}/shards/{shard:06d}-of-{count:06d}.json"
    if _exists(account):
        return _read(account).decode()
    rows: dict[str, list[int]] = {}
    for part, row in sorted(places):
        rows.setdefault(part, []).append(row)
    length = size = 0
    with _local_record(f"{work}/shards/{shard:06d}-of-{count:06d}.array_record") as records:
        for part, kept in rows.items():
            for record in _read_records(f"{work}/parts/{part}.array_record", kept):
                records.write(record)
                length, size = length + 1, size + len(record)
    text = json.dumps({"shard": shard, "length": length, "bytes": size})
    _write(account, text.encode())
    return text


def _read_records(path: str, rows: list[int]) -> list[bytes]:
    from array_record.python.array_record_module import ArrayRecordReader

    with _local(path) as file:
        reader = ArrayRecordReader(str(file))
        try:
            return reader.read(rows)
        finally:
            reader.close()


def _publish(work: str, written: Sequence[Mapping[str, Any]], out: str, name: str, split: str) -> None:
    """Move the shards to their place, and describe them last: before that, TFDS sees no such split."""
    target, files = f"{out}/{name}/{tfds_lib.VERSION}", _filesystems()
    with contextlib.suppress(OSError):
        files.mkdirs(target)
    count = len(written)
    for k, shard in enumerate(written):
        source = f"{work}/shards/{shard['shard']:06d}-of-{count:06d}.array_record"
        if _exists(source):  # or it is there already, from an earlier try
            files.rename([source], [f"{target}/{name}-{split}.array_record-{k:05d}-of-{count:05d}"])
    with tempfile.TemporaryDirectory() as folder:
        tfds_lib.describe(
            Path(folder), name, split, [s["length"] for s in written], sum(s["bytes"] for s in written)
        )
        described = json.loads(Path(folder, "dataset_info.json").read_text(encoding="utf-8"))
        described["splits"] = [*_described(target).values(), *described["splits"]]
        _write(f"{target}/features.json", Path(folder, "features.json").read_bytes())
        _write(f"{target}/dataset_info.json", json.dumps(described, indent=2).encode())


def _described(target: str) -> dict[str, dict]:
    """{name: description} of the splits that a data set has already."""
    path = f"{target}/dataset_info.json"
    return {split["name"]: split for split in json.loads(_read(path))["splits"]} if _exists(path) else {}


def _sum(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What became of all examples of some parts."""
    dropped: Counter = Counter()
    names: dict[str, list[str]] = {}
    for part in parts:
        dropped.update(part["dropped"])
        for reason, found in part["names"].items():
            names[reason] = (names.get(reason, []) + found)[:NAMES]
    return {
        "read": sum(part["read"] for part in parts),
        "dropped": dict(dropped.most_common()),
        "names": names,
    }


def tell(counts: Mapping[str, Any]) -> str:
    """What became of a collection, in a line."""
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in counts["dropped"].items())
    return f"Kept {counts['kept']:,} of {counts['read']:,} examples; dropped: {dropped or 'none'}."


def _write_lines(lines: Any, path: str) -> None:
    from apache_beam.io import WriteToText

    _ = lines | WriteToText(path, num_shards=1, shard_name_template="")


def _read_lines(path: str) -> list[dict]:
    return [json.loads(line) for line in _read(path).decode().splitlines()]


def _exists(path: str) -> bool:
    return _filesystems().exists(path)


def _read(path: str) -> bytes:
    with _filesystems().open(path, compression_type="uncompressed") as file:
        return file.read()


def _write(path: str, data: bytes) -> None:
    """Write a file that is never seen half written."""
    files = _filesystems()
    with contextlib.suppress(OSError):
        files.mkdirs(path.rpartition("/")[0])
    with files.create(f"{path}.part", compression_type="uncompressed") as file:
        file.write(data)
    if _exists(path):
        files.delete([path])
    files.rename([f"{path}.part"], [path])


@contextlib.contextmanager
def _local(path: str) -> Iterator[Path]:
    """A file as one of this machine: itself, or a copy of it."""
    if "://" not in path:
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "file")
        with _filesystems().open(path, compression_type="uncompressed") as source, copy.open("wb") as target:
            shutil.copyfileobj(source, target, 2**22)
        yield copy


@contextlib.contextmanager
def _local_record(path: str) -> Iterator[Any]:
    """An ArrayRecord file to write to, whose writer knows local files only; it is copied to `path` when it is whole."""
    from array_record.python.array_record_module import ArrayRecordWriter

    files = _filesystems()
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder, "file")
        writer = ArrayRecordWriter(str(local), "group_size:1")
        try:
            yield writer
        finally:
            writer.close()
        with contextlib.suppress(OSError):
            files.mkdirs(path.rpartition("/")[0])
        with files.create(path, compression_type="uncompressed") as target, local.open("rb") as source:
            shutil.copyfileobj(source, target, 2**22)
