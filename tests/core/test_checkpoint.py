"""Checkpoints: any devices read what others wrote, bit for bit; what is damaged or unfit is refused."""

import errno
import gc
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmgen_jax.core import sharding, step_folders
from mmgen_jax.core.checkpoint import Checkpointer, CheckpointError, NoCheckpoint, first_bad
from mmgen_jax.core.state import State

FACTS = {"tokenizer": "abc"}
# Orbax leaves coroutines behind when a read fails.
leftovers = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def make_state(rng, rows=64):
    """Every kind of array that a State may hold."""
    kernel = jax.random.normal(rng, (rows, 64))
    params = {"model": {"kernel": kernel, "bias": jnp.arange(7.0), "half": kernel[:8].astype(jnp.bfloat16)}}
    moments = {"mu": 2.0 * kernel, "count": jnp.int32(5), "on": jnp.array([True, False])}
    variables = {"model": {"batch_stats": {"mean": jnp.arange(3.0)}}}
    return State(
        jnp.int32(3), rng, params, variables, {"model": (moments,)}, {"model": {"bias": jnp.ones(7)}}
    )


def place(devices=8, rows=64, **mesh):
    """(abstract, shardings) on the first devices, everything that can be cut cut."""
    layout = sharding.make(**mesh, min_mb=0.0, devices=jax.devices()[:devices])
    abstract = jax.eval_shape(lambda rng: make_state(rng, rows), jax.random.key(0))
    return abstract, sharding.infer(abstract, layout)


@pytest.fixture(scope="module")
def state():
    _, shardings = place(data=2, fsdp=4)
    return jax.jit(make_state, out_shardings=shardings)(jax.random.key(7))


@pytest.fixture(scope="module")
def written(state, tmp_path_factory):
    """A folder of checkpoints with one step, 3, written from 8 devices."""
    directory = tmp_path_factory.mktemp("written") / "checkpoints"
    checkpointer = Checkpointer(directory, facts=FACTS)
    checkpointer.save(3, state)
    checkpointer.close()
    return directory


def restore(directory, abstract, shardings, facts=FACTS, step=None):
    checkpointer = Checkpointer(directory, facts=facts)
    try:
        return checkpointer.restore(abstract, shardings, step)
    finally:
        checkpointer.close()


@pytest.mark.parametrize(("devices", "mesh"), [(8, {"fsdp": 4}), (4, {"fsdp": 4}), (4, {"data": 4}), (1, {})])
def test_other_devices_read_the_same_bits(state, written, same, devices, mesh):
    abstract, shardings = place(devices, **mesh)
    restored = restore(written, abstract, shardings)
    same(restored, state)
    assert jax.dtypes.issubdtype(restored.rng.dtype, jax.dtypes.prng_key)
    assert float(jax.random.normal(restored.rng)) == float(jax.random.normal(state.rng))
    for leaf, where in zip(jax.tree.leaves(restored), jax.tree.leaves(shardings), strict=True):
        assert leaf.sharding.is_equivalent_to(where, leaf.ndim)


def test_evaluation_reads_the_average_where_there_is_one(state, written, same):
    checkpointer = Checkpointer(written, facts=FACTS)
    params, variables, step = checkpointer.restore_for_eval(*place(1))
    checkpointer.close()
    assert step == 3
    same(params, state.ema)
    same(variables, state.variables)


def test_keep_and_latest(state, tmp_path):
    checkpointer = Checkpointer(tmp_path, keep=2)
    assert checkpointer.latest is None
    with pytest.raises(CheckpointError, match=r"No checkpoint under .*there: none"):
        checkpointer.restore(*place(8))
    for step in (1, 2, 5):
        checkpointer.save(step, state)
    checkpointer.wait()
    assert checkpointer.latest == 5 and checkpointer.steps == [2, 5]
    # A run that is killed while it writes leaves a folder of another name.
    (tmp_path / "9.orbax-checkpoint-tmp").mkdir()
    # Saving a step again changes nothing: a run that stops right after a checkpoint does that.
    checkpointer.save(5, state)
    checkpointer.close()
    assert {p.name for p in tmp_path.iterdir() if p.name.isdigit()} == {"2", "5"}
    again = Checkpointer(tmp_path, keep=0)
    assert again.latest == 5
    with pytest.raises(CheckpointError, match=r"No checkpoint 3 .*there: 2, 5"):
        again.restore(*place(8), step=3)
    again.close()


def test_another_shape_is_refused(written):
    with pytest.raises(CheckpointError) as error:
        restore(written, *place(rows=32))
    assert "params/model/kernel: (64, 64) in the checkpoint, (32, 64) in this model" in str(error.value)
    assert str(written / "3") in str(error.value)
    assert "Use the config that wrote it" in str(error.value)


def test_a_missing_array_is_named(written):
    abstract, _ = place()
    more = {"model": {**abstract.params["model"], "scale": jax.ShapeDtypeStruct((2,), jnp.float32)}}
    abstract = abstract.replace(params=more)
    with pytest.raises(CheckpointError, match="params/model/scale: not in the checkpoint"):
        restore(written, abstract, sharding.infer(abstract, sharding.make()))


def test_another_tokenizer_is_refused(written):
    with pytest.raises(CheckpointError, match=r"another tokenizer \(abc; this run has xyz\)\. Restore"):
        restore(written, *place(), facts={"tokenizer": "xyz"})


def kinds():
    def truncate(path):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    def flip(path):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0x10
        path.write_bytes(data)

    def blank(path):
        path.write_bytes(bytes(path.stat().st_size))

    return [lambda path: path.unlink(), truncate, flip, blank]


@leftovers
@pytest.mark.parametrize("damage", kinds(), ids=["deleted", "truncated", "flipped", "blank"])
def test_damage_is_never_restored(state, written, same, tmp_path, damage):
    """Whatever file is damaged: the right numbers, or the checkpoint is set aside."""
    files = sorted(p.relative_to(written) for p in written.rglob("*") if p.is_file() and p.stat().st_size)
    refused = set()
    for number, file in enumerate(files):
        copy = tmp_path / str(number)
        shutil.copytree(written, copy)
        damage(copy / file)
        try:
            same(restore(copy, *place()), state)
        except NoCheckpoint:
            assert (copy / "3.aside").is_dir() and not (copy / "3").exists()
            refused.add(file.parts[1])
    gc.collect()  # so that their warnings come here, where they are expected
    assert refused == {"state", "facts", "manifest.json"}


def flip_largest(folder):
    """Change one bit in the largest file, which holds the arrays. -> its name."""
    largest = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    return largest.relative_to(folder).as_posix()


@leftovers
def test_file_and_array_of_a_flipped_bit_are_named(written, tmp_path):
    """A step that was asked for by its number is refused, and stays where it is."""
    shutil.copytree(written, tmp_path / "copy")
    name = flip_largest(tmp_path / "copy" / "3")
    with pytest.raises(CheckpointError) as error:
        restore(tmp_path / "copy", *place(), step=3)
    assert f"{name} has other bytes than were written; arrays: " in str(error.value)
    assert "kernel" in str(error.value) or "mu" in str(error.value)
    assert "Take another one with --step" in str(error.value)
    assert (tmp_path / "copy" / "3").is_dir()


@leftovers
def test_a_checkpoint_without_fingerprints_is_checked_by_its_arrays(state, written, same, tmp_path):
    """Those of earlier versions."""
    shutil.copytree(written, tmp_path / "old")
    (tmp_path / "old" / "3" / "manifest.json").unlink()
    facts = tmp_path / "old" / "3" / "facts" / "metadata"
    facts.write_text(facts.read_text().replace('"sealed": true, ', ""))
    same(restore(tmp_path / "old", *place()), state)
    flip_largest(tmp_path / "old" / "3")
    with pytest.raises(CheckpointError, match=r"the numbers of \S+/(kernel|mu)\S* (and|have) "):
        restore(tmp_path / "old", *place(), step=3)


@pytest.fixture
def three(state, tmp_path):
    """A folder with the steps 1, 2 and 3."""
    checkpointer = Checkpointer(tmp_path / "three", keep=0, facts=FACTS)
    for step in (1, 2, 3):
        checkpointer.save(step, state.replace(step=jnp.int32(step)))
    checkpointer.close()
    return tmp_path / "three"


@leftovers
def test_the_newest_good_one_is_taken(three, state, same):
    """For evaluation, which changes nothing on the disk, and for training, which sets aside what is newer."""
    name = flip_largest(three / "3")
    shutil.rmtree(three / "2" / "state")
    said = []
    checkpointer = Checkpointer(three, facts=FACTS, say=said.append)
    params, _, step = checkpointer.restore_for_eval(*place(), average=False)
    assert step == 1 and len(said) == 2 and all("It is left out." in line for line in said)
    same(params, state.params)
    assert (three / "3").is_dir()
    assert checkpointer.restore_arrays()[2] == 1
    said.clear()
    assert int(checkpointer.restore(*place()).step) == 1
    assert {p.name for p in three.iterdir()} == {"1", "2.aside", "3.aside"}
    assert f"3 is damaged ({name} has other bytes" in said[0] and "It is now 3.aside." in said[0]
    assert "2 is damaged (" in said[1] and "is missing" in said[1]
    # The run writes them again; another bad one of the same step does not overwrite the first.
    checkpointer.save(3, state)
    checkpointer.wait()
    flip_largest(three / "3")
    assert int(checkpointer.restore(*place()).step) == 1
    assert (three / "3.aside.2").is_dir()
    shutil.rmtree(three / "1")
    with pytest.raises(NoCheckpoint):
        checkpointer.restore(*place())
    checkpointer.close()


def test_an_older_step_by_force(three):
    """What came after it is no longer this run's, and would be in its way."""
    said = []
    checkpointer = Checkpointer(three, facts=FACTS, say=said.append)
    assert int(checkpointer.restore(*place(), step=2).step) == 2
    checkpointer.close()
    assert {p.name for p in three.iterdir()} == {"1", "2", "3.aside"}
    assert said == [f"{three / '3'} is newer than step 2, from which training goes on. It is now 3.aside."]


def test_swapped_steps_are_noticed(three):
    (three / "3").rename(three / "x")
    (three / "2").rename(three / "3")
    (three / "x").rename(three / "2")
    said = []
    checkpointer = Checkpointer(three, facts=FACTS, say=said.append)
    assert int(checkpointer.restore(*place()).step) == 1
    checkpointer.close()
    assert "3 is damaged (it is step 2 under another's name)" in said[0]


def test_strays_and_half_written_steps(three):
    """Named, out of the way, and in the way of nothing."""
    for name in ("9", "7.orbax-checkpoint-tmp", "4.deleted", "notes", "0012"):
        (three / name).mkdir()
    (three / "7.orbax-checkpoint-tmp" / "part").write_text("half")
    (three / "5").write_text("a file")
    said = []
    checkpointer = Checkpointer(three, facts=FACTS, say=said.append)
    assert checkpointer.latest == 3
    checkpointer.tidy()
    assert int(checkpointer.restore(*place()).step) == 3
    checkpointer.close()
    assert {p.name for p in three.iterdir()} == {"1", "2", "3", "9.aside", "notes", "0012", "5"}
    assert [line.split(str(three))[1] for line in said] == [
        "/7.orbax-checkpoint-tmp: half-written when an earlier process ended, deleted.",
        "/9 holds no checkpoint. It is now 9.aside.",
    ]


def test_what_is_kept(state, tmp_path):
    """The newest two, every third for ever, and the best; an old one goes only when a newer one was trained on."""
    checkpointer = Checkpointer(tmp_path, keep=2, keep_every=3, best="val/loss", lower=True)
    for step, loss in enumerate((3.0, 1.0, 2.0, float("nan"), None, 1.5, 4.0), start=1):
        checkpointer.save(step, state, {"val/loss": loss} if loss is not None else {})
    assert checkpointer.settle() and checkpointer.steps == [2, 3, 5, 6, 7]
    checkpointer.wait()
    assert checkpointer.steps == [2, 3, 6, 7]
    checkpointer.close()
    assert step_folders.kept([2, 3, 6, 7], 2, 3, 2) == {2: "best", 3: "every 3", 6: "newest", 7: "newest"}


def fail_writing(monkeypatch, error):
    """Have Orbax's background thread fail as it finishes a step."""

    def finalize(self, directory):
        raise error

    monkeypatch.setattr("mmgen_jax.core.step_folders.seal", finalize)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_disk_that_takes_no_more(three, state, same, monkeypatch, number):
    """Told, counted, survived; earlier steps untouched; the next save succeeds where there is room again."""
    said = []
    checkpointer = Checkpointer(three, failures=2, facts=FACTS, say=said.append)
    with monkeypatch.context() as patch:
        fail_writing(patch, OSError(number, os.strerror(number)))
        for step in (4, 5):
            checkpointer.save(step, state)
        assert not checkpointer.settle()
        assert [line.split(": ")[0] for line in said] == [
            "step 4 could not be saved",
            "step 5 could not be saved",
        ]
        assert (
            f"{os.strerror(number)}. The newest checkpoint is of step 3; training goes on (2 of 2" in said[1]
        )
        with pytest.raises(CheckpointError, match=r"The last save under .* failed"):
            checkpointer.wait()
        assert {p.name for p in three.iterdir()} == {"1", "2", "3"}
    sixth = state.replace(step=jnp.int32(6))
    checkpointer.save(6, sixth, wait=True)
    assert checkpointer.latest == 6 and len(said) == 2
    with monkeypatch.context() as patch:
        fail_writing(patch, OSError(number, os.strerror(number)))
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        with pytest.raises(CheckpointError, match=r"3 saves in a row failed under .* Make room"):
            checkpointer.save(7, state, wait=True)
    checkpointer.close()
    same(restore(three, *place()), sixth)


def test_too_little_room_is_seen_before_writing(state, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("shutil.disk_usage", lambda path: types.SimpleNamespace(free=1000))
    checkpointer = Checkpointer(tmp_path, facts=FACTS, say=said.append)
    checkpointer.save(1, state)
    checkpointer.close()
    assert (
        "MB to write and 0.0 MB free on the disk. There is no checkpoint yet; training goes on (1 of 5"
        in said[0]
    )
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_really_full(tmp_path):
    """A small file system in memory of its own, in a namespace where a user may mount one."""
    mount = ["unshare", "-rm", "sh", "-c"]
    inside = f"mount -t tmpfs -o size=256k none {tmp_path} && {sys.executable} {__file__} {tmp_path}"
    try:
        subprocess.run([*mount, f"mount -t tmpfs none {tmp_path}"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs unshare, and leave to mount a tmpfs")
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([*mount, inside], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"step (\d) could not be saved: ", done.stderr) == ["3", "4"], done.stderr
    assert "restored 2, then 5" in done.stdout


def test_the_checksum_sees_every_bit_and_no_sharding(state):
    from mmgen_jax.core.checkpoint import _checksum

    x = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
    whole = int(_checksum(jnp.asarray(x)))
    cut = jax.device_put(x, sharding.make(data=2, fsdp=4).batch)
    assert int(_checksum(cut)) == whole
    for bit in (0, 13, 31):
        bits = x.view(np.uint32).copy()
        bits[5, 3] ^= np.uint32(1 << bit)
        assert int(_checksum(jnp.asarray(bits.view(np.float32)))) != whole
    assert int(_checksum(jnp.asarray(x[::-1]))) != whole


def test_the_first_bad_tensor_of_a_state(state):
    assert first_bad(state) is None
    bad = {"model": {**state.params["model"], "bias": jnp.arange(7.0).at[3].set(jnp.nan)}}
    assert first_bad(state.replace(ema=bad, opt_state=bad)) == "opt_state/model/bias"
    assert first_bad(state.replace(ema=bad, params=bad)) == "params/model/bias"


def test_the_reason_of_a_failed_write_is_told_first():
    """Storage layers put paths before it, and what is told is cut."""
    path = "/runs/" + "long/" * 50
    told = step_folders.why(
        ValueError(f'Error writing "{path}": [OS error 28: No space left on device]\nand more')
    )
    assert told.startswith('No space left on device (Error writing "/runs/long/') and len(told) < 250
    assert step_folders.why(ValueError("short: No space left on device")) == "short: No space left on device"
    assert step_folders.why(OSError(errno.EROFS, "Read-only file system", path)) == "Read-only file system"
    assert step_folders.why(KeyError()) == "KeyError"


if __name__ == "__main__":  # inside the small file system of `test_a_disk_that_is_really_full`
    key = jax.random.key(0)
    noise = State(jnp.int32(0), key, {"model": jax.random.normal(key, (12000,))}, {}, {}, {})
    run = Checkpointer(Path(sys.argv[1]) / "checkpoints", keep=1)
    for step in (1, 2):
        run.save(step, noise.replace(step=jnp.int32(step)))
    filler = Path(sys.argv[1]) / "filler"
    run.wait()
    filler.write_bytes(bytes(max(shutil.disk_usage(sys.argv[1]).free - 60000, 0)))
    run.save(3, noise)  # would fit if nothing were written beside the numbers
    run.settle()
    with filler.open("ab") as file:
        file.truncate(filler.stat().st_size + 60000)
        file.write(bytes(shutil.disk_usage(sys.argv[1]).free // 4096 * 4096))
    run.save(4, noise)
    run.settle()
    places = sharding.infer(jax.eval_shape(lambda: noise), sharding.make())
    first = int(run.restore(jax.eval_shape(lambda: noise), places).step)
    filler.unlink()
    run.save(5, noise.replace(step=jnp.int32(5)), wait=True)
    print(f"restored {first}, then {int(run.restore(jax.eval_shape(lambda: noise), places).step)}")
