"""Broken examples: set aside with their reason, counted, and a stop when there are too many of them."""

import json
import threading
from collections import defaultdict
from pathlib import Path


class BrokenExample(Exception):
    """An example that cannot be used, with the reason "kind" or "kind: detail"; the loader quarantines it."""


class TooManyBroken(RuntimeError):
    """More examples are broken than the run allows; the message is a summary."""


def read_bytes(path: str | Path) -> bytes:
    """The content of an image file.

    Raises:
      BrokenExample: it is missing or cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise BrokenExample(f"missing file: {path}") from None
    except (OSError, ValueError) as error:  # a name may be none that a file can have
        raise BrokenExample(
            f"unreadable file: {path} ({getattr(error, 'strerror', None) or error})"
        ) from None


class Quarantine:
    """The list of broken examples of one source, kept in a file of JSON lines.

    Every broken example is written once, over all epochs and resumed runs: the file is read at the start.
    Several sources (train, val) may share a file, and threads may share a Quarantine; processes need a file
    each.

    Args:
      path: the file, made when the first broken example turns up.
      total: number of examples in the source.
      source: name of the source in the file.
      max_share: the largest share of `total` that may be broken.
      minimum: fewer broken examples than this never stop a run, unless they are the whole source: one bad
        picture among twenty is no reason to stop.
    """

    def __init__(
        self,
        path: str | Path,
        total: int,
        *,
        source: str = "train",
        max_share: float = 0.01,
        minimum: int = 8,
    ):
        if not 0 <= max_share <= 1:
            raise ValueError(f"max_share must lie between 0 and 1, not {max_share}.")
        self.path, self.total, self.source = Path(path), total, source
        self.max_share, self.minimum = max_share, minimum
        self._lock = threading.Lock()
        self._entries: dict[int, tuple[str, str]] = {}
        # A run that was killed may have left half a line: it is ignored, and the next entry starts a new one.
        self._newline = ""
        if self.path.is_file():
            text = self.path.read_text(encoding="utf-8", errors="replace")
            self._newline = "" if not text or text.endswith("\n") else "\n"
            for line in text.splitlines():
                try:
                    entry = json.loads(line)
                    if entry["source"] == source:
                        self._entries[int(entry["index"])] = (entry["name"], entry["reason"])
                except (ValueError, KeyError, TypeError):
                    continue

    @property
    def count(self) -> int:
        """Number of distinct broken examples known so far."""
        return len(self._entries)

    def add(self, index: int, name: str, reason: str) -> None:
        """Note that example `index` is broken; a second note of the same index changes nothing.

        Raises:
          TooManyBroken: with this one, more than `max_share` of the source is broken.
        """
        with self._lock:
            index = int(index)
            if index not in self._entries:
                self._entries[index] = (str(name), str(reason))
                self.path.parent.mkdir(parents=True, exist_ok=True)
                entry = {"source": self.source, "index": index, "name": str(name), "reason": str(reason)}
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(self._newline + json.dumps(entry, ensure_ascii=False) + "\n")
                self._newline = ""
            enough = self.count >= min(self.minimum, self.total)
            if enough and self.count > self.max_share * self.total:
                raise TooManyBroken(self.summary())

    def summary(self) -> str:
        """Reasons with their counts and first names, the file, and what to do."""
        kinds = defaultdict(list)
        for _, (name, reason) in sorted(self._entries.items()):
            kinds[reason.split(":")[0]].append(name)
        rows = sorted(kinds.items(), key=lambda item: (-len(item[1]), item[0]))
        width = max((len(kind) for kind in kinds), default=0)
        lines = [
            f"{self.count} of {self.total} examples of {self.source!r} are broken "
            f"({self.count / max(self.total, 1):.1%}; max_share allows {self.max_share:.1%}):"
        ]
        for kind, names in rows:
            more = ", ..." if len(names) > 3 else ""
            lines.append(f"  {len(names):6d}  {kind:<{width}}  {', '.join(names[:3])}{more}")
        lines.append(
            f"Each is listed in {self.path}. Repair or remove them and delete that file, or raise max_share."
        )
        return "\n".join(lines)
