"""The source "webdataset": image-text pairs in tar files, read at their place in the tar."""

import glob
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmgen_jax.data.pairs import IMAGE_SUFFIXES, Pairs, Problems, Source, need, parse_json, split_lines


def webdataset(*, path: str, captions_key: str = "caption", on_missing: str = "error") -> Source:
    """Tar files of image-text pairs as WebDataset has them: 17.jpg with 17.txt, or with 17.json, in any order.

    At the start the headers and texts of all files are read. The captions stay in memory, images are read when
    they are asked for, at their place in the tar.

    Args:
      path: a tar file, a folder of *.tar, or a pattern: "pairs/{000..331}.tar", "pairs/*.tar". Not compressed:
        what is in a .tar.gz cannot be read in any order.
      captions_key: field of the .json, a string or a list, for pairs without .txt (which has one caption a line).
      on_missing: what an image without caption, or a caption without image, gets: "error" or "skip".
    """
    files = _tar_files(path)
    problems = Problems(Path(path), on_missing)
    places, captions, names = [], [], []
    for number, file in enumerate(files):
        for key, image, parts in tar_images(file, problems):
            name = f"{file.name}/{key}"
            if image is None:
                problems.add("captions without image", name)
                continue
            texts = problems.captions(tar_captions(parts, captions_key, f"{file}, {key}"), name)
            if texts:
                places.append((number, *image))
                captions.append(texts)
                names.append(name)
    problems.report(f'In a .json the field captions_key="{captions_key}" is read.')
    if not places:
        raise ValueError(f"{path} holds no image with a .txt or .json of the same name.")
    return Pairs(_Members(files, np.array(places, np.int64)), captions, names)


class _Members:
    """Parts of files, read when they are asked for. places: int64 [N, 3], the file's number, offset and size."""

    def __init__(self, files: Sequence[Path], places: np.ndarray):
        self._files, self._places = files, places

    def __getitem__(self, index: int) -> bytes:
        number, offset, size = self._places[index].tolist()
        with self._files[number].open("rb") as file:
            file.seek(offset)
            return file.read(size)


def _tar_files(path: str) -> list[Path]:
    """The tar files that a path, a folder or a pattern means, in order."""
    what = "a tar file of image-text pairs, a folder of them, or a pattern such as pairs/{000..331}.tar"
    files = []
    for one in [path] if Path(path).expanduser().exists() else braces(path):
        found = Path(one).expanduser()
        if re.search(r"[*?[]", one) and not found.exists():
            matches = sorted(map(Path, glob.glob(str(found))))
            if not matches:
                raise FileNotFoundError(
                    f"No file matches {one} (seen from {Path.cwd()}). Expected there: {what}."
                )
            files += matches
        elif need(one, what).is_dir():
            matches = sorted(found.glob("*.tar"))
            if not matches:
                raise FileNotFoundError(
                    f"The folder {found} holds no *.tar file (compressed ones do not count)."
                )
            files += matches
        else:
            files.append(found)
    return files


def braces(pattern: str) -> list[str]:
    """As the shell does it: x{08..10} -> x08, x09, x10; x{a,b} -> xa, xb."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if not found:
        return [pattern]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", found[1])
    options = found[1].split(",")
    if span:
        options = [str(k).zfill(len(span[1])) for k in range(int(span[1]), int(span[2]) + 1)]
    start, end = pattern[: found.start()], pattern[found.end() :]
    return [one for option in options for one in braces(start + option + end)]


def tar_images(
    file: Path, problems: Problems
) -> Iterator[tuple[str, tuple[int, int] | None, dict[str, Any]]]:
    """(key, offset and size of the image or None, all parts) of each pair of a tar, in its order; see `tar_captions`.

    Raises:
      ValueError: the file is no plain tar, or cut.
    """
    for key, parts in _tar_parts(file, problems).items():
        yield key, next((parts[suffix] for suffix in IMAGE_SUFFIXES if suffix in parts), None), parts


def _tar_parts(file: Path, problems: Problems) -> dict[str, dict[str, Any]]:
    """{key: {suffix: (offset, size) of an image, or the bytes of a text}}, in the order of the tar."""
    parts: dict[str, dict[str, Any]] = {}
    length = file.stat().st_size
    try:
        with tarfile.open(file, "r:") as tar:
            last = -1
            for member in tar:
                # A size below zero would lead back, for ever.
                if member.offset_data <= last or member.size < 0:
                    raise tarfile.ReadError(f"{member.name} lies before byte {last}")
                last = member.offset_data
                if member.name.startswith("/") or ".." in member.name.split("/"):
                    raise ValueError(
                        f"{file}: {member.name} points outside the archive's folder, as no data set does. It was not read."
                    )
                if member.offset_data + member.size > length:
                    raise ValueError(
                        f"{file} is cut: {member.name} begins at byte {member.offset_data} and has {member.size} "
                        f"bytes, the file ends at byte {length}. Copy it again."
                    )
                folder, slash, base = member.name.rpartition("/")
                stem, dot, suffix = base.partition(".")
                suffix = dot + suffix.lower()
                image = suffix in IMAGE_SUFFIXES
                if not (member.isfile() and stem and (image or suffix in (".txt", ".json"))):
                    continue
                own = parts.setdefault(folder + slash + stem, {})
                if suffix in own:
                    problems.add("file written twice", f"{file.name}/{member.name}")
                own[suffix] = (member.offset_data, member.size) if image else tar.extractfile(member).read()
            # tarfile takes anything that is no header for the end; the true end is a block of zeros.
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise ValueError(
                    f"{file} is cut or damaged: at byte {tar.offset} of {length} is neither a file nor the end "
                    "mark of a tar. Copy it again."
                )
    except tarfile.TarError as error:
        raise ValueError(
            f"{file} is no plain tar file ({error}). If it is compressed (.tar.gz), unpack it with gunzip; if it "
            "was cut while copying, copy it again."
        ) from None
    return parts


def tar_captions(parts: Mapping[str, Any], key: str, where: str) -> Any:
    """The lines of the .txt, or else the field of the .json, or None."""
    if ".txt" in parts:
        return [line for _, line in split_lines(parts[".txt"], f"{where}.txt")]
    try:
        return parse_json(parts.get(".json", b"{}")).get(key)
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{where}.json is no JSON object ({error}). Repair it, or leave it out.") from None
