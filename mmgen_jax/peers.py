"""The processes of one run end together: when one fails or dies the others say so and stop, instead of waiting for it."""

import atexit
import contextlib
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator

from jax._src import distributed  # the store of texts that all processes share has no public name

from mmgen_jax.core import errors
from mmgen_jax.signals import Interrupted

STATUS = 69  # exit status of a process whose peer died (EX_UNAVAILABLE of sysexits.h)
LIMIT = 60  # seconds without a sign of life after which JAX takes a process for dead
GRACE = 3.0  # seconds in which an error that all processes have shows itself on another
FAILED = "mmgen_jax/failed"
# How the transports (gloo, NCCL, JAX's coordination service) say that the other end is gone.
GONE = re.compile(r"gloo|nccl|coordination|heartbeat|connection (reset|closed)|socket closed", re.IGNORECASE)


def _lost(why: str) -> int:
    """Say that this process is left behind. -> its exit status."""
    print(
        f"\nerror: Another process of this run died or cannot be reached ({why}). This one ends too; the same command on all "
        "machines goes on from the last checkpoint.",
        file=sys.stderr,
        flush=True,
    )
    return STATUS


def supervise() -> None:
    """Go on in a child process, and leave this one behind to pass on signals and to say what the child died of.

    JAX ends a process, without a word to Python, once process 0 is gone or another has been silent for `LIMIT` seconds. Call it
    before JAX has devices. The child never outlives its parent.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        os.close(theirs)
        os.setpgid(0, 0)  # else a terminal's Ctrl-C would come twice
        threading.Thread(
            target=lambda: (os.read(ours, 1), os._exit(128 + signal.SIGKILL)), daemon=True
        ).start()
        return
    os.close(ours)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, lambda number, _: os.kill(child, number))
    _, ended = os.waitpid(child, 0)
    os._exit(_status(ended))


def _status(ended: int) -> int:
    """The exit status for what `os.waitpid` gave, and a line about it where a signal ended the child."""
    if os.WIFEXITED(ended):
        return os.WEXITSTATUS(ended)
    number = os.WTERMSIG(ended)
    if number == signal.SIGABRT:
        return _lost("JAX's lines above say more")
    memory = ": did the memory run out?" if number == signal.SIGKILL else "."
    print(
        f"\nerror: This process was ended by {signal.Signals(number).name}{memory}",
        file=sys.stderr,
        flush=True,
    )
    return 128 + number


def listen() -> None:
    """Have this process end within seconds of another's failure, wherever it waits. Called once, after JAX has met the others."""
    stop = threading.Event()
    thread = threading.Thread(target=_listen, args=(stop,), daemon=True)
    thread.start()
    # No thread may be inside JAX when Python ends.
    atexit.register(lambda: (stop.set(), thread.join()))


def _listen(stop: threading.Event) -> None:
    me = distributed.global_state.process_id
    while not stop.wait(1.0):
        try:
            if not _failed():
                continue
            # An error that all have is told by the main thread, and better.
            if stop.wait(_patience(me)):
                return
            failed = _failed()
        except (ValueError, RuntimeError):
            return  # process 0 is gone, and JAX ends this one
        if me in failed:
            return
        process, said = next(iter(failed.items()))
        end(said["status"], f"\nerror: This process ends because process {process} did: {said['message']}")


def _patience(process: int) -> float:
    """How long a process waits for an error to be shared: process 0, without which JAX ends the others, goes last."""
    return GRACE if process else 2 * GRACE


def _failed() -> dict[int, dict]:
    """{process: {"status", "message"}} of all that have said that they failed."""
    found = distributed.global_state.client.key_value_dir_get(FAILED)
    return {int(key.rpartition("/")[2]): json.loads(value) for key, value in found}


def end(status: int, line: str = "") -> None:
    """Exit at once, without the farewell for which JAX has all processes wait for each other."""
    with contextlib.suppress(OSError, ValueError):
        if line:
            print(line, file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """An error in here that not all processes have ends this one at once and tells the others, which follow.

    One that all have (within `GRACE`), and an `Interrupted`, is raised as ever. Without other processes it does nothing.
    Use it inside of what the others are needed for to close, such as a Checkpointer.
    """
    try:
        yield
    except (SystemExit, Interrupted):
        raise
    except BaseException as error:
        if distributed.global_state.client is not None and not _shared(error):
            end(errors.show(error))
        raise


def _shared(error: BaseException) -> bool:
    """Tell the others, and see whether all have an error. Where the others are gone this process ends here."""
    state = distributed.global_state
    gone = not errors.on_purpose(error) and GONE.search(str(error)) is not None
    try:
        if gone:
            # Another may have said why, in which case `listen` ends this process with that.
            time.sleep(GRACE)
            if not _failed():
                end(_lost(str(error).splitlines()[0][:200]))
            time.sleep(3 * GRACE)
        said = {"status": errors.status_of(error), "message": str(error) or type(error).__name__}
        state.client.key_value_set(f"{FAILED}/{state.process_id}", json.dumps(said), allow_overwrite=True)
        deadline = time.monotonic() + _patience(state.process_id)
        while time.monotonic() < deadline:
            if len(_failed()) == state.num_processes:
                return True
            time.sleep(0.1)
    except (ValueError, RuntimeError):  # process 0, which keeps what was said, is gone
        if gone:
            end(_lost(str(error).splitlines()[0][:200]))
    return False
