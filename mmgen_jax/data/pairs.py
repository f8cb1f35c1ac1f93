"""Images with their captions, and what the readers of all formats share: files whose mistakes are named."""

import gzip
import io
import json
import pickletools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from mmgen_jax.core import registry
from mmgen_jax.data.quarantine import read_bytes

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


class Source(Protocol):
    """What a source offers. `captions` neither reads nor decodes the image where the format allows that."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    def captions(self, index: int) -> list[str]: ...


class Pairs:
    """Images with their captions.

    Args:
      images: images[i] is the encoded image (bytes) or a uint8 array [H, W, 3]; read when it is asked for.
      captions: a list of strings for each image.
      names: what messages call each image.
    """

    def __init__(self, images: Sequence, captions: Sequence[list[str]], names: Sequence[str]):
        self._images, self._captions, self._names = images, captions, names

    def __len__(self) -> int:
        return len(self._captions)

    def __getitem__(self, index: int) -> dict[str, Any]:
        name = self._names[index]  # raises IndexError past the end
        return {"image": self._images[index], "captions": self._captions[index], "name": name}

    def captions(self, index: int) -> list[str]:
        """The captions of an image, without reading it."""
        return self._captions[index]

    def name(self, index: int) -> str:
        """What messages call the image, without reading it."""
        return self._names[index]


class Labelled(Pairs):
    """Pairs that each belong to a class; an example has "label" too, int32.

    Args:
      images, captions, names: see `Pairs`.
      labels: the class of each image, as its position in `classes`.
      classes: the names of the classes.
    """

    def __init__(self, images, captions, names, labels: Sequence[int], classes: Sequence[str]):
        super().__init__(images, captions, names)
        self._labels, self.classes = np.asarray(labels, np.int32), list(classes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**super().__getitem__(index), "label": self._labels[index]}

    def label(self, index: int) -> int:
        """The class of an image, without reading it."""
        return int(self._labels[index])


class Files:
    """Paths below a folder, read when they are asked for."""

    def __init__(self, root: Path, paths: Sequence[str]):
        self._root, self._paths = root, paths

    def __getitem__(self, index: int) -> bytes:
        return read_bytes(self._root / self._paths[index])


class Problems:
    """Entries that lack their image or their captions: collected, so that one error tells of all of them."""

    def __init__(self, file: Path, on_missing: str):
        self._skip = registry.choose({"error": False, "skip": True}, on_missing, "value of on_missing")
        self._file, self._found = file, {}

    def add(self, kind: str, where: str) -> None:
        self._found.setdefault(kind, []).append(where)

    def captions(self, value: Any, where: str) -> list[str]:
        """A string or a list of strings -> the captions that are not empty; what is wrong is noted."""
        texts = [value] if isinstance(value, str) else list(value or ())
        if not texts:
            self.add("image without captions", where)
        kept = []
        for k, text in enumerate(texts):
            if not isinstance(text, str):
                self.add("caption that is no text", f"{where}, caption {k + 1}: {text!r}")
            elif not text.strip():
                self.add("empty caption", f"{where}, caption {k + 1}")
            else:
                kept.append(text.strip())
        return kept

    def found(self) -> list[str]:
        """A line for each kind of problem: how many there are, and the first of them."""
        lines = []
        for kind, places in self._found.items():
            more = f", and {len(places) - 5} more" if len(places) > 5 else ""
            lines.append(f"  {kind}: {len(places)} ({'; '.join(places[:5])}{more})")
        return lines

    def report(self, hint: str = "") -> None:
        """Raise the error, if there is one, and if they are not to be skipped."""
        if not self._found or self._skip:
            return
        remedy = 'Repair these entries, or set on_missing="skip" to leave them out.'
        raise ValueError(
            "\n".join([f"{self._file} has unusable entries:", *self.found(), f"{remedy} {hint}".strip()])
        )


def need(path: str | Path, what: str) -> Path:
    found = Path(path).expanduser()
    if not found.exists():
        raise FileNotFoundError(
            f"{path} does not exist (seen from {Path.cwd()}). Expected there: {what}. "
            "Put it there, or set the path in the config."
        )
    return found


def need_file(path: str | Path, what: str) -> Path:
    found = need(path, what)
    if not found.is_file():
        raise ValueError(f"{path} is a folder. Expected there: {what}.")
    return found


def need_folder(path: str | Path, what: str) -> Path:
    found = need(path, what)
    if not found.is_dir():
        raise ValueError(f"{path} is a file. Expected there: {what}.")
    return found


def read_lines(file: Path) -> Iterable[tuple[int, str]]:
    """(line number from 1, text) of each line of a UTF-8 file that is not blank at its end."""
    return split_lines(file.read_bytes(), file)


def read_rows(file: Path, split: str | None, split_key: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) of each line of a file of JSON lines that belongs to the split; None takes all.

    Raises:
      ValueError: a line is no JSON object or has no split, or no line is of this one (at the end).
    """
    splits = set()
    for number, row in json_lines(file):
        if split is not None:
            if split_key not in row:
                raise ValueError(
                    f'{file}, line {number}: no field "{split_key}", so split="{split}" cannot be chosen.'
                    f"{registry.nearest(split_key, row)} Set split_key, or leave split out."
                )
            splits.add(row[split_key])
            if row[split_key] != split:
                continue
        yield number, row
    check_split(file, split, splits)


def split_lines(data: bytes, where: str | Path) -> Iterable[tuple[int, str]]:
    """See `read_lines`; `where` is what errors call the file."""
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    while lines and not lines[-1].strip():
        lines.pop()
    for number, line in enumerate(lines, 1):
        try:
            yield number, line.decode("utf-8").rstrip("\r")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{where}, line {number}: not UTF-8 (byte {error.object[error.start]:#04x} at column "
                f"{error.start + 1}). Save the file as UTF-8, for example with iconv -f latin1 -t utf-8."
            ) from None


def gunzip(data: bytes, most: int) -> bytes:
    """The content of a gzip file, which must not be more than `most` bytes: a small file can hold any number of zeros.

    Raises:
      ValueError: it is more.
      OSError, EOFError, zlib.error: it is damaged.
    """
    content = bytearray()
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        while part := file.read(2**20):
            content += part
            if len(content) > most:
                raise ValueError(f"decompression bomb: more than {most:,} bytes in a file of {len(data):,}")
    return bytes(content)


def parse_json(text: str | bytes) -> Any:
    """json.loads with one kind of error, also for what it has others for: brackets too deep, numbers too long, no UTF-8.

    Raises:
      json.JSONDecodeError: it is no JSON.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise json.JSONDecodeError("brackets within brackets, too deep to be read", "", 0) from None
    except ValueError as error:
        raise json.JSONDecodeError(str(error), "", 0) from None


def check_pickle(file: BinaryIO) -> None:
    """See that a pickle can be read in memory of its own size; it is not run. The file stays where it was.

    Python's reader makes room for as many objects as one number in it says: nine bytes can ask for 34 GB.

    Raises:
      ValueError, EOFError: it asks for more, or is broken.
    """
    begin = file.tell()
    for count, (code, value, _) in enumerate(pickletools.genops(file)):
        if code.name.endswith("PUT") and value > count:
            raise ValueError(f"decompression bomb: it numbers its {count + 1}th object {value:,}")
    file.seek(begin)


def check_split(file: Path, split: str | None, splits: Iterable) -> None:
    names = sorted(map(str, splits))
    if split is not None and split not in names:
        raise ValueError(f'{file} has no split "{split}". It has: {", ".join(names) or "none"}.')


def on_disk(root: str | Path, paths: list[str], captions: list[list[str]], file: Path) -> Pairs:
    """Image files below `root`. One that is absent is quarantined later; if all are, the folder is wrong."""
    root = need_folder(root, f"the images that {file} names")
    if not paths:
        raise ValueError(f"{file} holds no usable example.")
    if not any(exists(root / path) for path in islice(paths, 32)):
        raise FileNotFoundError(
            f"None of the first images that {file} names is in {root}; expected for example "
            f"{root / paths[0]}. Is that the right folder?"
        )
    return Pairs(Files(root, paths), captions, paths)


def exists(path: Path) -> bool:
    """Also of a name that no file can have."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def json_lines(file: Path) -> Iterable[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) of each line of a file of JSON objects that is not blank."""
    for number, line in read_lines(file):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{file}, line {number}: broken JSON ({error.msg} at column {error.colno}). "
                "Repair or delete the line; if it is the last one, the file was cut: copy it again."
            ) from None
        if not isinstance(row, dict):
            raise ValueError(f"{file}, line {number}: expected a JSON object {{...}}, found {line[:40]!r}.")
        yield number, row


def read_json(file: Path) -> Any:
    """The content of a JSON file; broken JSON is a ValueError that names the place."""
    text = "\n".join(line for _, line in read_lines(file))
    try:
        return parse_json(text)
    except json.JSONDecodeError as error:
        cut = error.pos >= len(text.rstrip()) or not text.rstrip().endswith(("}", "]"))
        why = "the file ends in the middle: it was cut, copy it again" if cut else "repair it there"
        raise ValueError(
            f"{file}, line {error.lineno}, column {error.colno} (character {error.pos} of {len(text)}): "
            f"broken JSON, {error.msg}; {why}."
        ) from None


def need_keys(file: Path, content: Any, keys: Mapping[str, Sequence[str]]) -> None:
    """`content` is an object that has lists of objects with these fields."""
    for key, fields in keys.items():
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise ValueError(f'{file} has no list "{key}": is it the right kind of file?')
        for number, entry in enumerate(content[key]):
            for field in fields:
                if not isinstance(entry, dict) or field not in entry:
                    raise ValueError(f'{file}: entry {number} of "{key}" has no "{field}".')
