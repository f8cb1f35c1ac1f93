"""The same training on any devices: jit equals pmap, one equals eight, fsdp and tensor change nothing."""

import jax
import numpy as np
import pytest

from mmgen_jax.core import parallel, sharding
from mmgen_jax.core.checkpoint import Checkpointer
from mmgen_jax.experiment import Experiment

TENSOR_RULES = (
    ("decoder/embed", (None, "tensor")),
    ("decoder/(out_kernel|context_kernel|word_kernel)", (None, "tensor")),
    ("decoder/deep_.*kernel", ("tensor", None)),
    (".*", "fsdp"),
)


@pytest.fixture(scope="module")
def config(load_config):
    """A tower with batch statistics, whose mean must be over all devices in either mode.

    Plain descent: Adam would blow rounding up to the size of a step.
    """
    config = load_config()
    tower = {"name": "resnet", "stages": (1, 1), "block": "basic", "stem": "small", "width": 8}
    config.task.model = {**config.task.model.to_dict(), "encoder": tower, "grid": 4}
    config.optimizer = {
        "name": "sgd",
        "learning_rate": 0.1,
        "schedule": "constant",
        "ema": 0.9,
        "clip_norm": 1.0,
    }
    return config


@pytest.fixture(scope="module")
def dual_encoder(load_config):
    """Towers with and without batch statistics; a loss that sees all devices' rows, tile by tile."""
    config = load_config("dual_encoder_scenes.py:tiny")
    config.optimizer = {"name": "sgd", "learning_rate": 0.1, "schedule": "constant", "clip_norm": 1.0}
    return config


def two_steps(config, **mesh):
    """-> (state, [metrics of each step]). One image of a batch is masked; captions differ in length."""
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
        history.append(jax.device_get(metrics))
    return state, history


@pytest.fixture(scope="module")
def on_eight(config):
    return two_steps(config)


def check(same, left, right):
    same(left[0], right[0], rtol=0, atol=1e-5)
    same(left[1], right[1], rtol=1e-5, atol=1e-5)


def test_training_moves_everything(config, on_eight):
    """Else the comparisons below would compare nothing."""
    first, last = Experiment(config).init(), on_eight[0]
    assert last.variables["model"]["batch_stats"]
    for before, after in ((first.params, last.params), (first.variables, last.variables)):
        pairs = zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True)
        for (path, old), new in pairs:
            assert not np.array_equal(old, new), jax.tree_util.keystr(path)


def test_pmap_equals_jit(config, on_eight, same):
    check(same, two_steps(config, mode="pmap"), on_eight)


def test_one_device_equals_eight(config, on_eight, same, on_devices):
    on_devices(1)
    check(same, two_steps(config), on_eight)


def test_fsdp_equals_data(config, on_eight, same):
    state, history = two_steps(config, data=2, fsdp=4, min_mb=0.0)
    kernel = state.params["model"]["decoder"]["word_kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 4
    check(same, (state, history), on_eight)


def test_tensor_equals_data(config, on_eight, same):
    state, history = two_steps(config, data=4, tensor=2, min_mb=0.0, rules=TENSOR_RULES)
    embed = state.params["model"]["decoder"]["embed"]
    assert embed.addressable_shards[0].data.shape == (embed.shape[0], embed.shape[1] // 2)
    check(same, (state, history), on_eight)


def test_a_run_moves_to_other_devices(config, on_eight, same, tmp_path, on_devices):
    """Saved by eight, restored by one and by four with fsdp: the same bits."""
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(2, on_eight[0])
    checkpointer.wait()
    for count, mesh in ((1, {}), (4, {"fsdp": 4, "min_mb": 0.0})):
        on_devices(count)
        moved = config.copy_and_resolve_references()
        moved.mesh = mesh
        experiment = Experiment(moved)
        same(checkpointer.restore(experiment.abstract, experiment.shardings), on_eight[0])
    checkpointer.close()


def test_accumulated_slices_equal_the_whole_batch(config, same):
    """Also with captions of unequal length and a masked image: slices are weighted by their words.

    A tower without batch statistics: those are of a slice.
    """
    config = config.copy_and_resolve_references()
    tower = {"name": "vit", "patch": 8, "width": 16, "depth": 1, "heads": 2, "image_size": 32}
    config.task.model = {**config.task.model.to_dict(), "encoder": tower, "grid": 0}
    whole = two_steps(config)
    config.optimizer.accumulate = 4
    check(same, two_steps(config), whole)


def test_a_batch_that_does_not_divide_into_slices(config):
    config = config.copy_and_resolve_references()
    config.optimizer.accumulate = 3
    with pytest.raises(ValueError, match=r"batch of 8 does not divide into optimizer.accumulate=3 slices"):
        two_steps(config)


LOSSES = {
    "plain": {"name": "info_nce", "equal": "positive"},
    "blocks": {"name": "info_nce", "equal": "positive", "block_size": 5},
    "ring": {"name": "info_nce", "equal": "positive", "block_size": 5, "exchange": "ring"},
    "sigmoid_ring": {"name": "sigmoid", "block_size": 5, "exchange": "ring"},
    "triplet": {"name": "triplet", "negatives": "hardest"},
}


def dual_steps(config, loss, **mesh):
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.task.loss = LOSSES[loss]
        config.task.model.bias = -1.0 if loss.startswith("sigmoid") else 0.0
    state, history = two_steps(config, **mesh)
    # A device judges the spread of its own rows, in pmap mode; everything else is the whole batch's.
    watched = ("uniformity_image", "uniformity_text")
    return state, [{k: v for k, v in metrics.items() if k not in watched} for metrics in history]


@pytest.mark.parametrize("loss", ["ring", "sigmoid_ring", "triplet"])
def test_contrastive_on_any_devices(dual_encoder, loss, same, on_devices):
    """1, 2, 4 and 8 devices, jit and pmap: a batch's negatives are those of all devices."""
    on_devices(1)
    one = dual_steps(dual_encoder, loss)
    for count, mode in ((2, "jit"), (4, "pmap"), (8, "jit"), (8, "pmap")):
        on_devices(count)
        several = dual_steps(dual_encoder, loss, mode=mode)
        same(several[0], one[0], rtol=0, atol=2e-5)
        losses = [[float(m["loss"].compute()) for m in history] for history in (several[1], one[1])]
        np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.fixture(scope="module")
def plain(dual_encoder):
    return dual_steps(dual_encoder, "plain")


@pytest.mark.parametrize("loss", ["blocks", "ring"])
@pytest.mark.parametrize(
    "mesh", [{"mode": "pmap"}, {"data": 2, "fsdp": 4, "min_mb": 0.0}], ids=["pmap", "fsdp"]
)
def test_blocks_and_rings_equal_the_plain_loss(dual_encoder, plain, loss, mesh, same):
    tiled = dual_steps(dual_encoder, loss, **mesh)
    same(tiled[0], plain[0], rtol=0, atol=2e-5)


def test_slices_on_several_devices(dual_encoder, same, on_devices):
    """Towers without batch statistics: those are of a slice."""
    on_devices(4)
    config = dual_encoder.copy_and_resolve_references()
    tower = {"name": "vit", "patch": 8, "width": 16, "depth": 1, "heads": 2, "image_size": 32, "pool": "mean"}
    with config.unlocked():
        config.task.model.image = tower
    whole = dual_steps(config, "ring")
    config.task.slices = 2
    same(dual_steps(config, "ring")[0], whole[0], rtol=0, atol=2e-5)


@pytest.fixture(scope="module")
def gan(load_config):
    """Both networks with batch statistics; a loss that compares with the mean of the batch; wrong texts from other devices."""
    config = load_config("dcgan_scenes.py:tiny")
    with config.unlocked():
        config.optimizer = {
            "name": "sgd",
            "learning_rate": 0.02,
            "schedule": "constant",
            "networks": {"generator": {"ema": 0.9, "learning_rate": 0.01}},
        }
        config.task.discriminator = {"name": "dcgan", "width": 8, "unconditional": True}
        config.task.loss = {"name": "relativistic", "matching": 1.0}
        config.task.generator = {"name": "dcgan", "image_size": 32, "width": 8}
        config.task.augment = ()
    return config


@pytest.fixture(scope="module")
def gan_on_eight(gan):
    return two_steps(gan)


def test_a_gan_on_any_devices(gan, gan_on_eight, same, on_devices):
    """1, 2, 4 and 8 devices, jit and pmap: the same noise for an example, batch statistics and mismatches over all."""
    on_devices(1)
    one = two_steps(gan)
    # In pmap mode a device looks at its own samples of its own first caption, and at the spread of its own logits.
    watched = ("sample_distance", "real_distance", "logit_spread")
    for count, mode in ((2, "jit"), (4, "pmap"), (8, "jit"), (8, "pmap")):
        on_devices(count)
        several = gan_on_eight if (count, mode) == (8, "jit") else two_steps(gan, mode=mode)
        same(several[0], one[0], rtol=0, atol=2e-5)
        for left, right in zip(several[1], one[1], strict=True):
            for name in left.keys() - set(watched):
                np.testing.assert_allclose(
                    left[name].compute(),
                    right[name].compute(),
                    rtol=2e-4,
                    atol=1e-6,
                    err_msg=f"{name}, {count} {mode}",
                )


def test_a_gan_with_fsdp(gan, gan_on_eight, same):
    same(two_steps(gan, data=2, fsdp=4, min_mb=0.0)[0], gan_on_eight[0], rtol=0, atol=2e-5)


@pytest.fixture(scope="module")
def answering(load_config):
    """Towers with and without batch statistics, a loss of one's own, and gradients that the whole batch's confidence slows."""
    config = load_config("question_answering_scenes.py:tiny")
    with config.unlocked():
        config.optimizer = {"name": "sgd", "learning_rate": 0.1, "schedule": "constant", "clip_norm": 1.0}
        config.task.own_loss = {"image": 0.5}
        config.task.modulate = {"alpha": 0.5, "noise": False}
    return config


def test_question_answering_on_any_devices(answering, same, on_devices):
    on_devices(1)
    one = two_steps(answering)
    for count, mode in ((8, "jit"), (4, "pmap")):
        on_devices(count)
        several = two_steps(answering, mode=mode)
        same(several[0], one[0], rtol=0, atol=2e-5)
        same(several[1], one[1], rtol=2e-5, atol=2e-5)


def test_noise_is_the_same_on_all_devices(answering, on_devices):
    """Else each would go on with parameters of its own."""
    on_devices(4)
    config = answering.copy_and_resolve_references()
    config.task.modulate.noise = True
    kernel = two_steps(config, mode="pmap")[0].params["model"]["towers_question"]["embed"]
    first, *others = [np.asarray(shard.data) for shard in kernel.addressable_shards]
    assert len(others) == 3 and all(np.array_equal(first, other) for other in others)
