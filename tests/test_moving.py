"""A state of any task moves from devices to devices, bit for bit: 8 -> 4 -> 1 -> 8; data parallel <-> fsdp <-> tensor."""

import tarfile

import jax
import pytest
from test_golden_checkpoints import GOLDEN, SMALL

from mmgen_jax.core.checkpoint import Checkpointer
from mmgen_jax.core.config import load_json
from mmgen_jax.experiment import Experiment

TENSOR = {"rules": ((".*", (None, "tensor")),), "min_mb": 0.0}
FSDP = {"rules": ((".*", "fsdp"),), "min_mb": 0.0}
# (devices, mesh, whether arrays are cut), in turn; each restores what the one before has saved.
WAY = (
    (8, {"data": 8}, False),
    (4, {"data": 1, "fsdp": 4, **FSDP}, True),
    (1, {"data": 1}, False),
    (8, {"data": 2, "tensor": 4, **TENSOR}, True),
    (8, {"data": 2, "fsdp": 4, **FSDP}, True),
)


@pytest.mark.parametrize("name", SMALL)
def test_a_state_moves(name, tmp_path, same, on_devices):
    with tarfile.open(GOLDEN / f"{name}.tar.xz") as tar:
        tar.extractall(tmp_path, filter="data")
    config = load_json(tmp_path / "config.json")
    first, folder = None, tmp_path / "checkpoints"
    for number, (count, mesh, cut) in enumerate(WAY):
        on_devices(count)
        config.mesh = mesh
        experiment = Experiment(config, tmp_path, finished=True)
        checkpointer = Checkpointer(folder)
        state = checkpointer.restore(experiment.abstract, experiment.shardings)
        checkpointer.close()
        arrays = jax.tree.leaves((state.params, state.opt_state))
        assert {len(x.sharding.device_set) for x in arrays} == {count}
        assert any(x.addressable_shards[0].data.size < x.size for x in arrays) == cut
        first = state if first is None else first
        same(state, first)
        folder = tmp_path / f"moved_{number}"
        checkpointer = Checkpointer(folder)
        checkpointer.save(int(state.step), state, wait=True)
        checkpointer.close()
