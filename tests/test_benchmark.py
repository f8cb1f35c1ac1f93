"""scripts/benchmark.py in tiny form: every peer computes the same, and the report holds what it promises."""

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

ROOT = Path(__file__).resolve().parents[1]

SCRIPT = ROOT / "scripts" / "benchmark.py"


@pytest.fixture(scope="module")
def benchmarks():
    """The modules of scripts/benchmarks/."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "scripts")
        names = ("harness", "captioner", "dual_encoder", "question_answering", "video")
        yield SimpleNamespace(**{name: importlib.import_module(f"benchmarks.{name}") for name in names})


def run(script_env, model, *args):
    command = [sys.executable, str(SCRIPT), model, *args]
    done = subprocess.run(command, env=script_env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def printed_and_report(script_env, tmp_path_factory):
    pytest.importorskip("torch")
    out = tmp_path_factory.mktemp("benchmark") / "report.json"
    rows = ["train", "beam", "loop_scenes", "loop_flickr8k"]
    # One thread: those of PyTorch wait for each other in a busy loop, for long where tests share the cores.
    options = ["--threads", "1", "--flickr8k", "absent.parquet", "--out", str(out)]
    printed = run(script_env, "captioner", "--quick", "--only", *rows, *options)
    return printed, json.loads(out.read_text())


def test_report(printed_and_report):
    printed, report = printed_and_report
    assert report["machine"]["cores"] >= 1
    assert report["machine"]["versions"]["torch"]
    assert report["command"].startswith("python scripts/benchmark.py captioner --quick")
    rows = report["rows"]
    assert list(rows) == ["train", "beam", "loop_scenes", "loop_flickr8k"]
    assert rows["train"]["targets"] == {"recompute": 4.0, "hoisted": 1.0}
    expected = {"train": ["recompute", "hoisted"], "beam": ["batched", "one_by_one"], "loop_scenes": ["bare"]}
    for name, peers in expected.items():
        row = rows[name]
        assert list(row["ratios"]) == peers
        assert all(math.isfinite(ratio) and ratio > 0 for ratio in row["ratios"].values())
        for peer in ("ours", *peers):
            facts = row["peers"][peer]
            assert len(facts["seconds"]) == report["rounds"] * report["repeats"]
            assert facts["peak_bytes"] > 2**20
            assert facts["examples_per_s"] == pytest.approx(facts["batch"] / facts["median_s"])
    for name in ("train", "beam"):
        assert rows[name]["peers"]["ours"]["first_s"] > rows[name]["peers"]["ours"]["compile_s"] > 0
        assert rows[name]["peers"]["ours"]["kernels_a_word"] > 10
    assert "ratio" in printed


def test_peers_compute_the_same(printed_and_report):
    printed, report = printed_and_report
    losses = {peer: facts.get("loss") for peer, facts in report["rows"]["train"]["peers"].items()}
    assert losses["recompute"] == pytest.approx(losses["ours"], rel=1e-5)
    assert losses["hoisted"] == pytest.approx(losses["ours"], rel=1e-5)
    beam = report["rows"]["beam"]
    for same in beam["agreement"].values():
        assert (same["equal"], same["of"]) == (20, 20)
        assert same["largest_score_difference"] < 1e-3
    assert beam["words"]["shortest"] < beam["words"]["longest"]
    assert "20 of 20 captions of batched are ours" in printed


def test_what_is_missing_is_told(printed_and_report):
    printed, report = printed_and_report
    assert report["rows"]["train"]["peers"]["compiled"]["not_measured"] == "no answer within 1 s"
    flickr = report["rows"]["loop_flickr8k"]
    assert flickr["ratios"] == {}
    for facts in flickr["peers"].values():
        assert "absent.parquet" in facts["not_measured"]
        assert "--flickr8k PATH" in facts["not_measured"]
    assert "compiled was not measured: no answer within 1 s" in printed


def test_a_process_that_ends_says_why(benchmarks, tmp_path):
    harness = benchmarks.harness
    spec = {"model": "captioner", "row": "loop_nowhere", "peer": "bare", "device": "cpu", "threads": 1}
    spec |= {"quick": True, "sizes": benchmarks.captioner.QUICK}
    with (
        harness.Process(spec, tmp_path) as process,
        pytest.raises(harness.NotMeasured, match=r"captioner_nowhere\.py.*exit status 1"),
    ):
        process.answer(60)


def test_agreement_of_captions(benchmarks):
    mine = {"tokens": [[[4, 2, 0], [5, 2, 0]]], "scores": [[-1.0, -2.0]]}
    other = {"tokens": [[[4, 2, 0], [6, 2, 0]]], "scores": [[-1.0, -2.25]]}
    assert benchmarks.captioner.compare(mine, {"peer": other}) == {
        "agreement": {
            "peer": {
                "equal": 1,
                "of": 2,
                "largest_score_difference": 0.25,
                "score_differences_where_unequal": [0.25],
            }
        },
        "words": {"shortest": 2, "mean": 2, "longest": 2},
    }


def test_kernels_of_compiled_loops(benchmarks):
    """More work in the loop costs more, work outside nothing; loops of other lengths do not count."""

    def program(inside, outside):
        def body(carry, x):
            for _ in range(inside):
                carry = jnp.sort(carry @ carry) + x
            return carry, None

        def fn(x):
            for _ in range(outside):
                x = jnp.sort(x @ x)
            return jax.lax.scan(body, x, jnp.arange(7.0))[0]

        return jax.jit(fn).lower(jnp.ones((4, 4))).compile().as_text()

    one, two, more = (benchmarks.captioner.kernels_a_word(program(*n), 7) for n in ((1, 0), (2, 0), (1, 2)))
    assert 0 < one < two
    assert more == one
    assert benchmarks.captioner.kernels_a_word(program(1, 0), 8) is None


# What a GPU's compiler writes: a command buffer is a call, a library's product a custom-call.
GPU_PROGRAM = """\
HloModule jit_fn, is_scheduled=true

%fused (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  ROOT %add.1 = f32[4]{0} add(%p, %p)
}

%command_buffer (p.1: f32[4]) -> (f32[4], f32[4]) {
  %p.1 = f32[4]{0} parameter(0)
  %fusion.1 = f32[4]{0} fusion(%p.1), kind=kLoop, calls=%fused
  %gemm = (f32[4]{0}, s8[64]{0}) custom-call(%fusion.1, %p.1), custom_call_target="__cublas$gemm"
  %part = f32[4]{0} get-tuple-element(%gemm), index=0
  ROOT %tuple.1 = (f32[4]{0}, f32[4]{0}) tuple(%fusion.1, %part)
}

%body (s: (s32[], f32[4])) -> (s32[], f32[4]) {
  %s = (s32[], f32[4]{0}) parameter(0)
  %x = f32[4]{0} get-tuple-element(%s), index=1
  %call = (f32[4]{0}, /*index=1*/f32[4]{0}) call(%x), to_apply=%command_buffer
  %copy.1 = f32[4]{0} copy(%x)
  ROOT %tuple.2 = (s32[], f32[4]{0}) tuple(%x, %copy.1)
}

%condition (s.1: (s32[], f32[4])) -> pred[] {
  %s.1 = (s32[], f32[4]{0}) parameter(0)
  ROOT %fusion.2 = pred[] fusion(%s.1), kind=kLoop, calls=%fused
}

ENTRY %main (a: (s32[], f32[4])) -> (s32[], f32[4]) {
  %a = (s32[], f32[4]{0}) parameter(0)
  %w.1 = (s32[], f32[4]{0}) while(%a), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"20"}}
  %w.2 = (s32[], f32[4]{0}) while(%w.1), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"640"}}
  ROOT %w.3 = (s32[], f32[4]{0}) while(%w.2), condition=%condition, body=%body
}
"""


def test_kernels_of_a_gpu_program(benchmarks):
    known, unknown = 3, 3 + 1
    assert benchmarks.captioner.kernels_a_word(GPU_PROGRAM, 20) == known + unknown
    assert benchmarks.captioner.kernels_a_word(GPU_PROGRAM, 5) == unknown


@pytest.mark.parametrize(
    "model, row", [("captioner", "loop_flickr8k"), ("dual_encoder", "embed_image"), ("video", "frames_8")]
)
def test_help_teaches(script_env, model, row):
    text = run(script_env, model, "--help")
    assert row in text
    assert "examples:" in text
    assert "keeps to the same cores" in text


def test_dual_encoder_report(script_env, tmp_path):
    out = tmp_path / "report.json"
    options = ["--quick", "--only", "loss_4k", "--threads", "1", "--out", str(out)]
    printed = run(script_env, "dual_encoder", *options)
    report = json.loads(out.read_text())
    assert (report["model"], list(report["rows"])) == ("dual_encoder", ["loss_4k"])
    row = report["rows"]["loss_4k"]
    assert row["targets"] == {"plain": pytest.approx(1 / 1.15)}
    assert row["peers"]["ours"]["peak_bytes"] > 2**20
    assert row["peers"]["ours"]["temporary_bytes"] > 0
    assert row["ratios"]["plain"] > 0
    assert row["agreement"]["plain"]["gradients"]["largest_difference"] < 1e-5
    assert "gradients of plain differ from ours by" in printed
    assert "relative" in printed


@pytest.fixture(scope="module")
def dual_encoder(benchmarks, tmp_path_factory):
    """(suite, spec) with the inputs made, all of it in this process."""
    suite, path = benchmarks.dual_encoder, tmp_path_factory.mktemp("dual_encoder") / "inputs.npz"
    spec = {"device": "cpu", "threads": 1, "quick": True, "dtype": "float32", "sizes": suite.QUICK}
    spec |= {"rows": list(suite.ROWS), "inputs": str(path)}
    suite.make_inputs(spec)
    return suite, spec


ROWS = ["train_vit", "train_rn50", "embed_image", "embed_text", "loss_4k", "loss_64k", "loss_1m", "score"]


@pytest.mark.parametrize("row", ROWS)
def test_dual_encoder_peers_compute_the_same(dual_encoder, row):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    suite, spec = dual_encoder
    facts = {}
    for peer in ("ours", *suite.ROWS[row].peers):
        assert suite.missing({**spec, "row": row, "peer": peer}) is None
        if peer != "compiled":
            facts[peer], measure = suite.peer({**spec, "row": row, "peer": peer})
            assert facts[peer]["batch"] > 0
            assert min(measure(2)) > 0
    for peer, found in facts.items():
        if "loss" in found:
            assert found["loss"] == pytest.approx(facts["ours"]["loss"], rel=1e-4), peer
    outputs = {peer: found["outputs"] for peer, found in facts.items() if "outputs" in found}
    assert "loss" in facts["ours"] or outputs
    if outputs:
        for peer, same in suite.compare(outputs["ours"], outputs)["agreement"].items():
            for found in same.values():
                assert found.get("equal") == found.get("of"), peer
                assert found.get("largest_difference", 0.0) < 1e-4, peer


def test_what_does_not_fit_is_told(benchmarks):
    suite = benchmarks.dual_encoder
    spec = {"device": "cpu", "quick": False, "row": "loss_64k", "peer": "plain"}
    sizes = {**suite.FULL, "pairs": {"loss_64k": 2**22}}
    assert "matrices of 65536 GiB do not fit" in suite.missing({**spec, "sizes": sizes})
    assert suite.missing({**spec, "sizes": sizes, "peer": "ours"}) is None
    assert "CPU" in suite.missing({**spec, "sizes": sizes, "row": "loss_1m", "peer": "ours"})


def test_sizes_have_a_value_for_every_row(benchmarks):
    suite = benchmarks.dual_encoder
    for sizes in suite.SIZES.values():
        assert sizes.keys() == suite.FULL.keys()
        assert sizes["batch"].keys() | sizes["pairs"].keys() | {"score"} == suite.ROWS.keys()


def test_question_answering_peers_compute_the_same(benchmarks, tmp_path):
    """The first loss before an update, and the second after one."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    suite = benchmarks.question_answering
    spec = {"device": "cpu", "threads": 1, "quick": True, "dtype": "float32", "sizes": suite.QUICK}
    spec |= {"row": "train", "rows": ["train"], "inputs": str(tmp_path / "inputs.npz")}
    suite.make_inputs(spec)
    losses = {}
    for peer, make in (("ours", suite.our_model), ("transformers", suite.their_model)):
        assert suite.missing({**spec, "peer": peer}) is None
        facts, step = make({**spec, "peer": peer})
        losses[peer] = [step(), step()]
        assert peer != "ours" or (facts["temporary_bytes"] > 0 and facts["flops"] > 1e6)
    assert losses["transformers"] == pytest.approx(losses["ours"], rel=1e-4)
    assert losses["ours"][1] < losses["ours"][0]


def test_video_peers_are_measured(benchmarks):
    suite = benchmarks.video
    spec = {"device": "cpu", "threads": 1, "quick": True, "dtype": "float32", "sizes": suite.QUICK}
    peers = {}
    for peer in ("ours", "joint"):
        peers[peer], measure = suite.peer({**spec, "row": "frames_4", "peer": peer})
        facts = peers[peer]
        assert min(measure(2)) > 0
        assert math.isfinite(facts["cross_entropy"])
        assert facts["batch"] == suite.QUICK["batch"]
        assert facts["temporary_mib"] == facts["temporary_bytes"] / 2**20 > 0
    # In so narrow a tower the pairs of even 17 tokens cost more than a second attention in each block.
    assert peers["ours"]["flops"] < peers["joint"]["flops"]
    (line,) = suite.remarks({"peers": peers})
    assert "times the temporaries of divided" in line


def test_joint_attention_that_does_not_fit_is_told(benchmarks):
    suite = benchmarks.video
    sizes = {"tower": {**suite.FULL["tower"], "image_size": 896}, "batch": 64}
    spec = {"device": "cpu", "row": "frames_16", "sizes": sizes}
    assert "all pairs of tokens" in suite.missing({**spec, "peer": "joint"})
    assert suite.missing({**spec, "peer": "ours"}) is None
