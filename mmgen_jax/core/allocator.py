"""The C library's memory, which a step on a CPU gives back at its end and asks for again."""

import ctypes
import os

# Options of mallopt (glibc's malloc.h) and their values.
_KEEP = {
    -1: -1,  # M_TRIM_THRESHOLD: the heap never shrinks
    -4: 0,  # M_MMAP_MAX: no block has a mapping of its own, which would go when it does
    -8: 1,  # M_ARENA_MAX: threads share one heap; those of their own are too small for a step's buffers
}


def keep() -> bool:
    """Keep what is freed for whoever asks next, for the rest of this process. To be called before XLA starts its threads.

    XLA takes a step's buffers from malloc. What glibc gives back to the system has to be cleared page by page when it is asked
    for again (docs/time.md has what that costs). The process then holds the most that it ever held.

    Returns:
      Whether it was done: not where the environment has wishes of its own (MALLOC_..., GLIBC_TUNABLES), nor without glibc.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    return all(mallopt(option, value) for option, value in _KEEP.items())
