"""What the scripts share: starting JAX on one or many machines, and errors that a person can read."""

import argparse
import platform
import re
import runpy
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import jax
import ml_collections
from absl import flags, logging
from ml_collections import config_flags

from mmgen_jax import peers
from mmgen_jax.core import allocator, errors, registry
from mmgen_jax.signals import Interrupted


def start_jax(
    distributed: bool = False,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Quieten the libraries, keep memory, and join the other processes of a run. TPU, Slurm and GKE tell by themselves who they
    are.

    Of several processes each goes on in a child of its own; see `peers.supervise`.

    Raises:
      ValueError: a coordinator without the other two numbers, or the other way round.
    """
    allocator.keep()
    # Orbax tells every move at level INFO, which would bury the run's own lines.
    logging.set_verbosity(logging.WARNING)
    explicit = (coordinator, num_processes, process_id)
    if any(value is not None for value in explicit):
        if None in explicit:
            raise ValueError(
                "--coordinator, --num_processes and --process_id belong together; give all three."
            )
        if "cpu" in (jax.config.jax_platforms or ""):
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
    elif not distributed:
        return
    peers.supervise()
    jax.distributed.initialize(*explicit, heartbeat_timeout_seconds=peers.LIMIT)
    peers.listen()


def keep_compiled(workdir: str | Path, chosen: str | None = None) -> None:
    """Keep compiled programs, so that the next start reads what this one compiles. Of several processes the first writes.

    Args:
      workdir: keeps them in its compilation_cache/, unless JAX_COMPILATION_CACHE_DIR names another folder.
      chosen: this folder, whatever else is said; "" keeps none.
    """
    if chosen == "":
        jax.config.update("jax_enable_compilation_cache", False)
    if chosen == "" or (chosen is None and jax.config.jax_compilation_cache_dir is not None):
        return
    folder = Path(chosen or Path(workdir) / "compilation_cache")
    if jax.default_backend() == "cpu":
        # XLA uses all that a processor can do; on another kind of processor the program could crash.
        folder /= _processor()
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # Small programs too: a start compiles dozens of them.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _processor() -> str:
    """A name for what the processor can do."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features = next(line for line in lines if line.lower().startswith(("flags", "features")))
    except (OSError, StopIteration):
        features = platform.processor() or platform.node()
    return f"{platform.machine()}_{zlib.crc32(features.encode()):08x}"


class FlagError(ValueError):
    """A mistake in the flags or in the config that they name; the message says which."""


def parse_flags(argv: Sequence[str]) -> list[str]:
    """absl's parser for `app.run`, where --config FILE[:args] --config.KEY=VALUE with a mistake ends in one clear line."""
    try:
        if "config" in flags.FLAGS:
            for flag, value in zip(argv, [*argv[1:], ""], strict=True):
                name, given, inline = flag.lstrip("-").partition("=")
                if name == "config" and flag.startswith("-"):
                    _need_config_file(Path((inline if given else value).split(":")[0]))
        with _mistakes(argv):
            return flags.FLAGS(list(argv))
    except FlagError as error:
        sys.exit(f"error: {error}")


def config_of(text: str, changes: Sequence[str] = ()) -> ml_collections.ConfigDict:
    """The config that --config FILE[:args] and any --config.KEY=VALUE describe.

    Raises:
      ValueError: there is a mistake in them, which the message names.
    """
    file, _, arg = text.partition(":")
    _need_config_file(Path(file))
    config = runpy.run_path(file)["get_config"](arg or None)
    values, argv = flags.FlagValues(), ["", *changes]
    with _mistakes(argv):
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        values(argv)
    return config


@contextmanager
def _mistakes(argv: Sequence[str]) -> Iterator[None]:
    """What absl and ml_collections raise of these arguments becomes a FlagError."""
    try:
        yield
    except flags.IllegalFlagValueError as error:
        # ml_collections wraps a config file's error in its traceback; the last line is the message.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise FlagError(lines[-1].removeprefix("ValueError: ")) from error
    except flags.Error as error:
        raise FlagError(f"{error}. See --help.") from error
    except (KeyError, AttributeError) as error:  # ml_collections: an override of a key that is not there
        named = re.search(r"'(\w+)\\?'", str(error.args[0] if error.args else error))
        key = named[1] if named else ""
        where = [
            flag for flag in argv if flag.startswith("--config.") and key in flag.split("=")[0].split(".")
        ]
        near = re.search(r'Did you mean "[^"]+"', str(error))
        hint = (
            f"{near[0]}?" if near else "A key can be set here only if the config file has it: add it there."
        )
        if not where:
            raise
        raise FlagError(f'{where[0]}: the config has no key "{key}". {hint}') from error


def _need_config_file(path: Path) -> None:
    if not path.is_file():
        files = (str(file) for file in path.parent.glob("*.py"))
        raise FlagError(f"No config file {path}.{registry.nearest(str(path), files)}")


def check_out(path: Path | None, flag: str = "--out") -> None:
    """Make the folder of an output file and see that the file can be written, before the work and not after it.

    Raises:
      OSError: it cannot; says why.
    """
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError as error:
        raise OSError(f"Cannot write {flag} {path}: {error.strerror}.") from error


def rows_and_columns(text: str) -> tuple[int, int]:
    """ "3x4" -> (3, 4): how frames lie in a picture, as a type of argparse."""
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not found:
        raise argparse.ArgumentTypeError(f'"{text}" is not ROWSxCOLUMNS, such as 3x4')
    return int(found[1]), int(found[2])


def tell(main: Callable[[], Any]) -> int:
    """Run `main`; an error that this package raised on purpose becomes its message, any other keeps its traceback.

    Returns:
      The exit status: 0, 1 after an error, 130 after Ctrl-C, 75 where a run was told to stop and saved first. A process
      whose peer died ends here with 69; see peers.py.
    """
    try:
        with peers.together():
            main()
        return 0
    except KeyboardInterrupt as stop:
        return errors.show(stop)
    except Exception as error:
        if not errors.on_purpose(error):
            raise
        return errors.show(error)
    finally:
        sys.stdout.flush()


def leave(status: int) -> NoReturn:
    """End the process with this status; one that a signal stopped at once.

    A compile that was given up goes on in XLA's threads, which crash, with another status, once Python takes down what they use.
    """
    if status in (Interrupted.status, errors.status_of(KeyboardInterrupt())) and jax.process_count() == 1:
        peers.end(status)
    sys.exit(status)
