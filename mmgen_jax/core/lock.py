"""One process at a time trains in a workdir: a lock that says who has it, and that no dead process keeps."""

import errno
import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from mmgen_jax.core import parallel

NAME = "lock"


class Locked(ValueError):
    """Another process works in this folder; the message says which, where and since when."""


class Lock:
    """Held from `with Lock(folder):` to its end, or to the process's: the system itself lets go of a dead process's lock.

    With several processes the first takes it for all. `alone` says that there is one only, which leaves the devices to the
    processes that it starts: to ask JAX how many there are would take a GPU's memory.

    Raises:
      Locked: somebody else has it.
      OSError: nothing can be written in the folder; says why.
    """

    def __init__(self, folder: Path, alone: bool = False):
        self._path, self._alone, self._file = folder / NAME, alone, None

    def __enter__(self) -> "Lock":
        if self._alone:
            self._take()
        else:
            parallel.from_first(self._take)
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = None

    def _take(self) -> None:
        while self._file is None:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                number = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            except OSError as error:
                raise OSError(
                    f"Cannot write in {self._path.parent}: {error.strerror}. Take another --workdir, or make it writable."
                ) from error
            try:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(number)
                raise Locked(
                    f"{self._path.parent} is in use by {owner(self._path)}. Stop that, or take another."
                ) from None
            except OSError as error:
                # Some network file systems have no locks; there the user must take care.
                if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                    raise
            # It may have been let go of, and deleted, since it was opened.
            try:
                same = os.fstat(number).st_ino == os.stat(self._path).st_ino
            except FileNotFoundError:
                same = False
            if same:
                self._file = number
            else:
                os.close(number)
        try:
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, json.dumps(_me()).encode(), 0)
        except OSError:
            pass  # a full disk: the lock holds, and only its owner's name is missing


def _me() -> dict[str, Any]:
    return {"process": os.getpid(), "host": socket.gethostname(), "since": round(time.time(), 3)}


def owner(path: Path) -> str:
    """Who wrote a lock file, and how long ago, in words."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        who, since = f"process {said['process']} on {said['host']}", float(said["since"])
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
    age = time.time() - since
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(since))
    if age < 0:
        return f"{who} since {when}, which is still to come: a clock here or there went back"
    return f"{who} since {when} ({_duration(age)})"


def _duration(seconds: float) -> str:
    for name, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {name}s"
    return f"{seconds:.0f} seconds"
