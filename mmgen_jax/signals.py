"""What a run does when it is told something: SIGTERM and SIGINT, save and stop; SIGUSR1, save and go on."""

import signal
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

ASK_EVERY = 2.0  # seconds after which several processes ask each other again
T = TypeVar("T")


class Interrupted(KeyboardInterrupt):
    """A run that was told to stop, and has saved its state: the same command goes on from there.

    Attributes:
      status: the exit status of scripts/train.py then, by which a scheduler knows to start it again (EX_TEMPFAIL of sysexits.h).
    """

    status = 75


class Asked(NamedTuple):
    """What signals have asked for: to save the state now, to stop after that."""

    save: bool
    stop: bool


class _Now(BaseException):
    """Ends what `unless_stopped` runs."""


class Signals:
    """Listens from `with Signals() as signals:` to its end. Not in a notebook's other threads, where signals stay as they are.

    SIGTERM and SIGINT ask to save and stop at the next step's end, and a second SIGINT raises KeyboardInterrupt at once. SIGUSR1
    asks to save and go on. After a SIGTERM further ones are ignored, also after the end: a storm of them spoils no saving.
    """

    def __init__(self):
        self._save, self._stop, self._interrupts, self._giving_up = False, 0, 0, False
        self._handlers: dict[int, Any] = {}
        # Of several processes: the step at which they ask next; when and at which step they last did.
        self._next, self._last = 0, (time.perf_counter(), 0)

    def __enter__(self) -> "Signals":
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        try:
            self._handlers = {number: signal.signal(number, self._came) for number in numbers}
        except ValueError:  # not the main thread
            self._handlers = {}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._handlers.items():
            gone = number == signal.SIGTERM == self._stop
            signal.signal(number, signal.SIG_IGN if gone else handler)

    def _came(self, number: int, frame: Any) -> None:
        del frame
        if number == signal.SIGUSR1:
            self._save = True
            return
        self._stop = self._stop or number
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            raise KeyboardInterrupt
        if self._giving_up:
            raise _Now

    def unless_stopped(self, do: Callable[[], T]) -> T | None:
        """do(), given up as soon as a signal to stop comes, and None then: for what a resumed run does again.

        One of several processes never gives up, for the others would wait for it.
        """
        if jax.process_count() > 1:
            return do()
        try:
            try:
                self._giving_up = True
                if self._stop:
                    raise _Now
                return do()
            finally:
                self._giving_up = False
        except _Now:
            return None

    def asked(self, step: int) -> Asked:
        """What to do after this step; the same on all processes, whichever of them got a signal.

        They ask each other at steps that all count the same, about every `ASK_EVERY` seconds.
        """
        mine = Asked(self._save, bool(self._stop))
        if jax.process_count() == 1:
            self._save = False
            return mine
        if step < self._next:
            return Asked(False, False)
        now, (then, before) = time.perf_counter(), self._last
        pace = (now - then) / max(step - before, 1)
        answers = multihost_utils.process_allgather(np.array([*mine, pace], np.float32))
        # The first time, the pace is that of compiling.
        ahead = int(ASK_EVERY / max(float(answers[:, 2].max()), 1e-6)) if self._next else 1
        self._next, self._last = step + max(ahead, 1), (now, step)
        self._save = self._save and not mine.save
        return Asked(bool(answers[:, 0].any()), bool(answers[:, 1].any()))
