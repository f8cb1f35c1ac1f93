"""Space-time Transformers: divided attention against joint attention, by the number of frames."""

import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from benchmarks.harness import SEED, Measure, Row, compile_ours, timed

SUMMARY = "divided against joint space-time attention, by frames: time and memory"
OPTIONS: dict[str, dict] = {}
COLUMNS = {"temporaries MiB": ("temporary_mib", ",.0f"), "GFLOP/s": ("gflops_per_s", ",.0f")}

HELP = """\
"ours" is nn/video_transformer.py with attention="divided" (TimeSformer: over time, then over space), "joint" the same file with
attention="joint" (every token looks at every other). Both have the same width and depth and read the same clips; they do not
compute the same: divided has a second attention in each block, with parameters of its own.

rows:
  frames_4       forward, cross-entropy over 400 classes, backward; clips of 4 frames
  frames_8       of 8
  frames_16      of 16

Temporaries are what the compiled program holds beside its inputs and outputs, as the compiler plans it: on a CPU
the peak MiB of a process are those of compiling as well. On a CPU the tower is ViT-S at 224 pixels and one clip a step, on a GPU
ViT-B and eight, in bfloat16.

examples:
  python scripts/benchmark.py video --quick                                 # tiny sizes: does it work here?
  python scripts/benchmark.py video --only frames_4 frames_8                # on 2 cores
  python scripts/benchmark.py video --device gpu --repeats 5

"""

FRAMES = {f"frames_{count}": count for count in (4, 8, 16)}
ROWS = {
    row: Row(f"forward and backward, {count} frames", ("joint",), dtype="bfloat16", inputs=False)
    for row, count in FRAMES.items()
}
CLASSES = 400  # of Kinetics-400
FULL = {"tower": {"width": 384, "depth": 12, "heads": 6, "image_size": 224}, "batch": 1}
GPU = {"tower": {"width": 768, "depth": 12, "heads": 12, "image_size": 224}, "batch": 8}
QUICK = {"tower": {"width": 16, "depth": 1, "heads": 2, "image_size": 32}, "batch": 2}
SIZES = {"quick": QUICK, "cpu": FULL, "gpu": GPU}


def peer(spec: Mapping[str, Any]) -> tuple[dict, Measure]:
    """See captioner.py."""
    import jax
    import jax.numpy as jnp
    import optax

    from mmgen_jax.core import flops, registry

    sizes, rng = spec["sizes"], np.random.default_rng(SEED)
    rows, frames, side = sizes["batch"], FRAMES[spec["row"]], sizes["tower"]["image_size"]
    attention = {"ours": "divided"}.get(spec["peer"], spec["peer"])
    dtype = jnp.dtype(spec["dtype"])
    fields = {
        **sizes["tower"],
        "attention": attention,
        "frames": frames,
        "class_token": True,
        "pool": "class",
    }
    tower = registry.build("nn", {"name": "video_transformer", **fields}, dtype=dtype)
    clip = jnp.asarray(rng.standard_normal((rows, frames, side, side, 3), np.float32), dtype)
    label = jnp.asarray(rng.integers(0, CLASSES, rows), jnp.int32)
    head = (
        rng.standard_normal((sizes["tower"]["width"], CLASSES), np.float32) / sizes["tower"]["width"] ** 0.5
    )
    params = jax.jit(lambda key: tower.init(key, clip, train=False))(jax.random.key(SEED))
    args = (params, jnp.asarray(head)), clip, label

    def loss(params, clip, label):
        tower_params, head = params
        logits = tower.apply(tower_params, clip, train=True).astype(jnp.float32) @ head
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, label))

    step = jax.value_and_grad(loss)
    compiled, facts = compile_ours(step, args)
    begin = time.perf_counter()
    value, _ = jax.block_until_ready(compiled(*args))
    facts |= {
        "batch": rows,
        "first_s": facts["compile_s"] + time.perf_counter() - begin,
        "temporary_mib": facts["temporary_bytes"] / 2**20,
        "flops": flops.count(jax.make_jaxpr(step)(*args)),
        "peak_flops": flops.peak(jax.devices()[0]),
        "cross_entropy": float(value),
    }
    return facts, timed(lambda: jax.block_until_ready(compiled(*args)))


def missing(spec: Mapping[str, Any]) -> str | None:
    """Whether all pairs of tokens fit the machine, where the compiler holds them: float32, once a head and a block."""
    tower = spec["sizes"]["tower"]
    if spec["peer"] != "joint" or spec["device"] == "gpu":
        return None
    tokens = FRAMES[spec["row"]] * (tower["image_size"] // 16) ** 2 + 1
    pairs = 4 * spec["sizes"]["batch"] * tower["depth"] * tower["heads"] * tokens**2
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if pairs > memory:
        return (
            f"all pairs of tokens, {pairs / 2**30:.0f} GiB, do not fit the machine's {memory / 2**30:.0f} GiB"
        )
    return None


def remarks(row: Mapping[str, Any]) -> Iterator[str]:
    """How much more joint attention holds."""
    ours, joint = row["peers"]["ours"], row["peers"].get("joint", {})
    if "temporary_bytes" in joint and "temporary_bytes" in ours:
        yield f"joint holds {joint['temporary_bytes'] / ours['temporary_bytes']:.2f} times the temporaries of divided"
