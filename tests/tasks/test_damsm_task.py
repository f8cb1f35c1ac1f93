"""DAMSM's objective: it learns a batch, what is not there changes nothing, any devices agree, its towers start other models."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmgen_jax.core import metrics as metrics_lib
from mmgen_jax.core import parallel, sharding
from mmgen_jax.experiment import Experiment
from mmgen_jax.losses import damsm as losses
from mmgen_jax.models import damsm
from mmgen_jax.pretrained import load as pretrained

CONFIG = "damsm_scenes.py:tiny"


@pytest.fixture(scope="module")
def built(load_config):
    """-> (experiment, state, a batch): two captions an image, plain descent."""
    config = load_config(CONFIG)
    config.data.transforms = "text(24, per_image=2)"
    config.optimizer = {"name": "sgd", "learning_rate": 0.1, "schedule": "constant", "clip_norm": 1.0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "make", functools.partial(sharding.make, devices=jax.devices()[:1]))
        experiment = Experiment(config)
    return experiment, experiment.init(), next(experiment.pipeline.train(0))


@pytest.fixture(scope="module")
def gradients(built):
    """gradients(batch) -> (gradients, metrics, as numbers)."""
    experiment, state, _ = built
    run = jax.jit(experiment.task.gradients)

    def of(batch):
        grads, metrics, _ = run(state.params, state.variables, batch, jax.random.key(1), jnp.int32(0))
        return grads, metrics_lib.compute(metrics)

    return of


def test_learns_a_batch(built):
    """The loss of one batch falls from the first step on, and each image then finds its text, in sentences and words."""
    experiment, _, batch = built
    state, step = experiment.init(), jax.jit(experiment.task.train_step)
    history = []
    for _ in range(30):
        state, metrics = step(state, batch)
        history.append(metrics_lib.compute(metrics))
    assert history[2]["loss"] < history[1]["loss"] < history[0]["loss"]
    assert all(history[-1][name] < 0.5 * history[0][name] for name in losses.Terms._fields)
    total = sum(history[0][name] for name in losses.Terms._fields)
    np.testing.assert_allclose(history[0]["loss"], total, rtol=1e-5)
    np.testing.assert_allclose(history[0]["chance"], 4 * np.log(16), rtol=1e-5)


def test_predictions(built):
    experiment, state, batch = built
    found = {}
    for name, predict in experiment.task.predict.items():
        found[name] = jax.jit(predict)(state.params, state.variables, batch, jax.random.key(0))
    both = found["embed"]
    assert both["image"].shape == (8, 32) and both["text"].shape == (8, 2, 32)
    for x in both.values():
        np.testing.assert_allclose(np.linalg.norm(x, axis=-1), 1, atol=1e-5)
    for name, x in {**found["embed_image"], **found["embed_text"]}.items():
        np.testing.assert_allclose(x, both[name], rtol=1e-5, atol=1e-6)
    assert found["features"]["features"].shape == (8, 8 * 8 * 16)


def test_what_is_not_there_changes_nothing(gradients, built):
    """What a masked image and a caption that fills a row up look like; the batch statistics see masked images too."""
    batch = built[2]
    batch = {**batch, "mask": np.float32([1, 0, *[1] * 6]), "text_mask": batch["text_mask"].copy()}
    batch["text_mask"][3:, 1] = 0
    one = gradients(batch)
    tokens = batch["tokens"].copy()
    tokens[3:, 1], tokens[1] = tokens[0, 0], tokens[2]
    other = gradients({**batch, "tokens": tokens})
    for a, b in zip(jax.tree.leaves(one[0]), jax.tree.leaves(other[0]), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(np.abs(b).max(), 1e-3))
    np.testing.assert_allclose(one[1]["loss"], other[1]["loss"], rtol=1e-5)
    np.testing.assert_allclose(one[1]["chance"], 4 * np.log(4 + 5), rtol=1e-5)


def test_captions_of_one_image_and_equal_captions_are_no_negatives(gradients, built):
    """The task hands the loss what it needs to know: here against the loss over explicit pairs."""
    experiment, state, batch = built
    batch = {**batch, "tokens": batch["tokens"].copy()}
    batch["tokens"][5, 1] = batch["tokens"][0, 0]
    (image, text), _ = experiment.task.model.apply(
        {"params": state.params["model"], **state.variables["model"]},
        batch["image"],
        batch["tokens"],
        train=True,
        mutable=["batch_stats"],
    )
    image, text_id = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), image), np.arange(16, dtype=np.int32)
    text_id[11] = 0
    expected = losses.damsm(
        *image,
        text.words,
        text.mask,
        text.sentence,
        image_id=jnp.repeat(jnp.arange(8), 2),
        text_id=jnp.asarray(text_id),
    )
    np.testing.assert_allclose(gradients(batch)[1]["loss"], np.mean(expected), rtol=1e-5)


def two_steps(config, **mesh):
    config = config.copy_and_resolve_references()
    config.mesh = mesh
    experiment = Experiment(config)
    state = experiment.init()
    step = parallel.compile_step(experiment.train_step, experiment.layout, experiment.shardings)
    batches = experiment.pipeline.train(0)
    history = []
    for number in range(2):
        batch = next(batches)
        batch["mask"] = np.where(np.arange(8) == number, 0, batch["mask"]).astype(np.float32)
        state, metrics = step(state, sharding.put_batch(batch, experiment.layout))
        assert metrics.pop("notice")["ok"]
        history.append(metrics_lib.compute(jax.device_get(metrics)))
    return state, history


def test_any_devices_give_the_same(load_config, on_devices, same):
    """1 and 8 devices, jit and pmap: a batch's negatives are those of all devices."""
    config = load_config(CONFIG)
    config.optimizer = {"name": "sgd", "learning_rate": 0.1, "schedule": "constant", "clip_norm": 1.0}
    on_devices(1)
    one = two_steps(config)
    for mode in ("jit", "pmap"):
        on_devices(8)
        eight = two_steps(config, mode=mode)
        same(eight[0], one[0], rtol=0, atol=2e-5)
        for a, b in zip(eight[1], one[1], strict=True):
            assert a == pytest.approx(b, rel=1e-5)


@pytest.fixture(scope="module")
def run(load_config, tmp_path_factory):
    """(workdir, state) of a checkpoint, untrained; its average is another than its parameters."""
    workdir = tmp_path_factory.mktemp("damsm")
    experiment = Experiment(load_config(CONFIG), workdir)
    experiment.settle()
    state = experiment.init()
    state = state.replace(ema=jax.tree.map(lambda x: x + 1.0, state.ema))
    checkpointer = experiment.checkpointer()
    checkpointer.save(0, state)
    checkpointer.close()
    return workdir, state


def test_a_run_starts_the_parts_of_a_gan(load_config, run, same):
    """`load_all` as a GAN's task asks for it: its text tower, and the matcher that stands frozen in its State."""
    workdir, trained = run
    model = Experiment(load_config(CONFIG, seed=1)).init()
    params = {"text": model.params["model"]["text"], "matcher": model.params["model"]}
    variables = {"text": {}, "matcher": model.variables["model"]}
    init_from = {("text",): workdir, ("matcher",): workdir}
    params, variables, reports = pretrained.load_all(params, variables, init_from)
    same(params["text"], trained.ema["model"]["text"])
    same(params["matcher"], trained.ema["model"])
    same(variables["matcher"], trained.variables["model"])
    assert "model/text)" in str(reports[0]) and "model)" in str(reports[1])
    assert not any(report.missing or report.left or report.mismatched for report in (reports[1],))


def test_a_run_starts_another(load_config, run, same):
    """Whole, or one tower; the tokenizer is the same."""
    config = load_config(CONFIG, seed=1)
    with config.unlocked():
        config.task.model.text.init_from = str(run[0])
    experiment = Experiment(config)
    state = experiment.init()
    same(state.params["model"]["text"], run[1].ema["model"]["text"])
    assert len(experiment.reports) == 1 and not experiment.reports[0].notes
    # The matcher of that state judges as that run's would.
    variables = {"params": state.params["model"], **state.variables["model"]}
    batch = next(experiment.pipeline.train(0))
    floats = jnp.asarray(batch["image"], jnp.float32) / 127.5 - 1
    text = experiment.task.model.apply(variables, batch["tokens"][:, 0], method="embed_text")
    found = damsm.match(experiment.task.model, variables, floats, text)
    assert found.shape == (8,) and np.isfinite(found).all()


def test_a_batch_of_one_is_refused(load_config, on_devices):
    on_devices(1)
    config = load_config(CONFIG)
    config.data.batch_size = 1
    with pytest.raises(ValueError, match="batch of one has no negatives"):
        Experiment(config)


def test_a_loss_that_does_not_move_is_named_once(built):
    task = built[0].task
    report = {"train/loss": 11.0, "train/chance": 4 * np.log(16)}
    assert task.advise(50, report) is None
    assert task.advise(100, report).startswith("stuck: the loss 11.000 is 4 log(N) = 11.090")
    assert task.advise(150, report) is None
    assert task.advise(200, {**report, "train/loss": 5.0}) is None
