"""Checkpoints: any devices read what others wrote, bit for bit; what is damaged or unfit is refused."""

import gc
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmgen_jax.core import sharding
from mmgen_jax.core.checkpoint import Checkpointer, CheckpointError
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
    with pytest.raises(CheckpointError, match=r"No checkpoint .*there: none"):
        checkpointer.restore(*place(8))
    for step in (1, 2, 5):
        checkpointer.save(step, state)
    checkpointer.wait()
    assert checkpointer.latest == 5
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
    """Whatever file is damaged: the right numbers, or an error that names the checkpoint and the remedy."""
    files = sorted(p.relative_to(written) for p in written.rglob("*") if p.is_file() and p.stat().st_size)
    refused = set()
    for number, file in enumerate(files):
        copy = tmp_path / str(number)
        shutil.copytree(written, copy)
        damage(copy / file)
        try:
            same(restore(copy, *place()), state)
        except CheckpointError as error:
            assert str(copy / "3") in str(error), error
            assert "Delete it to go on" in str(error) or "Restore the workdir's" in str(error), error
            refused.add(file.parts[1])
    gc.collect()  # so that their warnings come here, where they are expected
    assert "state" in refused


def test_a_flipped_bit_in_an_array_is_named(state, written, tmp_path):
    """The largest file holds the arrays; the storage below does not notice a changed bit in it."""
    shutil.copytree(written, tmp_path / "copy")
    largest = max((p for p in (tmp_path / "copy").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"the numbers of \S+/(kernel|mu) have changed on disk"):
        restore(tmp_path / "copy", *place())


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
