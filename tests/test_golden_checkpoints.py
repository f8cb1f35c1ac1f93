"""Checkpoints of earlier versions stay readable: one small run of each task is kept here as it was written.

PYTHONPATH=. python tests/test_golden_checkpoints.py FOLDER    writes such runs anew, for a task that is not there yet
"""

import json
import runpy
import sys
import tarfile
from pathlib import Path

import jax
import ml_collections
import numpy as np
import pytest

from mmgen_jax.core.config import load_json
from mmgen_jax.experiment import Experiment, load

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"
BROKEN = (
    "A checkpoint that an earlier version wrote is not read as it was. Let the new code read the old form (a renamed or new "
    "array, another optimizer state); never write the golden checkpoint anew for that."
)

# As small as each task allows: these files live in the repository for ever.
SMALL = {
    "captioner_scenes": {
        "task.model.encoder.widths": (4, 4),
        "task.model.decoder.features": 8,
        "task.model.decoder.embed_features": 8,
        "task.model.decoder.attention_features": 8,
        "optimizer.ema": 0.9,
    },
    "dual_encoder_scenes": {
        "task.model.image.widths": (4, 4),
        "task.model.text.features": 4,
        "task.model.text.embed_features": 4,
        "task.model.embed_dim": 8,
    },
    "damsm_scenes": {
        "task.model.image.widths": (4, 4),
        "task.model.text.features": 4,
        "task.model.text.embed_features": 4,
        "task.model.embed_dim": 8,
    },
    "classifier_scenes": {"task.model.tower.widths": (4, 4), "task.model.tower.pool": "mean"},
    "dcgan_scenes": {
        "task.text.features": 4,
        "task.text.embed_features": 4,
        "task.generator.width": 2,
        "task.generator.z_features": 8,
        "task.generator.text_features": 8,
        "task.discriminator.width": 2,
        "task.discriminator.text_features": 8,
    },
}


def small(name: str) -> ml_collections.ConfigDict:
    """The config of a golden run: two steps on one device."""
    config = runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"]("tiny")
    values = {key: value for key, value in config.to_dict().items() if key != "judges"}
    config = ml_collections.ConfigDict({**values, "evals": {}, "steps": 2})
    config.checkpoint = {"every": 2, "keep": 1}
    for key, value in SMALL[name].items():
        part, *rest = key.split(".")
        node = config[part]
        for step in rest[:-1]:
            node = node[step]
        node[rest[-1] if rest else part] = value
    return config


def sums(state) -> dict[str, float]:
    """{field of the State: sum of its absolute numbers}, by plain numpy."""
    numbers = {}
    for field in ("params", "variables", "opt_state", "ema"):
        leaves = jax.tree.leaves(getattr(state, field))
        numbers[field] = sum(float(np.abs(np.asarray(x, np.float64)).sum()) for x in leaves)
    return {**numbers, "step": int(state.step), "rng": jax.random.key_data(state.rng).tolist()}


@pytest.mark.parametrize("name", SMALL)
def test_an_old_checkpoint_is_read(name, tmp_path):
    """Whole, as for training, and the part that evaluation needs."""
    with tarfile.open(GOLDEN / f"{name}.tar.xz") as tar:
        tar.extractall(tmp_path, filter="data")
    written = json.loads((tmp_path / "sums.json").read_text(encoding="utf-8"))
    experiment = Experiment(load_json(tmp_path / "config.json"), tmp_path, finished=True)
    checkpointer = experiment.checkpointer()
    found = sums(checkpointer.restore(experiment.abstract, experiment.shardings))
    checkpointer.close()
    assert found.keys() == written.keys()
    for key, value in written.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-12, err_msg=f"{key}. {BROKEN}")
    _, params, variables, step = load(tmp_path)
    assert step == 2
    average = {**experiment.abstract.params, **experiment.abstract.ema}
    assert jax.tree.structure(params) == jax.tree.structure(average), BROKEN
    assert jax.tree.structure(variables) == jax.tree.structure(experiment.abstract.variables), BROKEN


if __name__ == "__main__":
    from mmgen_jax.train import train

    for name in SMALL.keys() - {path.name.partition(".")[0] for path in GOLDEN.iterdir()}:
        workdir = Path(sys.argv[1]) / name
        state = train(small(name), workdir)
        (workdir / "sums.json").write_text(json.dumps(sums(state)) + "\n", encoding="utf-8")
        with tarfile.open(f"{workdir}.tar.xz", "w:xz") as tar:
            tar.add(workdir, arcname=".")
