"""Errors that a person can read: what this package raised on purpose is a message, anything else keeps its traceback."""

import sys
import traceback
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def on_purpose(error: BaseException) -> bool:
    """Whether this package raised it on purpose, with a message for the user, and not by a mistake of its own."""
    if isinstance(error, ImportError):
        return error.__cause__ is not None
    if not isinstance(error, ValueError | OSError | RuntimeError | FloatingPointError):
        return False
    frames = list(traceback.walk_tb(error.__traceback__))
    return bool(frames) and Path(frames[-1][0].f_code.co_filename).resolve().is_relative_to(PACKAGE)


def status_of(error: BaseException) -> int:
    """The exit status that an error leads to: its attribute `status`; else 130 for Ctrl-C, and 1."""
    return getattr(error, "status", 130 if isinstance(error, KeyboardInterrupt) else 1)


def show(error: BaseException) -> int:
    """Write an error to standard error. -> its exit status."""
    if isinstance(error, KeyboardInterrupt):
        print(f"\n{error or 'Interrupted.'}", file=sys.stderr)
    elif on_purpose(error):
        print(f"\nerror: {error}", file=sys.stderr)
    else:
        traceback.print_exception(error)
    return status_of(error)
