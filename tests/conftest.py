"""Eight CPU devices and strict types for every test; compiled programs are kept between tests and runs."""

import fcntl
import functools
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
if version("jaxlib").startswith("0.10."):
    # Compiling is most of what the tests do, and takes a third of the time with XLA's older emitters, which later ones lack.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false"

import jax
import ml_collections
import numpy as np
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
CACHE = os.environ.get("MMGEN_TEST_CACHE", os.path.join(tempfile.gettempdir(), "mmgen_jax_test_cache"))
jax.config.update("jax_compilation_cache_dir", CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
# Compiling takes less than half the time so.
jax.config.update("jax_disable_most_optimizations", True)

from mmgen_jax.core import sharding

ROOT = Path(__file__).resolve().parents[1]
MAPPINGS = 20_000


@pytest.fixture(autouse=True)
def sigterm():
    """Whoever was stopped by SIGTERM ignores it from then on (mmgen_jax/signals.py); what later tests start must not."""
    yield
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """A compiled program takes about a dozen of the 65,530 mappings that Linux lets a process have (vm.max_map_count), and
    35 tests may take 10,000; a process that ran nearly all ended in a segfault of XLA's. What is kept on disk is soon back."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MAPPINGS:
        jax.clear_caches()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets beside the repository; tests that need one are skipped without it."""
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"needs the real data sets at {path}, which this machine does not have")
    return path


@pytest.fixture(scope="session")
def script_env() -> dict[str, str]:
    """The environment of a script that a test runs: one CPU device, the tests' compiled programs."""
    jax_env = {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_COMPILATION_CACHE_DIR": CACHE,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    return {**os.environ, **jax_env, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture
def on_devices(monkeypatch):
    """on_devices(2): experiments built from here on use only so many of the eight devices."""

    def use(count: int):
        make = functools.partial(sharding.make, devices=jax.devices()[:count])
        monkeypatch.setattr(sharding, "make", make)

    return use


@pytest.fixture(scope="session")
def load_config():
    """load_config("captioner_scenes.py:tiny", seed=1): the config without evaluations and judges, some values replaced.

    Evaluations cost most of a tiny run's time, and judges are other runs; a test that wants one adds it.
    """

    def load(text: str = "captioner_scenes.py:tiny", **replace):
        name, _, arg = text.partition(":")
        config = runpy.run_path(str(ROOT / "configs" / name))["get_config"](arg or None)
        kept = {key: value for key, value in config.to_dict().items() if key != "judges"}
        return ml_collections.ConfigDict({**kept, "evals": {}, **replace})

    return load


@pytest.fixture(scope="session")
def same():
    """same(left, right): two trees of arrays are equal, bit for bit unless rtol or atol is given."""

    def check(left, right, **tolerance):
        def plain(x):
            x = jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
            return np.asarray(x)

        assert jax.tree.structure(left) == jax.tree.structure(right)
        pairs = zip(jax.tree_util.tree_leaves_with_path(left), jax.tree.leaves(right), strict=True)
        for (path, a), b in pairs:
            a, b, name = plain(a), plain(b), jax.tree_util.keystr(path)
            assert a.dtype == b.dtype, name
            if tolerance:
                np.testing.assert_allclose(a, b, err_msg=name, **tolerance)
            else:
                assert a.tobytes() == b.tobytes(), f"{name} differs by up to {np.abs(a - b).max()}"

    return check


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory, script_env) -> tuple[Path, str]:
    """(workdir, printed text) of the README's first command in its tiny form; to be read, never changed.

    Test processes share one run; whoever comes first trains it, the others wait at the lock.
    """
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    workdir, printed = folder / "tiny_run", folder / "tiny_run.txt"
    with (folder / "tiny_run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not printed.exists():
            command = "scripts/train.py --config configs/captioner_scenes.py:tiny --workdir"
            done = subprocess.run(
                [sys.executable, *command.split(), workdir],
                cwd=ROOT,
                env=script_env,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            printed.write_text(done.stdout, encoding="utf-8")
    return workdir, printed.read_text(encoding="utf-8")


@pytest.fixture
def script(monkeypatch, capsys):
    """script("caption", "--workdir", ...) -> (exit status, stdout, stderr) of scripts/caption.py, run in here."""

    def run(name: str, *arguments) -> tuple[int, str, str]:
        path = ROOT / "scripts" / f"{name}.py"
        monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(path), run_name="__main__")
        return stop.value.code or 0, *capsys.readouterr()

    return run
