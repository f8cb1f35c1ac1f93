"""The folders of checkpoints on disk: which steps are there, fingerprints of their files, what is set aside and what is kept."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
ASIDE = ".aside"
DELETED = ".deleted"
PARTIAL = ".orbax-checkpoint-tmp"
# Orbax writes these once the fingerprints are made; nothing is read from them.
UNSEALED = ("_CHECKPOINT_METADATA", "commit_success.txt")
# What a disk can have against a write; `why` tells these first.
REASONS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.ESTALE, errno.EIO)


class CheckpointError(ValueError):
    """A checkpoint that does not fit this run, cannot be read or cannot be written; the message says in what, and the remedy."""


class Damaged(CheckpointError):
    """A checkpoint whose content is not what was written; an older one may be whole."""


def steps(directory: Path) -> list[int]:
    """The steps that have a folder with a checkpoint in it, in ascending order; nothing is read to see whether it is whole."""
    return sorted(int(path.name) for path in _numbered(directory) if _has_checkpoint(path))


def empty(directory: Path) -> list[Path]:
    """Folders with a step's name and no checkpoint in them: made by hand, or a copy that was broken off."""
    return sorted(path for path in _numbered(directory) if not _has_checkpoint(path))


def leftovers(directory: Path) -> list[Path]:
    """What a process that died left behind: steps half-written and half-deleted."""
    return sorted(path for path in _list(directory) if PARTIAL in path.name or path.name.endswith(DELETED))


def aside(directory: Path) -> list[Path]:
    """What was set aside."""
    return sorted(path for path in _list(directory) if ASIDE in path.suffixes)


def _list(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except FileNotFoundError:
        return []


def _numbered(directory: Path) -> list[Path]:
    def is_step(name: str) -> bool:
        return name.isascii() and name.isdigit() and str(int(name)) == name

    return [path for path in _list(directory) if is_step(path.name) and path.is_dir()]


def _has_checkpoint(folder: Path) -> bool:
    return (folder / MANIFEST).is_file() or ((folder / "facts").is_dir() and (folder / "state").is_dir())


def read_facts(folder: Path) -> dict[str, Any]:
    """What was written beside the state: {"tokenizer", "checksums", "scores", ...}.

    Raises:
      Damaged: it is not there, or not whole.
    """
    try:
        facts = json.loads((folder / "facts" / "metadata").read_text(encoding="utf-8"))
        if not isinstance(facts, dict):
            raise ValueError("no table")
        return facts
    except (OSError, ValueError) as error:
        raise Damaged(f"{folder} is damaged (facts/metadata cannot be read: {why(error)}).") from error


def seal(folder: Path, step: int) -> None:
    """Write the manifest, size and SHA-256 of every file, and see that all of it is on the disk and not only on its way."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in UNSEALED]
    with ThreadPoolExecutor(4) as pool:  # hashing lets other threads run
        digests = list(pool.map(lambda path: _digest(path, sync=True), files))
    names = (path.relative_to(folder).as_posix() for path in files)
    manifest = {"step": step, "files": dict(zip(names, digests, strict=True))}
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    for path in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        sync(path)


def sync(directory: Path) -> None:
    """Have the names in a folder on the disk; a file system that cannot say so is taken at its word."""
    try:
        number = os.open(directory, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(number)


def _digest(path: Path, sync: bool = False) -> list:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if sync:
            os.fsync(file.fileno())
        return [file.tell(), digest]


def is_sealed(folder: Path) -> bool:
    """Whether a checkpoint has fingerprints of its files; those of earlier versions have none."""
    return (folder / MANIFEST).is_file()


def problems(folder: Path) -> list[str]:
    """In which files a checkpoint differs from what was written; reads all of it. Nothing is said of one without fingerprints."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        step, files = (
            int(manifest["step"]),
            {str(k): (int(v[0]), str(v[1])) for k, v in manifest["files"].items()},
        )
    except FileNotFoundError:
        return [f"{MANIFEST} is missing"] if read_facts(folder).get("sealed") else []
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        return [f"{MANIFEST} cannot be read ({why(error)})"]
    if folder.name.isdigit() and step != int(folder.name):
        return [f"it is step {step} under another's name"]

    def check(item: tuple[str, tuple[int, str]]) -> str | None:
        name, (size, digest) = item
        try:
            found, now = _digest(folder / name)
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({why(error)})"
        if found != size:
            return f"{name} has {found:,} bytes of {size:,}"
        return f"{name} has other bytes than were written" if now != digest else None

    with ThreadPoolExecutor(4) as pool:
        return [found for found in pool.map(check, files.items()) if found]


def set_aside(folder: Path) -> Path:
    """Rename a step's folder, so that it is a step no more; nothing in it is touched. -> its new name."""
    number, target = 1, folder.with_name(folder.name + ASIDE)
    while target.exists():
        number += 1
        target = folder.with_name(f"{folder.name}{ASIDE}.{number}")
    folder.rename(target)
    return target


def delete(folder: Path) -> None:
    """Delete a folder; renamed first, so that one half deleted is never taken for a step."""
    if not folder.name.endswith(DELETED):
        doomed = folder.with_name(folder.name + DELETED)
        shutil.rmtree(doomed, ignore_errors=True)
        folder = folder.rename(doomed)
    shutil.rmtree(folder, ignore_errors=True)


def scores(directory: Path) -> dict[int, Mapping[str, float]]:
    """{step: the scores that were known when it was written}."""
    found = {}
    for step in steps(directory):
        try:
            found[step] = read_facts(directory / str(step)).get("scores") or {}
        except Damaged:
            continue
    return found


def best(scores: Mapping[int, Mapping[str, float]], name: str, lower: bool = False) -> int | None:
    """The step with the best score of that name, the later of equals; None where no step has one."""
    sign = -1.0 if lower else 1.0
    have = {step: sign * values[name] for step, values in scores.items() if values.get(name) is not None}
    have = {step: value for step, value in have.items() if value == value}
    return max(have, key=lambda step: (have[step], step), default=None)


def kept(steps: Iterable[int], keep: int, every: int = 0, best: int | None = None) -> dict[int, str]:
    """{step: why} of what stays.

    Args:
      steps: what is there.
      keep: so many of the newest; 0 all.
      every: those that are a multiple of it, for ever; 0 none.
      best: one that stays because of its score.
    """
    steps = sorted(steps)
    why = dict.fromkeys(steps[-keep:] if keep else steps, "newest")
    why.update({step: f"every {every}" for step in steps if every and step % every == 0 and step not in why})
    if best is not None and best in steps:
        why[best] = "best"
    return why


def why(error: Exception) -> str:
    """An error in a few words; one that a storage layer raised may hold a whole specification, and the reason after it."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    reason = next((reason for reason in map(os.strerror, REASONS) if reason in str(error)), "")
    said = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
    return said if reason in said else f"{reason} ({said})"
