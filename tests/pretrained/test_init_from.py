"""`init_from` in a config: a run starts from another model, says what it took, and a resumed one does not read it again."""

import jax
import numpy as np
import pytest

from mmgen_jax.experiment import Experiment


@pytest.fixture(scope="module")
def dual_run(load_config, tmp_path_factory):
    """(workdir, state) of a checkpoint, untrained; its average is another than its parameters."""
    workdir = tmp_path_factory.mktemp("dual")
    experiment = Experiment(load_config("dual_encoder_scenes.py:tiny"), workdir)
    experiment.settle()
    state = experiment.init()
    state = state.replace(ema=jax.tree.map(lambda x: x + 1.0, state.ema))
    checkpointer = experiment.checkpointer()
    checkpointer.save(0, state)
    checkpointer.close()
    return workdir, state


def start(config, part, path):
    """-> (state, report) of an experiment whose model, or a part of it, starts from `path`."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        where = config.task.model[part] if part else config.task.model
        where.init_from = str(path)
    experiment = Experiment(config)
    state = experiment.init()
    assert jax.tree.map(lambda x: x.sharding, state.params) == experiment.shardings.params
    return state, "\n".join(map(str, experiment.reports))


def test_a_tower_starts_the_captioner(load_config, dual_run, same):
    workdir, dual = dual_run
    config = load_config("captioner_scenes.py:tiny")
    tower = load_config("dual_encoder_scenes.py:tiny").task.model.image.to_dict()
    config.task.model = {**config.task.model.to_dict(), "encoder": {**tower, "pool": "none"}}
    fresh = Experiment(config).init()
    state, report = start(config, "encoder", workdir)
    same(state.params["model"]["encoder"], dual.ema["model"]["image"])
    same(state.params["model"]["decoder"], fresh.params["model"]["decoder"])
    assert report.startswith(f"model/encoder from {workdir} (step 0, model/image)")


def test_a_whole_model_and_its_average(load_config, dual_run, same):
    workdir, dual = dual_run
    config = load_config("dual_encoder_scenes.py:tiny", seed=1)
    state, _ = start(config, None, workdir)
    same(state.params, dual.ema)
    same(state.ema, dual.ema)


def test_without_it_nothing_is_read(load_config):
    experiment = Experiment(load_config("dual_encoder_scenes.py:tiny"))
    experiment.init()
    assert experiment.reports == []


def test_another_architecture_is_refused(load_config, dual_run):
    """Which arrays, and their shapes."""
    config = load_config("dual_encoder_scenes.py:tiny")
    config.task.model.image.widths = (6, 10)
    with pytest.raises(ValueError, match=r"(?s)does not fit this model.*conv1/kernel.*8.*6"):
        start(config, "image", dual_run[0])


def test_a_path_that_is_not_there(load_config):
    with pytest.raises(FileNotFoundError, match="No weights at /nowhere"):
        start(load_config("dual_encoder_scenes.py:tiny"), "image", "/nowhere")


def test_safetensors_start_a_tower(load_config, tmp_path, same):
    """Written by ourselves in Hugging Face's names, read into a stack that is scanned."""
    from mmgen_jax.pretrained.write import write

    config = load_config("clip_vit_b32.py:tiny")
    config.data.source = {"name": "scenes", "size": 32, "length": 100}
    experiment = Experiment(config)
    state = experiment.init()
    trained = jax.tree.map(lambda x: np.asarray(x) + 0.5, state.params["model"])
    write(tmp_path / "vision", experiment.task.model, trained, {}, part="image")
    state, report = start(config, "image", tmp_path / "vision")
    same(state.params["model"]["image"], trained["image"])
    assert "arrays taken" in report
