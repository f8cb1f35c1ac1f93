"""Question answering against PyTorch: a training step of BERT, a ViT and a Transformer over the tokens of both."""

import time
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
from benchmarks.dual_encoder import random_weight
from benchmarks.harness import SEED, Measure, Row, lacking, nested, start_torch, timed, train_ours

from mmgen_jax.pretrained import names

LEARNING_RATE = 1e-4
SUMMARY = "BERT + ViT + fusion against PyTorch: training"
OPTIONS: dict[str, dict] = {}
COLUMNS = {"GFLOP/s": ("gflops_per_s", ",.0f"), "MFU": ("mfu", ".1%")}

HELP = """\
Ours and its peers get the same inputs and weights: the model of configs/vqa_v2_bert_vit.py (BERT base, ViT-B/16, six blocks over
the tokens of both, 3,129 answers) without dropout, images of 224 pixels, questions of 40 tokens.

rows:
  train          forward, binary cross-entropy of soft scores, backward, Adam update. Peers: "transformers", its BertModel and
                 ViTModel with PyTorch's TransformerEncoder as fusion; "compiled", that under torch.compile

FLOP/s are those of matrix products; MFU is their share of the device's bfloat16 peak. On a GPU everything computes in bfloat16.

examples:
  python scripts/benchmark.py question_answering --quick                    # tiny sizes: does it work here?
  python scripts/benchmark.py question_answering --compile-limit 120        # on 2 cores
  python scripts/benchmark.py question_answering --device gpu --repeats 5

"""

ROWS = {
    "train": Row(
        "training step, BERT base + ViT-B/16 + merged",
        ("transformers", "compiled"),
        {"cpu": {"transformers": 1.0}, "gpu": {"compiled": 1.2}},
        dtype="bfloat16",
    ),
}
# In PyTorch all attention has heads of 64 features, as in the published sizes.
FULL = {
    "image": {"variant": "vit_b", "image_size": 224},
    "question": {"variant": "bert_base"},
    "fusion": {"features": 768, "layers": 6, "heads": 12, "mlp_ratio": 4.0},
    "hidden": 1536,
    "answers": 3129,
    "batch": 4,
    "words": 40,
    "vocab": 30_522,
}
GPU = {**FULL, "batch": 64}
SMALL = {"width": 64, "depth": 1, "heads": 1}
QUICK = {
    "image": {**SMALL, "image_size": 32},
    "question": {"variant": "bert_base", **SMALL, "max_len": 7},
    "fusion": {"features": 64, "layers": 1, "heads": 1, "mlp_ratio": 4.0},
    "hidden": 16,
    "answers": 11,
    "batch": 4,
    "words": 7,
    "vocab": 50,
}
# Our names of the fusion and the head, and those of peers/question_answering_torch.py.
REST = (
    *names.under(
        "fusion/",
        "",
        names.array("summary", "summary"),
        names.dense("project{I}", "project.{i}"),
        names.under(
            "block{I}/",
            "encoder.layers.{i}.",
            names.norm("attention_norm", "norm1"),
            names.dense("qkv", "self_attn.in_proj", "_"),
            names.dense("out", "self_attn.out_proj"),
            names.norm("mlp_norm", "norm2"),
            names.dense("mlp_in", "linear1"),
            names.dense("mlp_out", "linear2"),
        ),
        names.norm("norm", "norm"),
    ),
    *names.under("head/", "", names.dense("hidden", "hidden"), names.dense("logits", "logits")),
)
SIZES = {"quick": QUICK, "cpu": FULL, "gpu": GPU}


def peer(spec: Mapping[str, Any]) -> tuple[dict, Measure]:
    """See captioner.py."""
    facts, call = (our_model if spec["peer"] == "ours" else their_model)(spec)
    begin = time.perf_counter()
    loss = call()
    first = facts.get("compile_s", 0.0) + time.perf_counter() - begin
    return {**facts, "batch": spec["sizes"]["batch"], "first_s": first, "loss": loss}, timed(call)


def missing(spec: Mapping[str, Any]) -> str | None:
    """What a peer lacks on this machine."""
    return None if spec["peer"] == "ours" else lacking("torch") or lacking("transformers")


def remarks(row: Mapping[str, Any]) -> Iterator[str]:
    """Nothing to add to the table and the losses."""
    return iter(())


def make_task(sizes: Mapping[str, Any], dtype: str) -> Any:
    """The task of the sizes."""
    import jax

    from mmgen_jax.core import optimizer, sharding
    from mmgen_jax.tasks.question_answering import QuestionAnswering

    image = {
        "name": "vit",
        "class_token": True,
        **sizes["image"],
    }  # which transformers' has, and the grid leaves out
    question = {"name": "text_transformer", "pool": "none", **sizes["question"]}
    return QuestionAnswering(
        model={
            "towers": {"image": image, "question": question},
            "modalities": ("image", "question"),
            "fusion": {"name": "merged", **sizes["fusion"]},
            "hidden": sizes["hidden"],
            "position": False,
            "pixels": "half",
        },
        loss="sigmoid",
        dtype=dtype,
        optimizer=optimizer.make(name="adamw", learning_rate=LEARNING_RATE, schedule="constant", steps=1),
        layout=sharding.make(devices=jax.devices()[:1]),
        context={
            "tokenizer": SimpleNamespace(vocab_size=sizes["vocab"], eos=sizes["vocab"] - 1),
            "answers": range(sizes["answers"]),
        },
    )


def make_inputs(spec: Mapping[str, Any]) -> None:
    """Write a batch, and the weights in everybody's names, to spec["inputs"]."""
    import jax
    from flax.traverse_util import flatten_dict

    sizes, rng = spec["sizes"], np.random.default_rng(SEED)
    rows, words, eos, side = sizes["batch"], sizes["words"], sizes["vocab"] - 1, sizes["image"]["image_size"]
    question = rng.integers(1, eos, (rows, words)).astype(np.int32)
    for row, end in zip(question, rng.integers(2, words, rows), strict=True):
        row[end:] = 0
        row[end] = eos
    arrays = {
        "image": rng.integers(0, 256, (rows, side, side, 3), np.uint8),
        "question": question,
        "answer": (rng.random((rows, sizes["answers"])) < 3 / sizes["answers"]).astype(np.float32),
    }
    shapes = jax.eval_shape(make_task(sizes, "float32").networks, jax.random.key(SEED), our_batch(arrays))
    flat = {
        name: random_weight(name, x.shape, rng)
        for name, x in flatten_dict(shapes["model"]["params"], sep="/").items()
    }
    arrays |= {f"ours/params/{name}": value for name, value in flat.items()}

    def written(dialect: str, tower: str, side: str) -> dict[str, np.ndarray]:
        under = f"towers_{tower}/"
        own = {f"{side}/{name.removeprefix(under)}": x for name, x in flat.items() if name.startswith(under)}
        return {f"{tower}/{name}": x for name, x in names.to_theirs(own, dialect).items()}

    arrays |= written("hf_vit", "image", "image") | written("hf_bert", "question", "text")
    for leaf in names.concrete(REST, flat, ()):
        theirs = leaf.write(*(flat[name] for name in leaf.ours))
        arrays |= {f"rest/{name}": x for name, x in zip(leaf.theirs, theirs, strict=True)}
    np.savez(spec["inputs"], **arrays)


def our_batch(data: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """A batch as the loader makes it, on the device."""
    import jax.numpy as jnp

    batch = {name: jnp.asarray(data[name]) for name in ("image", "question", "answer")}
    rows = len(data["image"])
    return {**batch, "mask": jnp.ones(rows), "index": jnp.arange(rows, dtype=jnp.int32)}


def our_model(spec: Mapping[str, Any]) -> tuple[dict, Callable[[], float]]:
    """Facts, and a training step that gives its loss."""
    import jax
    import jax.numpy as jnp

    data = np.load(spec["inputs"])
    variables = jax.tree.map(jnp.asarray, nested(data, "ours"))
    facts, step = train_ours(make_task(spec["sizes"], spec["dtype"]), variables, our_batch(data))
    return facts, lambda: float(step()["loss"].compute())


def their_model(spec: Mapping[str, Any]) -> tuple[dict, Callable[[], float]]:
    """As `our_model`, in PyTorch."""
    import torch
    from peers import question_answering_torch as peers
    from peers import training

    device, data = start_torch(spec), np.load(spec["inputs"])
    parts = {
        part: {name.removeprefix(f"{part}/"): data[name] for name in data if name.startswith(f"{part}/")}
        for part in ("image", "question", "rest")
    }
    model = peers.QuestionAnswering(
        parts["image"], parts["question"], parts["rest"], eos=spec["sizes"]["vocab"] - 1
    )
    step = training.stepper(
        model.train(),
        peers.loss,
        compiled=spec["peer"] == "compiled",
        device=device,
        dtype=spec["dtype"],
        learning_rate=LEARNING_RATE,
    )
    inputs = (
        torch.tensor(peers.pixels(data["image"]), device=device),
        torch.tensor(data["question"], device=device).long(),
        torch.tensor(data["answer"], device=device),
    )
    return {}, lambda: float(step(*inputs))
