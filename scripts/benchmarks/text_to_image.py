"""The DCGAN against PyTorch: training, sampling; and the statistics of FID against numpy."""

import time
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
from benchmarks.harness import SEED, Measure, Row, compile_ours, lacking, nested, start_torch, timed

SUMMARY = "the DCGAN against PyTorch: training, sampling, statistics of FID"
OPTIONS = {
    "batch": {"type": int, "help": "images in a batch (default: 128; quick: 4), for slow machines"},
}
COLUMNS = {
    "GFLOP/s": ("gflops_per_s", ",.0f"),
    "MFU": ("mfu", ".1%"),
    "unneeded gradients": ("unneeded", ".1%"),
}

HELP = """\
Every row measures ours and its peers on the same inputs with the same weights: DCGAN of 64 pixels, z = 100,
ngf = ndf = 64, float32; PyTorch's memory format is channels_last.

rows:
  train          an update of the discriminator and one of the generator, Adam. Peers: "tutorial" differentiates
                 the generator's loss by the discriminator's parameters too and throws that away, as published
                 loops do; "eager" does not; "compiled" is that under torch.compile
  sample         pictures a second, from noise to uint8
  fid            mean and covariance of 50,000 x 2,048 features in float64: ours batch by batch, as they come from
                 a network, numpy's np.mean and np.cov from all at once

Unneeded gradients are FLOPs beyond those that the two updates need; ours are XLA's own count. On a GPU training
and sampling compute in bfloat16, on batches that are on the device already.

examples:
  python scripts/benchmark.py text_to_image --quick                           # tiny sizes: does it work here?
  python scripts/benchmark.py text_to_image                                   # all rows on 2 cores
  python scripts/benchmark.py text_to_image --only train sample --batch 32 --out small.json
  python scripts/benchmark.py text_to_image --device gpu

"""

GPU_TARGETS = {"gpu": {"compiled": 1.5}}
ROWS = {
    "train": Row("D and G iteration", ("tutorial", "eager", "compiled"), GPU_TARGETS, dtype="bfloat16"),
    "sample": Row("sampling", ("eager", "compiled"), dtype="bfloat16"),
    "fid": Row("statistics of features", ("numpy",), {"cpu": {"numpy": 1.0}}, dtype=None, inputs=False),
}
FULL = {"batch": 128, "image": 64, "width": 64, "z": 100, "examples": 50_000, "features": 2048}
QUICK = {"batch": 4, "image": 16, "width": 8, "z": 10, "examples": 500, "features": 16}
SIZES = {"quick": QUICK, "cpu": FULL, "gpu": FULL}


def peer(spec: Mapping[str, Any]) -> tuple[dict, Measure]:
    """See captioner.py."""
    ours, theirs = {
        "train": (our_train, their_train),
        "sample": (our_sample, their_sample),
        "fid": (our_statistics, numpy_statistics),
    }[spec["row"]]
    facts, call, read = (ours if spec["peer"] == "ours" else theirs)(spec)
    begin = time.perf_counter()
    found = call()
    facts["first_s"] = facts.get("compile_s", 0.0) + time.perf_counter() - begin
    return {**facts, **read(found)}, timed(call)


def missing(spec: Mapping[str, Any]) -> str | None:
    """What a peer lacks on this machine."""
    return lacking("torch") if spec["peer"] in ("tutorial", "eager", "compiled") else None


def compare(mine: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]]) -> dict:
    """How far a peer's numbers lie apart from ours, as a share of the largest."""

    def apart(a: Any, b: Any) -> float:
        a, b = np.array(a, np.float64), np.array(b, np.float64)
        return float(np.abs(a - b).max() / np.abs(a).max())

    return {"apart": {peer: {k: apart(mine[k], found[k]) for k in mine} for peer, found in others.items()}}


def remarks(row: Mapping[str, Any]) -> Iterator[str]:
    """Lines to print below the table."""
    for peer, found in row.get("apart", {}).items():
        for name, apart in found.items():
            yield f"{name} of {peer} differ from ours by {apart:.1e} of the largest value at most"
    if more := row["peers"]["ours"].get("tutorial_form"):
        yield f"ours in the form of the tutorials would take {more:.1%} more FLOPs, by XLA's count"


# --- Ours -----------------------------------------------------------------------------------------


def rows_of(spec: Mapping[str, Any]) -> int:
    """The batch."""
    return spec["batch"] or spec["sizes"]["batch"]


def make_task(sizes: Mapping[str, Any], dtype: str, z: Any = None) -> Any:
    """The unconditional DCGAN. z: the noise of every step, None draws it."""
    import jax

    from mmgen_jax.core import optimizer, sharding
    from mmgen_jax.tasks.text_to_image import TextToImage

    class SameNoise(TextToImage):
        """Takes the noise that its peers take."""

        def _noise(self, rng, rows):
            return super()._noise(rng, rows) if z is None else z

    adam = {"b1": 0.5}
    return SameNoise(
        text=None,
        generator={
            "name": "dcgan",
            "image_size": sizes["image"],
            "width": sizes["width"],
            "z_features": sizes["z"],
        },
        discriminator={"name": "dcgan", "width": sizes["width"]},
        loss={"name": "non_saturating"},
        dtype=dtype,
        optimizer=optimizer.make(
            name="adamw", learning_rate=2e-4, schedule="constant", steps=1, options=adam
        ),
        layout=sharding.make(devices=jax.devices()[:1]),
        context={"tokenizer": SimpleNamespace()},
    )


def make_inputs(spec: Mapping[str, Any]) -> None:
    """Write images, noise and weights to spec["inputs"], for all peers."""
    import jax
    from flax.traverse_util import flatten_dict

    sizes, rows, rng = spec["sizes"], rows_of(spec), np.random.default_rng(SEED)
    side = sizes["image"]
    image = rng.integers(0, 256, (rows, side, side, 3), np.uint8)
    z = rng.standard_normal((rows, sizes["z"]), np.float32)
    task = make_task(sizes, "float32")
    networks = jax.jit(task.networks)(jax.random.key(SEED), our_batch({"image": image[:2]}))
    weights = flatten_dict(networks, sep="/")
    np.savez(spec["inputs"], image=image, z=z, **weights)


def our_batch(data: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """A batch as the loader makes it, on the device."""
    import jax

    rows = len(data["image"])
    batch = {
        "image": data["image"],
        "mask": np.ones(rows, np.float32),
        "index": np.arange(rows, dtype=np.int32),
    }
    return jax.tree.map(jax.numpy.asarray, batch)


def our_networks(data: Mapping[str, np.ndarray]) -> tuple[dict, dict]:
    """(params, variables) of both networks, on the device."""
    import jax

    networks = {name: nested(data, name) for name in ("generator", "discriminator")}
    networks = jax.tree.map(jax.numpy.asarray, networks)
    params = {name: tree.pop("params") for name, tree in networks.items()}
    return params, networks


def our_train(spec: Mapping[str, Any]) -> tuple[dict, Callable, Callable]:
    """The row train: facts, a call to time, and a function that reads facts from what the call gives."""
    import jax
    import jax.numpy as jnp

    from mmgen_jax.core import flops
    from mmgen_jax.core.state import State

    data = np.load(spec["inputs"])
    task, batch = make_task(spec["sizes"], spec["dtype"], jnp.asarray(data["z"])), our_batch(data)
    params, variables = our_networks(data)
    optimizers = {name: task.optimizer.transform.init(params[name]) for name in params}
    state = State(jnp.int32(0), jax.random.key(SEED), params, variables, optimizers, {})
    compiled, facts = compile_ours(task.train_step, (state, batch), donate=True)
    facts |= count_flops(task, state, batch, compiled.cost_analysis()["flops"])
    facts |= {"peak_flops": flops.peak(jax.devices()[0]), "batch": len(data["z"])}

    def call():
        nonlocal state
        state, metrics = jax.block_until_ready(compiled(state, batch))
        return metrics

    def read(metrics):
        return {"loss": sum(float(metrics[name].compute()) for name in ("loss", "generator_loss"))}

    return facts, call, read


def count_flops(task: Any, state: Any, batch: Mapping[str, Any], total: float) -> dict:
    """FLOPs of a step by XLA's count, and the shares of what no update needs: ours, and in the form of the tutorials.

    What is needed is the discriminator's turn and the generator's, each a function of its own that gives one gradient, and the
    update. The watch over collapse, which draws a few samples once in many steps, is no part of a step here.

    Args:
      total: of the compiled step, with the watch.
    """
    import jax
    import jax.numpy as jnp

    from mmgen_jax.tasks.text_to_image import WATCHED

    real = batch["image"].astype(jnp.float32) / 127.5 - 1.0
    z = task._noise(jax.random.key(SEED), len(real))

    def draw(params, z=z, train=True):
        variables = {"params": params, **state.variables["generator"]}
        return task.generator.apply(variables, z, None, train=train, mutable=["batch_stats"])[0].images

    def judge(params, images):
        variables = {"params": params, **state.variables["discriminator"]}
        judged, _ = task.discriminator.apply(variables, images, None, train=True, mutable=["batch_stats"])
        return judged.unconditional[0]

    def of_discriminator(discriminator, generator):
        fake = jax.lax.stop_gradient(draw(generator))
        on_real, on_fake = judge(discriminator, (real,)), judge(discriminator, fake)
        return jnp.mean(jax.nn.softplus(-on_real)) + jnp.mean(jax.nn.softplus(on_fake))

    def of_generator(discriminator, generator):
        return jnp.mean(jax.nn.softplus(-judge(discriminator, draw(generator))))

    def count(fn, *args):
        return jax.jit(fn).lower(*args).compile().cost_analysis()["flops"]

    both = state.params["discriminator"], state.params["generator"]
    drawing = count(draw, both[1])
    watch = count(lambda params: draw(params, z[:WATCHED], False), both[1])
    turn = count(jax.grad(of_generator, 1), *both)
    needed = count(jax.grad(of_discriminator, 0), *both) + turn - drawing
    needed += count(lambda state: task.update(state, state.params), state)
    more = count(jax.grad(of_generator, (0, 1)), *both) - turn
    total -= watch
    return {"flops": total, "unneeded": total / needed - 1, "tutorial_form": more / total}


def our_sample(spec: Mapping[str, Any]) -> tuple[dict, Callable, Callable]:
    """The row sample, as `our_train`."""
    import jax

    data = np.load(spec["inputs"])
    task = make_task(spec["sizes"], spec["dtype"])
    batch = jax.tree.map(jax.numpy.asarray, {"z": data["z"], "mask": np.ones(len(data["z"]), np.float32)})
    args = *our_networks(data), batch, jax.random.key(SEED)
    compiled, facts = compile_ours(task.predict["generate"], args)
    facts["batch"] = len(data["z"])
    return facts, lambda: jax.block_until_ready(compiled(*args)), lambda found: pictures(found["image"])


def pictures(found: Any) -> dict:
    """The first of them, in float: a difference of uint8 would wrap around."""
    return {"outputs": {"pictures": np.asarray(found[:4], np.float32).tolist()}}


def features(sizes: Mapping[str, Any]) -> np.ndarray:
    """What a pretrained network might give: not negative, of different sizes, correlated. -> float32 [N, D]"""
    rng, count = np.random.default_rng(SEED), sizes["features"]
    x = rng.standard_normal((sizes["examples"], count), np.float32)
    x += x[:, rng.permutation(count)]
    x *= rng.uniform(0.1, 1, count).astype(np.float32)
    return np.maximum(x, 0, out=x)


def moments(found: tuple[np.ndarray, np.ndarray]) -> dict:
    """Of mean [D] and covariance [D, D], a part."""
    mean, covariance = found
    return {"outputs": {"mean": mean[:64].tolist(), "covariance": covariance[:64, :64].tolist()}}


def our_statistics(spec: Mapping[str, Any]) -> tuple[dict, Callable, Callable]:
    """The row fid, as `our_train`: batch by batch, as an evaluator gets them."""
    from mmgen_jax.scores.images import Statistics

    x = features(spec["sizes"])
    rows = rows_of(spec)

    def call():
        statistics = Statistics(x.shape[1])
        for first in range(0, len(x), rows):
            statistics.add(x[first : first + rows])
        return statistics.mean, statistics.covariance

    return {"batch": len(x)}, call, moments


def numpy_statistics(spec: Mapping[str, Any]) -> tuple[dict, Callable, Callable]:
    """The row fid, as `our_train`."""
    x = features(spec["sizes"])
    return {"batch": len(x)}, lambda: (np.mean(x, axis=0, dtype=np.float64), np.cov(x, rowvar=False)), moments


# --- PyTorch --------------------------------------------------------------------------------------


def their_networks(spec: Mapping[str, Any], data: Mapping[str, np.ndarray]) -> tuple[Any, Any]:
    """Generator and discriminator with the weights of `make_inputs`."""
    from peers import text_to_image_torch as peers

    sizes = spec["sizes"]
    shared = {"width": sizes["width"], "image_size": sizes["image"]}
    networks = peers.Generator(z_features=sizes["z"], **shared), peers.Discriminator(**shared)
    for network, name in zip(networks, ("generator", "discriminator"), strict=True):
        peers.load(network, nested(data, name))
    return networks


def their_train(spec: Mapping[str, Any]) -> tuple[dict, Callable, Callable]:
    """The row train, as `our_train`."""
    import torch
    from peers import text_to_image_torch as peers

    device, data, peer = start_torch(spec), np.load(spec["inputs"]), spec["peer"]
    networks = their_networks(spec, data)
    image, z = peers.pixels(data["image"]).to(device), torch.tensor(data["z"], device=device)
    facts = {"batch": len(z)}
    if peer != "compiled":
        facts["unneeded"] = peers.unneeded(*networks, peer)
    step = peers.make_train_step(*networks, peer, device=device, dtype=spec["dtype"])
    return facts, lambda: sum(float(loss) for loss in step(image, z)), lambda loss: {"loss": loss}


def their_sample(spec: Mapping[str, Any]) -> tuple[dict, Callable, Callable]:
    """The row sample, as `our_train`."""
    import torch
    from peers import text_to_image_torch as peers

    device, data = start_torch(spec), np.load(spec["inputs"])
    generator, _ = their_networks(spec, data)
    z = torch.tensor(data["z"], device=device)
    options = {"compiled": spec["peer"] == "compiled", "device": device, "dtype": spec["dtype"]}
    sample = peers.make_sample(generator, **options)
    return {"batch": len(z)}, lambda: sample(z), lambda found: pictures(found.cpu())
