"""Time a model against PyTorch peers that compute the same, and the training loop against its bare step.

python scripts/benchmark.py captioner --help
"""

import argparse
import datetime
import importlib.metadata
import importlib.util
import itertools
import json
import os
import platform
import re
import resource
import runpy
import select
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
SEED = 0
BEAM = 5
ROUNDS = 3
PATIENCE = 3600  # seconds for one answer of a process; a hung one must not hang the benchmark
PACKAGES = ("jax", "jaxlib", "flax", "optax", "grain", "numpy", "torch")

Measure = Callable[[int], list[float]]

HELP = """\
Every row measures ours and its peers on the same inputs with the same weights: batch 32, 196 positions of
2048 features, hidden 512, vocabulary 9,490, 20 words. Each peer is a process of its own that keeps to the
same cores. First all are made ready, then they take turns for {rounds} rounds of --repeats calls, so that a
noisy neighbour hits all of them. Medians are over all calls; a ratio is the peer's time by ours: above 1 ours
is faster. Nothing else should run: a thread that waits for a core stalls PyTorch more than it stalls XLA.

rows:
  train          forward, backward, Adam update on cached features. Peers: "recompute" projects the image anew
                 for each word, as tutorials do; "hoisted" does that and the vocabulary layer once;
                 "compiled" is that under torch.compile
  greedy         captions by the likeliest word
  beam           captions by beam search, 5 wide. Peers: "batched", and "one_by_one", image after image
  end_to_end     a training step from 224-pixel images through ResNet-50
  loop_scenes    scripts/train.py's loop with its loader on configs/captioner_scenes.py, against its compiled
                 step alone on a batch that is there already; the ratio is the share of that throughput which
                 the loop keeps
  loop_flickr8k  the same on configs/captioner_flickr8k.py

With the times come each process's first call (compiling included), its peak memory, and for ours the
kernels that a word costs: the instructions inside the compiled loops over words that start one (a training
step has two loops, forwards and backwards). On a GPU training computes in bfloat16, decoding in float32.

examples:
  python scripts/benchmark.py captioner --quick                          # tiny sizes: does it work here?
  python scripts/benchmark.py captioner                                  # all rows on 2 cores; up to an hour
  python scripts/benchmark.py captioner --only train --compile-limit 60 --out train.json
  python scripts/benchmark.py captioner --device gpu --only train greedy beam

Peers need PyTorch: pip install -e ".[torch]". What could not be measured is listed with the reason.
"""


class Row(NamedTuple):
    """What is measured, against whom, and the ratio that is aimed at: {device: {peer: ratio}}."""

    title: str
    peers: tuple[str, ...]
    targets: Mapping[str, Mapping[str, float]]


LOOP_TARGETS = {"cpu": {"bare": 0.95}, "gpu": {"bare": 0.95}}
ROWS = {
    "train": Row(
        "training step, cached features",
        ("recompute", "hoisted", "compiled"),
        {"cpu": {"recompute": 4.0, "hoisted": 1.0}, "gpu": {"compiled": 1.2}},
    ),
    "greedy": Row("greedy decoding", ("batched",), {}),
    "beam": Row(
        f"beam search, {BEAM} wide", ("batched", "one_by_one"), {"cpu": {"batched": 2.0, "one_by_one": 20.0}}
    ),
    "end_to_end": Row("training step with ResNet-50", ("hoisted",), {}),
    "loop_scenes": Row("loop with loader, scenes", ("bare",), LOOP_TARGETS),
    "loop_flickr8k": Row("loop with loader, Flickr8k", ("bare",), LOOP_TARGETS),
}

FULL = {
    "batch": 32,
    "positions": 196,
    "features": 2048,
    "hidden": 512,
    "vocab": 9490,
    "words": 20,
    "image": 224,
    "stages": (3, 4, 6, 3),
    "width": 64,
    "steps": 10,
}
QUICK = {
    "batch": 4,
    "positions": 9,
    "features": 32,
    "hidden": 16,
    "vocab": 50,
    "words": 6,
    "image": 32,
    "stages": (1, 1),
    "width": 4,
    "steps": 2,
}


# --- One process: a peer of one row ---------------------------------------------------------------


def serve(spec: dict[str, Any]) -> None:
    """Be one peer: make ready and say so, answer each line "repeats" with times, then give the memory.

    Answers are JSON objects, one a line, on the standard output.
    """
    if spec["threads"] and hasattr(os, "sched_setaffinity"):
        # Before any library looks how many cores there are.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: spec["threads"]])

    def say(**values: Any) -> None:
        print(json.dumps(values), flush=True)

    if spec["peer"] == "inputs":
        make_inputs(spec)
        return say()
    if spec["row"].startswith("loop_"):
        make = loop if spec["peer"] == "ours" else bare_step
    else:
        make = ours if spec["peer"] == "ours" else theirs
    facts, measure = make(spec)
    say(**facts)
    for line in sys.stdin:
        say(seconds=measure(int(line)))
    say(peak_bytes=peak_bytes(spec["device"]))


def peak_bytes(device: str) -> int:
    """The most memory that this process ever held: on its GPU, or altogether."""
    if device == "cpu":
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    if "torch" in sys.modules:
        return sys.modules["torch"].cuda.max_memory_allocated()
    return sys.modules["jax"].devices()[0].memory_stats()["peak_bytes_in_use"]


def timed(call: Callable[[], Any]) -> Measure:
    """measure(repeats) -> seconds of each call."""

    def measure(repeats: int) -> list[float]:
        seconds = []
        for _ in range(repeats):
            begin = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - begin)
        return seconds

    return measure


def nested(flat: Mapping[str, Any], prefix: str) -> dict:
    """{"p/a/b": x} -> {"a": {"b": x}} of the names under the folder `prefix`."""
    tree: dict = {}
    for name in flat:
        if name.startswith(prefix + "/"):
            *folders, leaf = name[len(prefix) + 1 :].split("/")
            node = tree
            for folder in folders:
                node = node.setdefault(folder, {})
            node[leaf] = flat[name]
    return tree


# --- Ours -----------------------------------------------------------------------------------------


def make_task(sizes: Mapping[str, Any], row: str, dtype: str, words: float) -> Any:
    """The captioning task of a row; without its tower where features are cached.

    words: target words an image. The task shares its penalty among the words, the peers among the images;
      with this as lambda both are the same.
    """
    from types import SimpleNamespace

    from mmgen_jax.core import optimizer
    from mmgen_jax.models.captioner import Captioner
    from mmgen_jax.tasks.captioning import Captioning

    class CachedFeatures(Captioner):
        """A captioner whose images are features already: float [B, P, D]."""

        def features(self, image, train):
            return image

    hidden = sizes["hidden"]
    task = Captioning(
        model={
            "encoder": {
                "name": "resnet",
                "block": "bottleneck",
                "stages": sizes["stages"],
                "width": sizes["width"],
            },
            "decoder": {
                "name": "rnn",
                "features": hidden,
                "embed_features": hidden,
                "attention_features": hidden,
                "gate": "vector",
            },
            "position": False,
        },
        decode=dict(max_len=sizes["words"], **({"beam": BEAM, "n_best": BEAM} if row == "beam" else {})),
        doubly_stochastic=words,
        dtype=dtype,
        optimizer=optimizer.make(name="adamw", learning_rate=4e-4, schedule="constant", steps=1),
        axis=None,
        context={"tokenizer": SimpleNamespace(vocab_size=sizes["vocab"])},
    )
    if row != "end_to_end":
        task.model = CachedFeatures(None, task.model.decoder)
    return task


def make_inputs(spec: Mapping[str, Any]) -> None:
    """Write features, images, captions and weights to spec["inputs"], for all peers."""
    import jax
    import jax.numpy as jnp
    from flax.traverse_util import flatten_dict

    sizes, rng = spec["sizes"], np.random.default_rng(SEED)
    b, words = sizes["batch"], sizes["words"]
    # What an image's positions share makes its caption differ from the others'.
    whole, places = (rng.normal(size=(b, p, sizes["features"])) for p in (1, sizes["positions"]))
    features = np.maximum(whole + places, 0).astype(np.float32)
    tokens = rng.integers(4, sizes["vocab"], (b, words + 1)).astype(np.int32)
    tokens[:, 0] = 1
    for row, end in zip(tokens, rng.integers(words // 2, words + 1, b), strict=True):
        row[end:] = 0
        row[end] = 2
    image = rng.integers(0, 256, (b, sizes["image"], sizes["image"], 3), np.uint8)

    task = make_task(sizes, "greedy", "float32", 1.0)
    batch = {"image": jnp.asarray(features), "tokens": jnp.asarray(tokens)[:, None]}
    decoder = dict(jax.jit(task.networks)(jax.random.key(SEED), batch)["model"]["params"]["decoder"])
    # Random weights know no end, and all words are nearly as likely. Sharper logits make ties rare, as
    # training does. The end's bias is such that captions have two thirds of the most words on average.
    decoder["out_kernel"] = decoder["out_kernel"] * 6.0
    generate = jax.jit(task.predict["generate"])

    def mean_length(bias: float) -> float:
        out_bias = decoder["out_bias"].at[2].set(bias).at[3].set(-1e4)
        decoder["out_bias"] = out_bias
        found = generate({"model": {"decoder": decoder}}, {"model": {}}, batch, jax.random.key(0))
        return float((found["tokens"] != 0).sum(axis=-1).mean())

    low, high = -50.0, 100.0
    for _ in range(16):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_length(middle) > words * 2 / 3 else (low, middle)
    arrays = {"features": features, "image": image, "tokens": tokens}
    arrays |= {f"decoder/{name}": value for name, value in decoder.items()}
    if "end_to_end" in spec["rows"]:
        task = make_task(sizes, "end_to_end", "float32", 1.0)
        whole = jax.jit(task.networks)(jax.random.key(SEED), {**batch, "image": jnp.asarray(image)})["model"]
        for kind in ("params", "batch_stats"):
            tower = flatten_dict(whole[kind]["encoder"], sep="/")
            arrays |= {f"tower/{kind}/{name}": value for name, value in tower.items()}
    np.savez(spec["inputs"], **arrays)


def ours(spec: Mapping[str, Any]) -> tuple[dict, Measure]:
    """Our side of the rows train, end_to_end, greedy and beam."""
    import jax
    import jax.numpy as jnp

    from mmgen_jax.core.state import State

    if spec["device"] == "gpu":  # it may round float32 products to fewer bits, which the peers do not
        jax.config.update("jax_default_matmul_precision", "highest")
    sizes, row, data = spec["sizes"], spec["row"], np.load(spec["inputs"])
    tokens = data["tokens"]
    task = make_task(sizes, row, spec["dtype"], float((tokens[:, 1:] != 0).sum() / len(tokens)))
    params, variables = {"decoder": nested(data, "decoder")}, {}
    if row == "end_to_end":
        tower = nested(data, "tower")
        params["encoder"], variables = tower["params"], {"batch_stats": {"encoder": tower["batch_stats"]}}
    params, variables = jax.tree.map(jnp.asarray, ({"model": params}, {"model": variables}))
    image = data["image" if row == "end_to_end" else "features"]
    batch = {"image": image, "tokens": tokens[:, None], "mask": np.ones(len(tokens), np.float32)}
    batch = jax.tree.map(jnp.asarray, batch)
    if row in ("train", "end_to_end"):
        optimizer = {"model": task.optimizer.transform.init(params["model"])}
        state = State(jnp.int32(0), jax.random.key(SEED), params, variables, optimizer, {})
        compiled, facts = compile_ours(task.train_step, (state, batch), sizes["words"], donate=True)

        def call():
            nonlocal state
            state, metrics = jax.block_until_ready(compiled(state, batch))
            return metrics

        begin = time.perf_counter()
        metrics = call()
        facts["loss"] = sum(float(metrics[name].compute()) for name in ("loss", "attention_penalty"))
    else:
        args = params, variables, batch, jax.random.key(SEED)
        compiled, facts = compile_ours(task.predict["generate"], args, sizes["words"])

        def call():
            return jax.block_until_ready(compiled(*args))

        begin = time.perf_counter()
        found = call()
        names = {"tokens": "tokens", "scores": "log_prob"}
        facts |= {name: np.asarray(found[key]).tolist() for name, key in names.items()}
    facts |= {"first_s": facts["compile_s"] + time.perf_counter() - begin, "batch": sizes["batch"]}
    return facts, timed(call)


def compile_ours(fn: Callable, args: tuple, words: int, donate: bool = False) -> tuple[Any, dict]:
    """The compiled function, and what compiling tells."""
    import jax

    begin = time.perf_counter()
    compiled = jax.jit(fn, donate_argnums=0 if donate else ()).lower(*args).compile()
    facts = {"compile_s": time.perf_counter() - begin, "accelerator": jax.devices()[0].device_kind}
    return compiled, {**facts, "kernels_a_word": kernels_a_word(compiled.as_text(), words)}


# What only names or regroups buffers; everything else starts a kernel (on CPU: a thunk).
FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "opt-barrier",
    "async-done",
}


def kernels_a_word(hlo: str, words: int) -> int | None:
    """Kernels that one word costs: those in the body of each loop over words, forwards and backwards.

    Args:
      hlo: a compiled program, `jax.jit(fn).lower(...).compile().as_text()`.
      words: T. A loop over words has that trip count, or none that the compiler knows (one that stops early);
        others, such as those that a CPU's scatters become, have another.

    Returns:
      The sum over those loops; None where there is none.
    """
    computations: dict[str, list[tuple[str, str]]] = {}
    entry = ""
    for line in hlo.splitlines():
        opened = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if opened:
            body = computations.setdefault(opened[2], [])
            entry = opened[2] if opened[1] else entry
        elif instruction := re.match(r"\s+(?:ROOT )?%?[\w.\-]+ = .*? ([a-z][\w\-]*)\((.*)", line):
            body.append((instruction[1], instruction[2]))

    def called(rest: str, *keys: str) -> list[str]:
        return [name for key in keys for name in re.findall(rf"\b{key}=%?([\w.\-]+)", rest)]

    def kernels(name: str) -> int:
        return sum(cost(*instruction) for instruction in computations[name])

    def cost(opcode: str, rest: str) -> int:
        if opcode in FREE:
            return 0
        if opcode in ("call", "async-start"):
            return sum(map(kernels, called(rest, "to_apply", "calls")))
        if opcode == "conditional":
            several = re.findall(r"branch_computations=\{(.*?)\}", rest)
            names = called(rest, "true_computation", "false_computation")
            names += re.findall(r"[\w.\-]+", "".join(several))
            return max(map(kernels, names))
        if opcode == "while":
            # With a known count the host counts; otherwise the condition runs on the device each time.
            return sum(map(kernels, called(rest, "body", *(() if trips(rest) else ("condition",)))))
        return 1

    def trips(rest: str) -> int | None:
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"', rest)
        return int(known[1]) if known else None

    def loops(name: str) -> Iterator[int]:
        for opcode, rest in computations[name]:
            if opcode == "while" and trips(rest) in (None, words):
                yield cost(opcode, rest)
            elif opcode == "call":
                yield from itertools.chain.from_iterable(map(loops, called(rest, "to_apply")))

    return sum(found) if (found := list(loops(entry))) else None


def loop_config(spec: Mapping[str, Any]) -> Any:
    """The config of a loop row, without evaluations and checkpoints."""
    import ml_collections

    name = spec["row"].removeprefix("loop_")
    args = ["tiny"] if spec["quick"] else []
    if name == "flickr8k" and spec["flickr8k"]:
        args.append(f"path={spec['flickr8k']}")
    made = runpy.run_path(str(ROOT / "configs" / f"captioner_{name}.py"))["get_config"](",".join(args))
    config = ml_collections.ConfigDict({**made.to_dict(), "evals": {}, "log_every": spec["sizes"]["steps"]})
    config.checkpoint.every = 10**9
    if spec["device"] == "gpu":
        config.task.dtype = "bfloat16"
    return config


def loop(spec: Mapping[str, Any]) -> tuple[dict, Measure]:
    """The loop itself: `train` in a new workdir, which reports a step's time every sizes["steps"] steps."""
    from mmgen_jax.train import train

    config = loop_config(spec)

    def measure(repeats: int) -> list[float]:
        # The first report counts as warming up.
        config.steps = config.log_every * (1 + repeats)
        with tempfile.TemporaryDirectory() as workdir:
            train(config, Path(workdir) / "run", console=Console(file=sys.stderr))
            lines = (Path(workdir) / "run" / "metrics.jsonl").read_text().splitlines()
        times = [row["train/step_time"] for row in map(json.loads, lines) if "train/step_time" in row]
        return times[1:]

    return {"batch": config.data.batch_size}, measure


def bare_step(spec: Mapping[str, Any]) -> tuple[dict, Measure]:
    """The loop's compiled step, on one batch that is on the device already."""
    import jax

    from mmgen_jax.core import parallel, sharding
    from mmgen_jax.experiment import Experiment

    config = loop_config(spec)
    experiment = Experiment(config)
    state = experiment.init()
    batch = sharding.put_batch(next(experiment.pipeline.train(0)), experiment.layout)
    begin = time.perf_counter()
    step = parallel.compile_step(experiment.task.train_step, experiment.layout, experiment.shardings)
    step = step.lower(state, batch).compile()
    compile_s = time.perf_counter() - begin

    def call():
        nonlocal state
        for _ in range(config.log_every):
            state, metrics = step(state, batch)
        jax.block_until_ready(metrics)

    call()
    facts = {"batch": config.data.batch_size, "compile_s": compile_s}
    return facts, lambda repeats: [seconds / config.log_every for seconds in timed(call)(repeats)]


# --- PyTorch --------------------------------------------------------------------------------------


def theirs(spec: Mapping[str, Any]) -> tuple[dict, Measure]:
    """A PyTorch peer of the rows train, end_to_end, greedy and beam."""
    import torch
    from peers import captioner_torch as peers

    if spec["threads"]:
        torch.set_num_threads(spec["threads"])
    device = {"cpu": "cpu", "gpu": "cuda"}[spec["device"]]
    sizes, row, peer, data = spec["sizes"], spec["row"], spec["peer"], np.load(spec["inputs"])
    weights = peers.from_params(nested(data, "decoder"))
    place = partial(torch.tensor, device=device)
    if row in ("train", "end_to_end"):
        options = {"device": device, "dtype": spec["dtype"]}
        if row == "train":
            step, image = peers.make_train_step(peer, weights, **options), data["features"]
        else:
            tower = peers.ResNet(sizes["stages"], sizes["width"])
            tower.load(**nested(data, "tower"))
            step = peers.make_end_to_end_step(peer, weights, tower=tower, **options)
            image = peers.normalise(data["image"])
        inputs = place(image), place(data["tokens"].astype(np.int64))

        def call():
            return {"loss": float(step(*inputs))}
    else:
        model, memory = peers.Decoder(weights).to(device), place(data["features"])

        def call():
            if row == "greedy":
                return {"tokens": peers.greedy(model, memory, sizes["words"])[:, None].tolist()}
            tokens, scores = peers.beam(model, memory, BEAM, sizes["words"], batched=peer == "batched")
            return {"tokens": tokens.tolist(), "scores": scores.tolist()}

    begin = time.perf_counter()
    found = call()
    facts = {**found, "first_s": time.perf_counter() - begin, "batch": sizes["batch"]}
    return facts, timed(call)


# --- The parent: starts the processes, lets them take turns, compares -----------------------------


class NotMeasured(Exception):
    """Why a peer has no numbers."""


class Process:
    """A peer in a process of its own; a context manager that leaves nothing running."""

    def __init__(self, spec: Mapping[str, Any], folder: Path):
        env = {**os.environ, "JAX_PLATFORMS": {"cpu": "cpu", "gpu": "cuda"}[spec["device"]]}
        # Two libraries share the device: neither may take all its memory beforehand.
        env["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        if not spec["quick"]:  # a first call compiles, as it does for a user
            env |= {"JAX_ENABLE_COMPILATION_CACHE": "false", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
        self._errors = folder / f"{spec['row']}_{spec['peer']}.txt"
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).resolve()), "peer", json.dumps(spec)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=ROOT,
                env=env,
                start_new_session=True,
            )

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *error: object) -> None:
        # The session: a compiler may have started helpers.
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    def answer(self, limit: float) -> dict:
        """The next answer.

        Raises:
          NotMeasured: none within `limit` seconds, or the process ended.
        """
        if not select.select([self._process.stdout], [], [], limit)[0]:
            raise NotMeasured(f"no answer within {limit:g} s")
        if line := self._process.stdout.readline():
            return json.loads(line)
        status = self._process.wait()
        said = [
            line.strip() for line in self._errors.read_text(errors="replace").splitlines() if line.strip()
        ]
        raise NotMeasured((said or ["it said nothing"])[-1] + f" (exit status {status})")

    def measure(self, repeats: int) -> list[float]:
        """Seconds of so many calls."""
        self._process.stdin.write(f"{repeats}\n")
        self._process.stdin.flush()
        return self.answer(PATIENCE)["seconds"]

    def finish(self) -> dict:
        """The last answer of a peer that has nothing more to do."""
        self._process.stdin.close()
        return self.answer(PATIENCE)


def measure_row(name: str, base: Mapping[str, Any], args: argparse.Namespace, folder: Path) -> dict:
    """All peers of a row: {"peers": {peer: facts}, "ratios", "targets", and for captions "agreement"}."""
    training = name in ("train", "end_to_end")
    dtype = "bfloat16" if training and args.device == "gpu" else "float32"
    results: dict[str, dict] = {}
    with ExitStack() as stack:
        ready: dict[str, Process] = {}

        def attempt(peer: str, action: Callable[[], dict]) -> None:
            try:
                results.setdefault(peer, {}).update(action())
            except NotMeasured as reason:
                results[peer] = {"not_measured": str(reason)}
                ready.pop(peer, None)

        def start(peer: str) -> dict:
            why = missing(name, peer, args)
            if why:
                raise NotMeasured(why)
            process = stack.enter_context(
                Process({**base, "row": name, "peer": peer, "dtype": dtype}, folder)
            )
            facts = process.answer(args.compile_limit if peer == "compiled" else PATIENCE)
            ready[peer] = process
            return facts

        for peer in ("ours", *ROWS[name].peers):
            attempt(peer, partial(start, peer))
        for _ in range(args.rounds):
            for peer, process in list(ready.items()):
                times = results[peer].setdefault("seconds", [])
                attempt(peer, lambda p=process, t=times: {"seconds": t + p.measure(args.repeats)})
        for peer, process in list(ready.items()):
            attempt(peer, process.finish)
    for facts in results.values():
        if "seconds" in facts:
            facts["median_s"] = statistics.median(facts["seconds"])
            facts["examples_per_s"] = facts["batch"] / facts["median_s"]
    mine, *others = results.items()
    measured = {peer: facts for peer, facts in others if "median_s" in facts and "median_s" in mine[1]}
    row = {
        "title": ROWS[name].title,
        "dtype": dtype if not name.startswith("loop_") else None,
        "peers": results,
        "ratios": {peer: facts["median_s"] / mine[1]["median_s"] for peer, facts in measured.items()},
        "targets": dict(ROWS[name].targets.get(args.device, {})),
    }
    if "tokens" in mine[1]:
        row["agreement"] = {peer: agreement(mine[1], facts) for peer, facts in measured.items()}
        ends = [sum(token != 0 for token in caption) for image in mine[1]["tokens"] for caption in image]
        row["words"] = {"shortest": min(ends), "mean": statistics.mean(ends), "longest": max(ends)}
    for facts in results.values():
        facts.pop("tokens", None)
        facts.pop("scores", None)
    return row


def missing(row: str, peer: str, args: argparse.Namespace) -> str | None:
    """What a peer lacks on this machine."""
    if peer not in ("ours", "bare") and importlib.util.find_spec("torch") is None:
        return 'PyTorch is not installed: pip install -e ".[torch]"'
    if row == "loop_flickr8k":
        path = args.flickr8k or "../shared/data/flickr8k_96/data.parquet"
        if not (ROOT / path).is_file():
            return f"no Flickr8k at {path}: --flickr8k PATH names its Parquet file"
    return None


def agreement(mine: Mapping[str, Any], other: Mapping[str, Any]) -> dict:
    """How many sequences of a peer are token for token ours, rank by rank, and how far scores differ."""
    equal = np.all(np.array(mine["tokens"]) == np.array(other["tokens"]), axis=-1)
    result = {"equal": int(equal.sum()), "of": equal.size}
    if "scores" in other:
        apart = np.abs(np.array(mine["scores"]) - np.array(other["scores"]))
        result["largest_score_difference"] = float(apart.max())
        result["score_differences_where_unequal"] = [float(x) for x in apart[~equal]]
    return result


def machine(load: float) -> dict[str, Any]:
    """Where the numbers come from. load: processes that wanted to run before the benchmark began."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    cpu = found[1] if found else platform.processor()
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "load_before": load,
        "system": platform.system(),
        "versions": versions,
    }


def show(rows: Mapping[str, dict], console: Console) -> None:
    """Print the rows, a line a peer, then what the peers agree on and what is missing."""
    table = Table(title="A ratio is the peer's time by ours.", title_justify="left")
    for column in ("row", "peer"):
        table.add_column(column)
    for column in (
        "median ms",
        "examples/s",
        "ratio",
        "target",
        "first call s",
        "peak MiB",
        "kernels a word",
    ):
        table.add_column(column, justify="right")

    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    for row in rows.values():
        for peer, facts in row["peers"].items():
            title = row["title"] if peer == "ours" else ""
            if "not_measured" in facts:
                table.add_row(title, peer, "not measured")
                continue
            ratio, target = row["ratios"].get(peer), row["targets"].get(peer)
            short = ratio is not None and target is not None and ratio < target
            table.add_row(
                title,
                peer,
                f"{1e3 * facts['median_s']:,.2f}",
                f"{facts['examples_per_s']:,.1f}",
                number(ratio, ".2f") + (" [red]below[/red]" if short else ""),
                number(target, ".2f"),
                number(facts.get("first_s"), ".2f"),
                f"{facts['peak_bytes'] / 2**20:,.0f}",
                str(facts.get("kernels_a_word") or ""),
            )
        table.add_section()
    console.print(table)
    for name, row in rows.items():
        losses = {peer: facts["loss"] for peer, facts in row["peers"].items() if "loss" in facts}
        if losses:
            listed = ", ".join(f"{peer} {loss:.5f}" for peer, loss in losses.items())
            console.print(f"{name}: first loss {listed}")
        for peer, same in row.get("agreement", {}).items():
            line = f"{name}: {same['equal']} of {same['of']} captions of {peer} are ours, token for token"
            if "largest_score_difference" in same:
                line += f"; scores differ by {same['largest_score_difference']:.1e} at most"
            console.print(line)
        if "words" in row:
            ends = "{shortest} to {longest} words, {mean:.1f} on average".format(**row["words"])
            console.print(f"{name}: captions of {ends}")
        for peer, facts in row["peers"].items():
            if "not_measured" in facts:
                console.print(f"{name}: {peer} was not measured: {facts['not_measured']}", markup=False)


def captioner(args: argparse.Namespace) -> dict:
    """Measure the rows that were asked for; print and write them."""
    begin, load = time.perf_counter(), os.getloadavg()[0]
    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=140)
    if load > 0.5:
        console.print(f"Other processes keep {load:.1f} cores busy: do not trust the numbers.")
    sizes = QUICK if args.quick else FULL
    rows = [name for name in ROWS if not args.only or name in args.only]
    with tempfile.TemporaryDirectory() as folder:
        base = {
            "device": args.device,
            "threads": args.threads,
            "quick": args.quick,
            "sizes": sizes,
            "rows": rows,
            "inputs": str(Path(folder) / "inputs.npz"),
            "flickr8k": args.flickr8k,
        }
        if not all(name.startswith("loop_") for name in rows):
            console.print("making inputs and weights ...")
            spec = {**base, "row": "none", "peer": "inputs", "device": "cpu"}
            with Process(spec, Path(folder)) as process:
                try:
                    process.answer(PATIENCE)
                except NotMeasured as reason:
                    sys.exit(f"error: the inputs could not be made: {reason}")
        results = {}
        for name in rows:
            console.print(f"measuring {name} ({ROWS[name].title}) ...")
            results[name] = measure_row(name, base, args, Path(folder))
    report = {
        "model": "captioner",
        "command": shlex.join(["python", "scripts/benchmark.py", *args.argv]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "minutes": round((time.perf_counter() - begin) / 60, 1),
        "seed": SEED,
        "device": args.device,
        "threads": args.threads,
        "rounds": args.rounds,
        "repeats": args.repeats,
        "sizes": sizes,
        "machine": machine(load),
        "rows": results,
    }
    show(results, console)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        console.print(f"written to {args.out}")
    return report


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and run a model's benchmark."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["peer"]:  # how the benchmark starts itself again, no part of the command line
        return serve(json.loads(argv[1]))
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    models = parser.add_subparsers(dest="model", required=True, metavar="MODEL")
    sub = models.add_parser(
        "captioner",
        help="the attention captioner against PyTorch: training, decoding, the loop",
        description="The attention captioner against PyTorch, and the loop with its loader against its step.",
        epilog=HELP.format(rounds=ROUNDS),
        formatter_class=raw,
    )
    sub.add_argument("--device", default="cpu", choices=("cpu", "gpu"))
    sub.add_argument("--threads", type=int, help="cores of a process (default: 2; on gpu all)")
    sub.add_argument("--repeats", type=int, help="calls a round (default: 3; on gpu 20)")
    sub.add_argument("--only", nargs="+", choices=tuple(ROWS), metavar="ROW", help="leave the other rows out")
    sub.add_argument("--quick", action="store_true", help="tiny sizes: whether it works, not how fast it is")
    sub.add_argument(
        "--compile-limit",
        type=float,
        metavar="SECONDS",
        help="for torch.compile, which can take very long on a CPU (default: 600; quick: 1)",
    )
    sub.add_argument("--flickr8k", metavar="PATH", help="its Parquet file, if not where the config looks")
    sub.add_argument(
        "--out",
        type=Path,
        metavar="JSON",
        help="replaced (default: docs/benchmark_captioner.json, on gpu .._gpu.json; if quick none)",
    )
    args = parser.parse_args(argv)
    args.argv, args.rounds = argv, 2 if args.quick else ROUNDS
    if args.threads is None:
        args.threads = 2 if args.device == "cpu" else 0
    if args.repeats is None:
        args.repeats = 2 if args.quick else 3 if args.device == "cpu" else 20
    if args.compile_limit is None:
        args.compile_limit = 1 if args.quick else 600
    if args.out is None and not args.quick:
        suffix = "_gpu" if args.device == "gpu" else ""
        args.out = ROOT / "docs" / f"benchmark_captioner{suffix}.json"
    if args.flickr8k:
        args.flickr8k = str(Path(args.flickr8k).resolve())
    captioner(args)


if __name__ == "__main__":
    main()
