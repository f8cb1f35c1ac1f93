"""The PyTorch DCGAN of the benchmark computes what ours does, and the benchmark's rows agree with each other."""

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmgen_jax.core.state import State

ROOT = Path(__file__).resolve().parents[1]

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def modules():
    """suite: scripts/benchmarks/text_to_image.py, peers: scripts/peers/text_to_image_torch.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "scripts")
        yield SimpleNamespace(
            suite=importlib.import_module("benchmarks.text_to_image"),
            peers=importlib.import_module("peers.text_to_image_torch"),
        )


@pytest.fixture(scope="module")
def spec(modules, tmp_path_factory):
    """The tiny sizes with their inputs made."""
    path = tmp_path_factory.mktemp("text_to_image") / "inputs.npz"
    spec = {"device": "cpu", "threads": 1, "quick": True, "dtype": "float32", "batch": None}
    spec |= {"sizes": modules.suite.QUICK, "rows": list(modules.suite.ROWS), "inputs": str(path)}
    modules.suite.make_inputs(spec)
    return spec


def test_reference_counts(modules):
    """At 64 pixels both have the parameters of the paper's networks."""
    sizes = {"width": 64, "image_size": 64}
    with torch.device("meta"):
        networks = modules.peers.Generator(z_features=100, **sizes), modules.peers.Discriminator(**sizes)
    counts = [sum(p.numel() for p in network.parameters()) for network in networks]
    assert counts == [3_576_704, 2_765_568]


@pytest.mark.parametrize("variant", ["tutorial", "eager"])
def test_one_iteration_is_ours(modules, spec, variant):
    """From the same weights, on the same images and noise: the same losses and the same updated parameters."""
    suite, peers = modules.suite, modules.peers
    data = np.load(spec["inputs"])
    task = suite.make_task(spec["sizes"], "float32", jnp.asarray(data["z"]))
    params, variables = suite.our_networks(data)
    optimizers = {name: task.optimizer.transform.init(params[name]) for name in params}
    state = State(jnp.int32(0), jax.random.key(0), params, variables, optimizers, {})
    after, metrics = jax.jit(task.train_step)(state, suite.our_batch(data))

    networks = suite.their_networks(spec, data)
    step = peers.make_train_step(*networks, variant)
    losses = step(peers.pixels(data["image"]), torch.tensor(data["z"]))
    for loss, name in zip(losses, ("loss", "generator_loss"), strict=True):
        assert float(loss) == pytest.approx(float(metrics[name].compute()), rel=1e-4)
    for network, name in zip(networks, ("generator", "discriminator"), strict=True):
        before = {key: array for key, _, array in peers.weights(network, params[name])}
        compared = list(peers.weights(network, after.params[name]))
        assert len(compared) == len(list(network.parameters()))
        for key, theirs, ours in compared:
            np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-5, err_msg=key)
            assert np.abs(ours - before[key]).max() > 1e-4, f"{key} has not moved"


def test_load_refuses_other_weights(modules, spec):
    data = np.load(spec["inputs"])
    network = modules.peers.Discriminator(width=8, image_size=16)
    params, variables = modules.suite.our_networks(data)
    stats = variables["discriminator"]["batch_stats"]
    with pytest.raises(ValueError, match=r"'down1\.weight'.* are missing"):
        modules.peers.load(network, {"params": {"trunk": {}}, "batch_stats": stats})
    stats = {**stats, "norm9": {"mean": np.zeros(16)}}
    with pytest.raises(ValueError, match=r"'norm9\.running_mean'.* unexpected"):
        modules.peers.load(network, {"params": params["discriminator"], "batch_stats": stats})


def test_unneeded_gradients_of_the_tutorial(modules):
    """A weight gradient for each of the discriminator's layers more, which has the FLOPs of a forward pass."""
    peers, sizes = modules.peers, {"width": 8, "image_size": 16}
    networks = peers.Generator(z_features=10, **sizes), peers.Discriminator(**sizes)
    from torch.utils.flop_counter import FlopCounterMode

    def forward(network, x):
        with FlopCounterMode(display=False) as counter:
            network(x)
        return counter.get_total_flops()

    z = torch.zeros(2, 10)
    draw, judge = forward(networks[0], z), forward(networks[1], torch.zeros(2, 3, 16, 16))
    # Nobody needs the gradient of the discriminator's inputs but the generator, nor that of the noise.
    first = 2 * 2 * 8 * 8 * 8 * 3 * 16
    noise = 2 * 2 * 10 * 16 * 16
    needed = 3 * draw - noise + 8 * judge - 2 * first
    assert peers.unneeded(*networks, "tutorial") == pytest.approx(judge / needed, rel=1e-6)
    assert peers.unneeded(*networks, "eager") == 0


def test_our_step_has_no_unneeded_gradients(modules, spec):
    """But for the rest of a step, as Adam's update, which is small where images are many."""
    suite, sizes = modules.suite, {**modules.suite.QUICK, "image": 32}
    task = suite.make_task(sizes, "float32", jnp.zeros((64, 10)))
    batch = suite.our_batch({"image": np.zeros((64, 32, 32, 3), np.uint8)})
    state = jax.jit(task.init)(jax.random.key(0), batch)
    total = jax.jit(task.train_step).lower(state, batch).compile().cost_analysis()["flops"]
    facts = suite.count_flops(task, state, batch, total)
    assert abs(facts["unneeded"]) < 0.02
    assert 0.05 < facts["tutorial_form"] < 0.15


@pytest.mark.parametrize("row", ["train", "sample", "fid"])
def test_rows_agree(modules, spec, row):
    suite = modules.suite
    facts = {}
    for peer in ("ours", *suite.ROWS[row].peers):
        assert suite.missing({**spec, "row": row, "peer": peer}) is None
        if peer != "compiled":
            facts[peer], measure = suite.peer({**spec, "row": row, "peer": peer})
            assert facts[peer]["batch"] > 0
            assert min(measure(2)) > 0
    for peer, found in facts.items():
        if row == "train":
            assert found["loss"] == pytest.approx(facts["ours"]["loss"], rel=1e-4), peer
        else:
            apart = suite.compare(facts["ours"]["outputs"], {peer: found["outputs"]})["apart"][peer]
            # A value of uint8 may be rounded to its neighbour.
            assert all(value < (0.01 if row == "sample" else 1e-9) for value in apart.values()), peer


def test_report(script_env, tmp_path):
    out = tmp_path / "report.json"
    command = [sys.executable, "scripts/benchmark.py", "text_to_image", "--quick", "--only", "train", "fid"]
    options = ["--threads", "1", "--batch", "8", "--out", str(out)]
    done = subprocess.run([*command, *options], env=script_env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(out.read_text())
    rows = report["rows"]
    assert list(rows) == ["train", "fid"]
    train = rows["train"]["peers"]
    assert train["ours"]["batch"] == train["eager"]["batch"] == 8
    assert train["eager"]["unneeded"] == 0 < train["tutorial"]["unneeded"]
    assert train["compiled"]["not_measured"] == "no answer within 1 s"
    assert all(
        math.isfinite(ratio) and ratio > 0 for row in rows.values() for ratio in row["ratios"].values()
    )
    assert rows["fid"]["targets"] == {"numpy": 1.0}
    for text in ("unneeded", "by XLA's count", "covariance of numpy differ from ours", "relative"):
        assert text in " ".join(done.stdout.split())
