"""The contrastive dual encoder against PyTorch: training steps, embedding, the loss alone, retrieval scoring."""

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
from benchmarks.harness import (
    SEED,
    Measure,
    Row,
    compile_ours,
    lacking,
    nested,
    start_torch,
    timed,
    train_ours,
)

TEMPERATURE = 0.07
MATRICES = 3  # N x N of float32 that a plain loss and its gradient hold at once, at the least
SUMMARY = "the contrastive dual encoder against PyTorch: training, embedding, the loss alone, scoring"
OPTIONS: dict[str, dict] = {}
COLUMNS = {"GFLOP/s": ("gflops_per_s", ",.0f"), "MFU": ("mfu", ".1%")}

HELP = """\
Every row measures ours and its peers on the same inputs with the same weights: CLIP's ViT-B/32 and RN50, images
of 224 pixels, texts of 77 tokens; the loss and scoring alone with 512 features.

rows:
  train_vit      forward, symmetric InfoNCE, backward, Adam update: ViT-B/32. Peers: "eager", plain PyTorch;
                 "transformers", its CLIPModel; "compiled", the plain one under torch.compile
  train_rn50     the same for CLIP's ResNet-50
  embed_image    images a second, ViT-B/32, no gradient
  embed_text     texts a second
  loss_4k        value and gradient of the loss alone, 4,096 pairs: blockwise against "plain", ours with the whole
                 matrix, and against "torch", that in PyTorch
  loss_16k       16,384 pairs
  loss_64k       65,536 pairs
  loss_1m        1,048,576 pairs (GPU only); "towers" is a training step's time for so many pairs, in batches
  score          ranks of 25,000 texts for 5,000 images and the other way round, which must be equal

FLOP/s are those of matrix products and convolutions; MFU is their share of the device's bfloat16 peak. On a
GPU everything but scoring computes in bfloat16, on batches that are on the device already.

examples:
  python scripts/benchmark.py dual_encoder --quick                          # tiny sizes: does it work here?
  python scripts/benchmark.py dual_encoder --compile-limit 120              # all rows on 2 cores
  python scripts/benchmark.py dual_encoder --only loss_4k loss_16k --out loss.json
  python scripts/benchmark.py dual_encoder --device gpu --repeats 5

"""

# Whose names each model's weights are written in: {model: {library: table in mmgen_jax/pretrained/names.py}}.
DIALECTS = {
    "vit": {"openai": "openai_vit", "transformers": "hf_clip"},
    "rn50": {"openai": "openai_resnet"},
}
OURS = ("ours", "plain", "towers")
PLAIN = ("plain", "torch")
LOSS_TARGETS = {"plain": 1 / 1.15}
ROWS = {
    "train_vit": Row(
        "training step, ViT-B/32",
        ("eager", "transformers", "compiled"),
        {"cpu": {"eager": 1.0}, "gpu": {"compiled": 1.2}},
        dtype="bfloat16",
    ),
    "train_rn50": Row(
        "training step, RN50", ("eager", "compiled"), {"cpu": {"eager": 0.6}}, dtype="bfloat16"
    ),
    "embed_image": Row("images to embeddings, ViT-B/32", ("eager", "transformers"), dtype="bfloat16"),
    "embed_text": Row("texts to embeddings", ("eager", "transformers"), dtype="bfloat16"),
    **{
        f"loss_{name}": Row(
            f"loss of {pairs:,} pairs",
            PLAIN,
            {"cpu": LOSS_TARGETS, "gpu": LOSS_TARGETS},
            dtype="bfloat16",
            inputs=False,
            calls=calls,
        )
        for name, pairs, calls in (("4k", 4096, None), ("16k", 16_384, None), ("64k", 65_536, 1))
    },
    "loss_1m": Row(
        "loss of 1,048,576 pairs", ("towers",), {"gpu": {"towers": 10.0}}, dtype="bfloat16", calls=1
    ),
    "score": Row("ranks, 5,000 x 25,000", ("torch",), {"cpu": {"torch": 1.0}}, inputs=False),
}

# A model's config is given as the task takes it, without the names of its parts.
FULL = {
    "models": {
        "vit": {
            "image": {"name": "vit", "variant": "clip_vit_b32"},
            "text": {"variant": "clip_b"},
            "embed_dim": 512,
        },
        "rn50": {
            "image": {"name": "resnet", "variant": "clip_rn50"},
            "text": {"variant": "clip_b"},
            "embed_dim": 1024,
            "image_head": "none",
        },
    },
    "batch": {"train_vit": 16, "train_rn50": 8, "embed_image": 32, "embed_text": 32, "loss_1m": 16},
    "image": 224,
    "words": 77,
    "vocab": 49_408,
    "pairs": {"loss_4k": 4096, "loss_16k": 16_384, "loss_64k": 65_536, "loss_1m": 2**20},
    "features": 512,
    "block": 1024,
    "images": 5000,
    "captions": 5,
}
GPU = {
    **FULL,
    "batch": {"train_vit": 256, "train_rn50": 256, "embed_image": 256, "embed_text": 256, "loss_1m": 256},
    "block": 8192,
}
TEXT = {"variant": "clip_b", "width": 64, "depth": 1, "heads": 1}
QUICK = {
    "models": {
        "vit": {
            "image": {
                "name": "vit",
                "variant": "clip_vit_b32",
                "width": 64,
                "depth": 1,
                "heads": 1,
                "patch": 16,
                "image_size": 32,
            },
            "text": TEXT,
            "embed_dim": 16,
        },
        "rn50": {
            "image": {
                "name": "resnet",
                "variant": "clip_rn50",
                "stages": (1, 1),
                "width": 8,
                "image_size": 32,
                "pool_features": 16,
            },
            "text": TEXT,
            "embed_dim": 16,
            "image_head": "none",
        },
    },
    "batch": dict.fromkeys(("train_vit", "train_rn50", "embed_image", "embed_text", "loss_1m"), 4),
    "image": 32,
    "words": 7,
    "vocab": 50,
    "pairs": {"loss_4k": 40, "loss_16k": 48, "loss_64k": 56, "loss_1m": 64},
    "features": 16,
    "block": 16,
    "images": 20,
    "captions": 5,
}
SIZES = {"quick": QUICK, "cpu": FULL, "gpu": GPU}


def peer(spec: Mapping[str, Any]) -> tuple[dict, Measure]:
    """See captioner.py. Ours are "ours", "plain" and "towers"."""
    if spec["peer"] == "towers":
        return towers(spec)
    ours, theirs = {
        "train": (our_model, their_model),
        "embed": (our_model, their_model),
        "loss": (our_loss, their_loss),
        "score": (our_ranks, their_ranks),
    }[spec["row"].partition("_")[0]]
    facts, call, read = (ours if spec["peer"] in OURS else theirs)(spec)
    begin = time.perf_counter()
    found = call()
    facts["first_s"] = facts.get("compile_s", 0.0) + time.perf_counter() - begin
    return {**facts, **read(found)}, timed(call)


def missing(spec: Mapping[str, Any]) -> str | None:
    """What a peer lacks on this machine."""
    name = "transformers" if spec["peer"] == "transformers" else "torch"
    if spec["peer"] not in OURS and (why := lacking(name)):
        return why
    if spec["device"] == "gpu" or spec["quick"]:
        return None
    if spec["row"] == "loss_1m":
        return "it takes hours on a CPU"
    if spec["peer"] in PLAIN and spec["row"] in spec["sizes"]["pairs"]:
        matrix = 4 * spec["sizes"]["pairs"][spec["row"]] ** 2
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if MATRICES * matrix > memory:
            return (
                f"{MATRICES} or more matrices of {matrix / 2**30:.0f} GiB do not fit the machine's "
                f"{memory / 2**30:.0f} GiB"
            )
    return None


def compare(mine: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]]) -> dict:
    """How many ranks of a peer are ours, or how far its embeddings or gradients lie apart from ours."""

    def agreement(a: np.ndarray, b: np.ndarray) -> dict:
        if a.dtype.kind == "i":
            return {"equal": int((a == b).sum()), "of": a.size}
        return {"largest_difference": float(np.abs(a - b).max() / np.abs(a).max())}

    return {
        "agreement": {
            peer: {name: agreement(np.array(mine[name]), np.array(found[name])) for name in mine}
            for peer, found in others.items()
        }
    }


def remarks(row: Mapping[str, Any]) -> Iterator[str]:
    """Lines to print below the table."""
    for peer, found in row.get("agreement", {}).items():
        for name, same in found.items():
            if "of" in same:
                yield f"{same['equal']} of {same['of']} {name} of {peer} are ours"
            else:
                apart = same["largest_difference"]
                yield f"{name} of {peer} differ from ours by {apart:.1e} of the largest value at most"


# --- Ours -----------------------------------------------------------------------------------------


def make_task(sizes: Mapping[str, Any], model: str, dtype: str) -> Any:
    """The contrastive task of sizes["models"][model]."""
    import jax

    from mmgen_jax.core import optimizer, sharding
    from mmgen_jax.tasks.contrastive import Contrastive

    config = sizes["models"][model]
    text = {"name": "text_transformer", **config["text"], "max_len": sizes["words"]}
    return Contrastive(
        model={**config, "text": text, "temperature": TEMPERATURE, "pixels": "clip"},
        loss={"name": "info_nce"},
        dtype=dtype,
        optimizer=optimizer.make(name="adamw", learning_rate=5e-4, schedule="constant", steps=1),
        layout=sharding.make(devices=jax.devices()[:1]),
        context={"tokenizer": SimpleNamespace(vocab_size=sizes["vocab"], eos=sizes["vocab"] - 1)},
    )


def make_inputs(spec: Mapping[str, Any]) -> None:
    """Write images, texts, and each model's weights in everybody's names to spec["inputs"]."""
    import jax
    from flax.traverse_util import flatten_dict

    from mmgen_jax.pretrained import names

    sizes, rng = spec["sizes"], np.random.default_rng(SEED)
    batch, words, eos = max(sizes["batch"].values()), sizes["words"], sizes["vocab"] - 1
    tokens = rng.integers(1, eos - 1, (batch, words)).astype(np.int32)
    tokens[:, 0] = eos - 1
    for row, end in zip(tokens, rng.integers(2, words, batch), strict=True):
        row[end:] = 0
        row[end] = eos
    image = rng.integers(0, 256, (batch, sizes["image"], sizes["image"], 3), np.uint8)
    arrays = {"image": image, "tokens": tokens}
    for model in dict.fromkeys(model_of(row) for row in spec["rows"] if ROWS[row].inputs):
        task = make_task(sizes, model, "float32")
        shapes = jax.eval_shape(task.networks, jax.random.key(SEED), our_batch(arrays, 2))["model"]
        shapes = {
            f"{kind}/{name}": x.shape
            for kind in shapes
            for name, x in flatten_dict(shapes[kind], sep="/").items()
        }
        weights = {"ours": {name: random_weight(name, shape, rng) for name, shape in shapes.items()}}
        # In the tables parameters and batch statistics are one tree.
        flat = {name.partition("/")[2]: value for name, value in weights["ours"].items()}
        for library, dialect in DIALECTS[model].items():
            weights[library] = {}
            for leaf in names.concrete(names.DIALECTS[dialect].table, flat, ()):
                theirs = leaf.write(*(flat[name] for name in leaf.ours))
                weights[library] |= dict(zip(leaf.theirs, theirs, strict=True))
        for library, tree in weights.items():
            arrays |= {f"{model}/{library}/{name}": value for name, value in tree.items()}
    np.savez(spec["inputs"], **arrays)


def random_weight(name: str, shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """Such that no part of a model is without effect, as a fresh ResNet's blocks are, whose last scale is zero."""
    middle = {"scale": 1.0, "var": 1.0, "logit_scale": -math.log(TEMPERATURE)}
    leaf = name.rpartition("/")[2]
    spread = math.prod(shape[:-1]) ** -0.5 if leaf == "kernel" else 0.05
    return np.float32(middle.get(leaf, 0.0)) + np.float32(spread) * rng.standard_normal(shape, np.float32)


def our_batch(data: Mapping[str, np.ndarray], rows: int) -> dict[str, Any]:
    """A batch as the loader makes it, on the device."""
    import jax

    ones = np.ones(rows, np.float32)
    batch = {
        "image": data["image"][:rows],
        "tokens": data["tokens"][:rows, None],
        "text_mask": ones[:, None],
        "cut": 0 * ones[:, None],
        "mask": ones,
        "index": np.arange(rows, dtype=np.int32),
    }
    return jax.tree.map(jax.numpy.asarray, batch)


def model_of(row: str) -> str:
    """Which of the two models a row measures."""
    return "rn50" if row == "train_rn50" else "vit"


def our_model(spec: Mapping[str, Any]) -> tuple[dict, Callable, Callable]:
    """The rows train and embed: facts, a call to time, and a function that reads facts from what the call gives."""
    import jax
    import jax.numpy as jnp

    sizes, row, data = spec["sizes"], spec["row"], np.load(spec["inputs"])
    rows, model = sizes["batch"][row], model_of(row)
    task = make_task(sizes, model, spec["dtype"])
    variables = jax.tree.map(jnp.asarray, nested(data, f"{model}/ours"))
    batch = our_batch(data, rows)
    if row.startswith("embed_"):
        params = {"model": variables.pop("params")}
        args = params, {"model": variables}, batch, jax.random.key(SEED)
        compiled, facts = compile_ours(task.predict[row], args)
        kind = row.removeprefix("embed_")

        def read(found):
            return {"outputs": {"embeddings": np.asarray(found[kind]).reshape(rows, -1)[:8].tolist()}}

        return {**facts, "batch": rows}, lambda: jax.block_until_ready(compiled(*args)), read
    facts, call = train_ours(task, variables, batch)
    return {**facts, "batch": rows}, call, lambda found: {"loss": float(found["loss"].compute())}


def towers(spec: Mapping[str, Any]) -> tuple[dict, Measure]:
    """A training step on batches, as often as the row's loss has pairs of them."""
    sizes = spec["sizes"]
    facts, measure = peer({**spec, "row": "train_vit", "peer": "ours"})
    times = sizes["pairs"][spec["row"]] / facts["batch"]
    facts = {"batch": sizes["pairs"][spec["row"]], "first_s": facts["first_s"]}
    return facts, lambda repeats: [seconds * times for seconds in measure(repeats)]


def embeddings(spec: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors of the row's pairs, each text near its image. -> two of float32 [N, F]"""
    rng, shape = np.random.default_rng(SEED), (spec["sizes"]["pairs"][spec["row"]], spec["sizes"]["features"])
    image = rng.normal(size=shape).astype(np.float32)
    text = image + 2 * rng.normal(size=shape).astype(np.float32)
    return tuple(x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))


def gradient_facts(loss: Any, image: Any, text: Any, scale: Any) -> dict:
    """What a loss row's processes say of their first result; of the gradients a few rows."""
    rows = np.concatenate([np.asarray(x[:8], np.float32) for x in (image, text)])
    return {"loss": float(loss), "scale_gradient": float(scale), "outputs": {"gradients": rows.tolist()}}


def our_loss(spec: Mapping[str, Any]) -> tuple[dict, Callable, Callable]:
    """The loss rows, as `our_model`."""
    import jax
    import jax.numpy as jnp

    from mmgen_jax.losses.contrastive import info_nce

    block = spec["sizes"]["block"] if spec["peer"] == "ours" else 0

    def objective(image, text, scale):
        return jnp.mean(info_nce(image, text, scale, block_size=block))

    image, text = (jnp.asarray(x, spec["dtype"]) for x in embeddings(spec))
    args = image, text, jnp.float32(1 / TEMPERATURE)
    compiled, facts = compile_ours(jax.value_and_grad(objective, (0, 1, 2)), args)

    def read(found):
        loss, gradients = found
        return gradient_facts(loss, *gradients)

    return {**facts, "batch": len(image)}, lambda: jax.block_until_ready(compiled(*args)), read


def retrieval(sizes: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings [., F] and ids of images and of their captions. -> image, text, image_id, text_id

    All numbers are small integers, so that inner products are exact in any order of summing, and ranks must be equal.
    """
    rng, features = np.random.default_rng(SEED), sizes["features"]
    image_id = np.arange(sizes["images"])
    text_id = np.repeat(image_id, sizes["captions"])
    image = rng.normal(0, 30, (len(image_id), features))
    text = 0.2 * image[text_id] + rng.normal(0, 30, (len(text_id), features))
    image, text = (np.clip(np.rint(x), -127, 127).astype(np.float32) for x in (image, text))
    return image, text, image_id, text_id


def our_ranks(spec: Mapping[str, Any]) -> tuple[dict, Callable, Callable]:
    """The row score, as `our_model`: from arrays on the host to ranks on the host."""
    from mmgen_jax.ranking import ranks

    image, text, image_id, text_id = retrieval(spec["sizes"])

    def call():
        return ranks(image, text, image_id, text_id), ranks(text, image, text_id, image_id)

    return {"batch": len(image) + len(text)}, call, rank_facts


def rank_facts(found: tuple[np.ndarray, np.ndarray]) -> dict:
    """Of both directions."""
    return {"outputs": {"ranks": np.concatenate(found).tolist()}}


# --- PyTorch --------------------------------------------------------------------------------------


def their_model(spec: Mapping[str, Any]) -> tuple[dict, Callable, Callable]:
    """The rows train and embed, as `our_model`."""
    import torch
    from peers import dual_encoder_torch as peers

    device, sizes, row, peer = start_torch(spec), spec["sizes"], spec["row"], spec["peer"]
    data, rows = np.load(spec["inputs"]), sizes["batch"][row]
    image = torch.tensor(peers.pixels(data["image"][:rows]), device=device)
    tokens = torch.tensor(data["tokens"][:rows], device=device).long()
    make, library = (peers.transformers_clip, peer) if peer == "transformers" else (peers.CLIP, "openai")
    prefix = f"{model_of(row)}/{library}/"
    weights = {name.removeprefix(prefix): data[name] for name in data if name.startswith(prefix)}
    model = make(weights, eos=sizes["vocab"] - 1)
    if row.startswith("train_"):
        options = {"device": device, "dtype": spec["dtype"], "learning_rate": 5e-4}
        step = peers.make_train_step(model, compiled=peer == "compiled", **options)
        return {"batch": rows}, lambda: float(step(image, tokens)), lambda loss: {"loss": loss}
    embed = peers.make_embed(model, row, device=device, dtype=spec["dtype"])
    inputs = image if row == "embed_image" else tokens

    def read(found):
        return {"outputs": {"embeddings": found[:8].cpu().tolist()}}

    return {"batch": rows}, lambda: embed(inputs), read


def their_loss(spec: Mapping[str, Any]) -> tuple[dict, Callable, Callable]:
    """The loss rows, as `our_model`."""
    import torch
    from peers import dual_encoder_torch as peers

    device = start_torch(spec)
    dtype = getattr(torch, spec["dtype"])
    image, text = (torch.tensor(x, device=device, dtype=dtype) for x in embeddings(spec))
    scale = torch.tensor(1 / TEMPERATURE, device=device)

    def read(found):
        return gradient_facts(*(x.float().cpu() for x in found))

    return (
        {"batch": len(image)},
        peers.waiting(partial(peers.loss_gradients, image, text, scale), device),
        read,
    )


def their_ranks(spec: Mapping[str, Any]) -> tuple[dict, Callable, Callable]:
    """The row score, as `our_ranks`."""
    import torch
    from peers import dual_encoder_torch as peers

    device = start_torch(spec)
    arrays = retrieval(spec["sizes"])

    def call():
        image, text, image_id, text_id = (torch.as_tensor(x, device=device) for x in arrays)
        both = peers.ranks(image, text, image_id, text_id), peers.ranks(text, image, text_id, image_id)
        return tuple(x.cpu().numpy() for x in both)

    return {"batch": len(arrays[0]) + len(arrays[1])}, call, rank_facts
