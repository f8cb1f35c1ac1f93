"""The attention captioner against PyTorch, and the loop with its loader against its bare compiled step."""

import itertools
import json
import re
import runpy
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.harness import (
    ROOT,
    SEED,
    Measure,
    Row,
    compile_ours,
    lacking,
    nested,
    start_torch,
    timed,
)
from rich.console import Console

BEAM = 5
SUMMARY = "the attention captioner against PyTorch: training, decoding, the loop"
OPTIONS = {
    "flickr8k": {
        "metavar": "PATH",
        "type": lambda path: str(Path(path).resolve()),
        "help": "its Parquet file, if not where the config looks",
    }
}
COLUMNS = {"kernels a word": ("kernels_a_word", "d")}

HELP = """\
Every row measures ours and its peers on the same inputs with the same weights: batch 32, 196 positions of
2048 features, hidden 512, vocabulary 9,490, 20 words.

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

Kernels a word are ours: the instructions inside the compiled loops over words that start one (a training
step has two loops, forwards and backwards). On a GPU training computes in bfloat16, decoding in float32.

examples:
  python scripts/benchmark.py captioner --quick                          # tiny sizes: does it work here?
  python scripts/benchmark.py captioner                                  # all rows on 2 cores; up to an hour
  python scripts/benchmark.py captioner --only train --compile-limit 60 --out train.json
  python scripts/benchmark.py captioner --device gpu --only train greedy beam

"""

LOOP_TARGETS = {"cpu": {"bare": 0.95}, "gpu": {"bare": 0.95}}
ROWS = {
    "train": Row(
        "training step, cached features",
        ("recompute", "hoisted", "compiled"),
        {"cpu": {"recompute": 4.0, "hoisted": 1.0}, "gpu": {"compiled": 1.2}},
        dtype="bfloat16",
    ),
    "greedy": Row("greedy decoding", ("batched",)),
    "beam": Row(
        f"beam search, {BEAM} wide", ("batched", "one_by_one"), {"cpu": {"batched": 2.0, "one_by_one": 20.0}}
    ),
    "end_to_end": Row("training step with ResNet-50", ("hoisted",), dtype="bfloat16"),
    "loop_scenes": Row("loop with loader, scenes", ("bare",), LOOP_TARGETS, dtype=None, inputs=False),
    "loop_flickr8k": Row("loop with loader, Flickr8k", ("bare",), LOOP_TARGETS, dtype=None, inputs=False),
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
SIZES = {"quick": QUICK, "cpu": FULL, "gpu": FULL}


def peer(spec: Mapping[str, Any]) -> tuple[dict, Measure]:
    """Make one peer ready: what is known of it, and the function that times it.

    Facts are "batch", where there are any "first_s", "loss", and "outputs" for `compare`.
    """
    if spec["row"].startswith("loop_"):
        return (loop if spec["peer"] == "ours" else bare_step)(spec)
    return (ours if spec["peer"] == "ours" else theirs)(spec)


def missing(spec: Mapping[str, Any]) -> str | None:
    """What a peer lacks on this machine."""
    if spec["peer"] not in ("ours", "bare") and (why := lacking("torch")):
        return why
    if spec["row"] == "loop_flickr8k":
        path = spec["flickr8k"] or "../shared/data/flickr8k_96/data.parquet"
        if not (ROOT / path).is_file():
            return f"no Flickr8k at {path}: --flickr8k PATH names its Parquet file"
    return None


def compare(mine: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]]) -> dict:
    """What a row of captions says beside times."""
    ends = [sum(token != 0 for token in caption) for image in mine["tokens"] for caption in image]
    return {
        "agreement": {peer: agreement(mine, other) for peer, other in others.items()},
        "words": {"shortest": min(ends), "mean": statistics.mean(ends), "longest": max(ends)},
    }


def agreement(mine: Mapping[str, Any], other: Mapping[str, Any]) -> dict:
    """How many sequences of a peer are token for token ours, rank by rank, and how far scores differ."""
    equal = np.all(np.array(mine["tokens"]) == np.array(other["tokens"]), axis=-1)
    result = {"equal": int(equal.sum()), "of": equal.size}
    if "scores" in other:
        apart = np.abs(np.array(mine["scores"]) - np.array(other["scores"]))
        result["largest_score_difference"] = float(apart.max())
        result["score_differences_where_unequal"] = [float(x) for x in apart[~equal]]
    return result


def remarks(row: Mapping[str, Any]) -> Iterator[str]:
    """Lines to print below the table."""
    for peer, same in row.get("agreement", {}).items():
        line = f"{same['equal']} of {same['of']} captions of {peer} are ours, token for token"
        if "largest_score_difference" in same:
            line += f"; scores differ by {same['largest_score_difference']:.1e} at most"
        yield line
    if "words" in row:
        yield "captions of {shortest} to {longest} words, {mean:.1f} on average".format(**row["words"])


# --- Ours -----------------------------------------------------------------------------------------


def make_task(sizes: Mapping[str, Any], row: str, dtype: str, words: float) -> Any:
    """The captioning task of a row; without its tower where features are cached.

    words: target words an image. The task shares its penalty among the words, the peers among the images;
      with this as lambda both are the same.
    """
    from types import SimpleNamespace

    import jax

    from mmgen_jax.core import optimizer, sharding
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
        layout=sharding.make(devices=jax.devices()[:1]),
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
        compiled, facts = compile_ours(task.train_step, (state, batch), donate=True)

        def call():
            nonlocal state
            state, metrics = jax.block_until_ready(compiled(state, batch))
            return metrics

        begin = time.perf_counter()
        metrics = call()
        facts["loss"] = sum(float(metrics[name].compute()) for name in ("loss", "attention_penalty"))
    else:
        args = params, variables, batch, jax.random.key(SEED)
        compiled, facts = compile_ours(task.predict["generate"], args)

        def call():
            return jax.block_until_ready(compiled(*args))

        begin = time.perf_counter()
        found = call()
        names = {"tokens": "tokens", "scores": "log_prob"}
        facts["outputs"] = {name: np.asarray(found[key]).tolist() for name, key in names.items()}
    facts["kernels_a_word"] = kernels_a_word(compiled.as_text(), sizes["words"])
    facts |= {"first_s": facts["compile_s"] + time.perf_counter() - begin, "batch": sizes["batch"]}
    return facts, timed(call)


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

    device = start_torch(spec)
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
                return {"outputs": {"tokens": peers.greedy(model, memory, sizes["words"])[:, None].tolist()}}
            tokens, scores = peers.beam(model, memory, BEAM, sizes["words"], batched=peer == "batched")
            return {"outputs": {"tokens": tokens.tolist(), "scores": scores.tolist()}}

    begin = time.perf_counter()
    found = call()
    facts = {**found, "first_s": time.perf_counter() - begin, "batch": sizes["batch"]}
    return facts, timed(call)
