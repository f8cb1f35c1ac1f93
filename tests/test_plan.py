"""Plans: what a step sends, on which axis, and what it holds, against what the machine measures and what must never travel."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from mmgen_jax import figures, plan
from mmgen_jax.core import hlo, parallel, sharding
from mmgen_jax.losses import contrastive
from mmgen_jax.tasks import contrastive as contrastive_task

ROOT = Path(__file__).resolve().parents[1]
PRIME = 11  # a factor of a batch's rows and of no other dimension here: what is gathered and has it is data
FEATURES = 8  # numbers a row from which it is activations, and not weights or the like
needs_tpu_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason='needs pip install "mmgen_jax[tpu-plan]"'
)
# Minutes each, for hours of chips saved: MMGEN_LONG_TESTS=1 pytest -n 0 -s tests/test_plan.py
long = pytest.mark.skipif("MMGEN_LONG_TESTS" not in os.environ, reason="long: set MMGEN_LONG_TESTS=1")


@pytest.fixture(autouse=True)
def no_cache():
    """A program that comes from the compilation cache does not know its memory."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", before)


@pytest.fixture(scope="module")
def dual(load_config):
    """The sigmoid loss goes round the ring; scanned Transformers, as the large configs have them."""
    config = load_config("siglip_b16.py:tiny")
    config.mesh = {"data": -1, "fsdp": 1, "tensor": 1, "min_mb": 0.0}
    return config


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        ("v5f:4x4", 'Unknown topology "v5f:4x4".*Did you mean "v5'),
        ("cpu:many", "a number of devices follows"),
        ("cpu:9", "JAX has started with 8"),
    ],
)
def test_unknown_topologies(topology, message):
    with pytest.raises(ValueError, match=message):
        plan.devices(topology)


@pytest.mark.parametrize(
    ("topology", "package", "extra"),
    [("v5e:4x4", "libtpu", "tpu-plan"), ("gpu:1x8", "jax_cuda12_plugin", "gpu")],
)
def test_a_missing_compiler_names_its_extra(topology, package, extra):
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is here")
    with pytest.raises(ImportError, match=rf"mmgen_jax\[{extra}\]"):
        plan.devices(topology)


def test_a_batch_that_does_not_divide_shows_now(dual):
    with pytest.raises(ValueError, match=r"data.batch_size=12 does not divide over data x fsdp = 8"):
        plan.make(dual, "cpu:8", batch_size=12)
    with pytest.raises(ValueError, match=r"data.batch_size=8 does not divide over data x fsdp = 6"):
        next(plan.scaling(dual, "cpu:4", ["cpu:4", "cpu:6"]))


def test_meshes():
    shapes = plan.meshes(8, tensor=True)
    assert len(shapes) == 10 and all(s["data"] * s["fsdp"] * s["tensor"] == 8 for s in shapes)
    assert len(plan.meshes(8, tensor=False)) == 4


def test_a_data_parallel_step(dual, tmp_path):
    """Gradients are summed once over "data", texts go round the ring, and nothing else that is large travels."""
    found = plan.make(dual, "cpu:8", name="siglip")
    assert found.mesh == {"data": 8, "fsdp": 1, "tensor": 1} and found.parameters.keys() == {"model"}
    assert set(found.parts) == {"init", "train_step", *(f"predict {x}" for x in
               ("embed", "embed_image", "embed_text", "features"))}  # fmt: skip
    assert found.predicted == 8
    assert found.assumed and "drawn examples" in found.assumed[0], "the config's tars are not here"
    assert {row["axis"] for row in found.collectives} == {"data"} and not found.warnings
    sent = {row["kind"]: row["sent"] for row in found.collectives}
    whole = 4 * sum(found.parameters.values())
    # Two times 7/8 of all gradients, and a few numbers for the log.
    assert 0.999 * 1.75 * whole < sent["all-reduce"] < 1.1 * 1.75 * whole
    assert sent.get("all-gather", 0) < 0.05 * whole
    count = next(row["count"] for row in found.collectives if row["kind"] == "collective-permute")
    assert count >= 2 * 8, "each device's texts pass all eight, forwards and backwards"
    assert found.bytes["parameters"] == whole and 2 * whole <= found.bytes["optimizer"] < 2.01 * whole
    assert found.fits is None and found.seconds == {}, "nothing is known of this machine's chip"
    # The same numbers as text and as JSON, and a picture of them.
    text = plan.table(found, found)
    assert text.count("collective-permute over data") == 1 and "assumed: " in text
    assert "whole" in plan.sharding_text(found)
    read = json.loads(json.dumps(found.to_json()))
    assert read["peak"] == max(read["parts"].values()) and read["sharding"][0]["path"] == "step"
    assert figures.scaling(tmp_path / "x.png", {"weak": [read], "strong": [read]}).stat().st_size > 10_000


def gathered_rows(config, monkeypatch) -> list[hlo.Collective]:
    """What a step under fsdp gathers or exchanges that has rows of the batch in it."""
    monkeypatch.setattr(contrastive_task, "SAMPLE", 8)  # those rows every device looks at
    config = config.copy_and_resolve_references()
    config.data.batch_size = 8 * PRIME
    config.mesh = {"data": 2, "fsdp": 4, "tensor": 1, "min_mb": 0.0}
    layout = sharding.make(**config.mesh)
    experiment, _ = plan.build(config, layout)
    step = parallel.compile_step(experiment.train_step, layout, experiment.shardings)
    batch = {
        key: jax.ShapeDtypeStruct(x.shape, x.dtype) for key, x in experiment.pipeline.example_batch().items()
    }
    program = hlo.Program(step.lower(experiment.abstract, batch).compile().as_text())
    found = program.collectives(dict(layout.mesh.shape))
    assert any(x.kind == "all-gather" and x.axis == "fsdp" for x in found), "parameters are gathered"
    return [
        x
        for x in found
        if x.kind in ("all-gather", "all-to-all")
        and any(size % PRIME == 0 for shape in x.shapes for size in shape)
        and max(map(math.prod, x.shapes)) >= FEATURES * 8 * PRIME
    ]


NAMES = ["siglip_b16.py", "captioner_scenes.py", "dcgan_scenes.py", "question_answering_scenes.py"]


@pytest.mark.parametrize("name", NAMES)
def test_under_fsdp_only_parameters_are_gathered(name, load_config, monkeypatch):
    assert not gathered_rows(load_config(f"{name}:tiny"), monkeypatch)


def test_an_unexpected_gather_is_seen(dual, monkeypatch):
    """Left to itself the compiler cuts features where parameters are cut, and gathers activations in every layer."""
    monkeypatch.setattr(sharding, "keep_rows", lambda x: x)
    monkeypatch.setattr(sharding, "gathered", lambda params, layout: params)
    assert gathered_rows(dual, monkeypatch)


def test_warnings():
    def gather(axis, sent):
        return hlo.Collective("all-gather", axis, ((8, 8),), 1, sent, "step/here")

    small = plan.Plan(
        "x", "cpu:8", "cpu", 8, {}, 8, [], {"model": 10**6}, {}, {}, None, 0, 0, [], {}, [], [], 0
    )
    assert not plan._warnings([gather("fsdp", 11e6), gather("data", 1e6)], small)
    over_data, over_fsdp = plan._warnings([gather("data", 2e6), gather("fsdp", 13e6)], small)
    assert "over data" in over_data and "step/here" in over_data and "three times" in over_fsdp
    summed = hlo.Collective("all-reduce", "data", ((8,),), 12, 17e6, "")
    assert "in every turn" in plan._warnings([summed], small)[0]


MEASURE = """
import ctypes, gc, json, re, runpy, sys
import jax, numpy as np
from mmgen_jax import plan
from mmgen_jax.core import parallel, sharding

def status(key):
    return 1024 * int(re.search(key + r":\\s+(\\d+)", open("/proc/self/status").read())[1])

config = runpy.run_path("configs/siglip_b16.py")["get_config"]("tiny")
for tower in (config.task.model.image, config.task.model.text):
    tower.update(width=256, depth=3, heads=4, remat=False)
config.task.model.embed_dim = 256
config.data.batch_size = 256
config.mesh.update(data=8 // int(sys.argv[1]), fsdp=int(sys.argv[1]), min_mb=0.0)
planned = plan.make(config, "cpu:8", step_only=True).peak
layout = sharding.make(**config.mesh)
experiment, _ = plan.build(config, layout)
batch = {key: np.array(x) for key, x in experiment.pipeline.example_batch().items()}
shapes = {key: jax.ShapeDtypeStruct(x.shape, x.dtype) for key, x in batch.items()}
step = parallel.compile_step(experiment.train_step, layout, experiment.shardings)
step = step.lower(experiment.abstract, shapes).compile()
start = experiment.initialiser().lower(jax.random.key(0)).compile()
gc.collect()
ctypes.CDLL("libc.so.6").malloc_trim(0)
before = status("VmRSS")
state = start(jax.random.key(0))
now = jax.block_until_ready(sharding.put_batch(batch, layout))
open("/proc/self/clear_refs", "w").write("5")  # the high water mark begins anew
for _ in range(2):
    state, _ = step(state, now)
    now = sharding.put_batch(batch, layout)
    jax.block_until_ready((state, now))
print(json.dumps({"planned": 8 * planned, "measured": status("VmHWM") - before}))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures memory as Linux does")
@pytest.mark.parametrize("fsdp", [1, 4])
def test_memory_is_what_the_machine_measures(fsdp, script_env):
    """Eight CPU devices are one process here: its memory while it steps is eight times a device's."""
    env = {
        key: value
        for key, value in script_env.items()
        if "COMPILATION_CACHE" not in key and "OPTIMI" not in key
    }
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(fsdp)],
        cwd=ROOT,
        env={**env, "JAX_NUM_CPU_DEVICES": "8"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert found["planned"] == pytest.approx(found["measured"], rel=0.2), found


@pytest.fixture
def run_plan(script_env):
    def run(*arguments) -> subprocess.CompletedProcess:
        base = ["scripts/plan.py", "--config", "configs/captioner_scenes.py:tiny", "--topology", "cpu:8"]
        env = {
            key: value
            for key, value in script_env.items()
            if "CACHE" not in key and key != "JAX_NUM_CPU_DEVICES"
        }
        return subprocess.run(
            [sys.executable, *base, *arguments], cwd=ROOT, env=env, capture_output=True, text=True
        )

    return run


def test_command(run_plan, tmp_path):
    out = tmp_path / "plan.json"
    done = run_plan("--out", out, "--step_only", "--compare", "data=2,fsdp=4")
    assert done.returncode == 0, done.stderr
    assert "data 8 x fsdp 1 x tensor 1" in done.stdout and "data 2 x fsdp 4 x tensor 1" in done.stdout
    assert len(json.loads(out.read_text())) == 2
    done = run_plan("--out", out, "--sweep", "--meshes", "8x1x1", "--batches", "16,12,8")
    assert done.returncode == 0 and "left out: 8x1x1, batch 12" in done.stdout, done.stderr
    assert [row["batch_size"] for row in json.loads(out.read_text())] == [8, 16], "the smaller one needs less"


def test_mistakes_have_a_remedy(run_plan):
    done = run_plan("--mesh", "dta=4")
    assert done.returncode == 1 and 'Did you mean "data"' in done.stderr


# On a TPU that is not there. -------------------------------------------------------------------------------------------


@pytest.fixture
def as_in_a_run():
    """A TPU's compiler cannot do without the optimisations that the tests leave out, nor JAX's attention in bfloat16 with strict
    types."""
    values = {"jax_disable_most_optimizations": False, "jax_numpy_dtype_promotion": "standard"}
    before = {key: jax.config.values[key] for key in values}
    for key, value in values.items():
        jax.config.update(key, value)
    yield
    for key, value in before.items():
        jax.config.update(key, value)


@needs_tpu_compiler
@pytest.mark.usefixtures("as_in_a_run")
def test_a_tpu_step(dual):
    # With two rows a chip libtpu 0.0.42 crashes.
    found = plan.make(dual, "v5e:2x2", mesh={"fsdp": 2}, batch_size=64, step_only=True)
    assert found.fits and found.memory == 15.75 * 2**30 and found.device == "TPU v5 lite"
    assert {"arithmetic", "memory", "links", "compiler"} == found.seconds.keys()
    assert found.examples_per_s > 0 and 0 < found.utilisation < 1 and found.bound
    assert not found.warnings
    kinds = {(row["kind"], row["axis"]) for row in found.collectives}
    assert ("all-gather", "fsdp") in kinds
    with pytest.raises(ValueError, match='No topology "v5e:3x5"'):
        plan.devices("v5e:3x5")
    for topology, count in {"v5e:16x16": 256, "v5p:4x4x4": 64, "v6e:16x16": 256}.items():
        found = plan.devices(topology)
        assert len(found) == count and found[0].device_kind in plan.CHIPS


@needs_tpu_compiler
@pytest.mark.usefixtures("as_in_a_run")
def test_a_million_pairs_on_256_chips():
    """InfoNCE at a global batch of 1,048,576 and its gradient; the matrix of logits would have 4 TiB."""
    layout = sharding.make(devices=plan.devices("v5e:16x16"))
    rows = {key: jax.ShapeDtypeStruct((2**20, 512), jnp.bfloat16) for key in ("image", "text")}

    def loss(rows, scale):
        def on_rows(rows, scale, axis):
            return contrastive.info_nce(
                rows["image"], rows["text"], scale, block_size=2048, axis=axis, exchange="ring"
            )

        return parallel.by_rows(on_rows, layout)(rows, scale).mean()

    compiled = (
        jax.jit(jax.grad(loss, argnums=(0, 1)), in_shardings=(layout.batch, layout.replicated))
        .lower(rows, jax.ShapeDtypeStruct((), jnp.float32))
        .compile()
    )
    memory = compiled.memory_analysis()
    assert memory.temp_size_in_bytes + memory.argument_size_in_bytes < 0.5 * 2**30
    found = hlo.Program(compiled.as_text()).collectives(dict(layout.mesh.shape))
    assert not [x for x in found if x.kind == "all-gather"], "the ring gathers nothing"


LARGE = {
    "captioner_coco.py": {"vocabulary": 10_000},
    "clip_vit_b32.py": {},
    "clip_vit_l14.py": {},
    "siglip_b16.py": {},
    # Its 16 images do not divide over 64 chips.
    "attngan_coco.py": {"vocabulary": 27_297, "batch_size": 64},
}


TOPOLOGIES = ("v5e:4x4", "v5p:4x4x4")


@long
@needs_tpu_compiler
@pytest.mark.usefixtures("as_in_a_run")
@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("name", LARGE)
def test_large_configs_fit(name, topology, load_config):
    config = load_config(name)
    found = plan.make(config, topology, step_only=True, **LARGE[name], name=name)
    print(plan.table(found))
    assert found.fits
    # Each slice of a batch gathers the parameters and sums its gradients, which is what slices cost.
    known = "in every turn" if config.task.get("slices", 1) > 1 else "nothing"
    assert not [note for note in found.warnings if known not in note]
