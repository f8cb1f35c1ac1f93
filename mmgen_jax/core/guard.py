"""Numbers that stay finite: a step whose loss or gradient is not, or leaps, changes nothing but the step's number.

All of it happens inside the compiled step. What a step saw and how many were left out stays in `State.guard`, scalars that a
checkpoint keeps too.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmgen_jax.core.metrics import Mean
from mmgen_jax.core.optimizer import path_name
from mmgen_jax.core.state import State

WATCHED = ("loss", "gradient norm")
THEN = ("rollback", "stop")


class Guard(NamedTuple):
    """What is left out, and what happens when that does not help.

    Attributes:
      spike: leave out a step whose loss, or whose gradient's norm, lies so many standard deviations above its running mean; 0
        only leaves out what is not finite. Norms are compared by their logarithms.
      window: steps over which mean and deviation run; before that many were seen nothing is a spike.
      in_a_row: when so many steps in a row are left out, the run goes back or stops.
      then: "rollback", to the newest good checkpoint with another order of the data; "stop" ends the run with an error.
      rollbacks: so many without getting any further end the run.
    """

    spike: float = 0.0
    window: int = 100
    in_a_row: int = 5
    then: str = "rollback"
    rollbacks: int = 3


def start() -> dict[str, jax.Array]:
    """The guard's part of a new State: zeros, which is also what a checkpoint without it stands for.

    "skipped": steps left out, "row": of which the last so many in a row; "shift": rollbacks, each with a data seed of its own;
    "seen": steps in the running "mean" and "variance" [2] of what is WATCHED; "bad": 1 + number of the first gradient of this
    step that is not finite, "squares": sum of this step's squared gradients.
    """
    whole, real = jnp.int32(0), jnp.float32(0.0)
    return {
        "skipped": whole,
        "row": whole,
        "shift": whole,
        "seen": real,
        "mean": jnp.zeros(2, jnp.float32),
        "variance": jnp.zeros(2, jnp.float32),
        "bad": whole,
        "squares": real,
    }


def see(guard: dict, params: dict, grads: dict) -> dict:
    """Note an update's gradients in the guard. grads: {network: tree}; a State without a guard stays without."""
    if not guard:
        return guard
    number = {name: i for i, name in enumerate(tensor_names(params), start=1)}
    leaves = jax.tree_util.tree_leaves_with_path(grads)
    squares = jnp.stack([jnp.sum(jnp.square(leaf.astype(jnp.float32))) for _, leaf in leaves])
    order = jnp.array([number[path_name(path)] for path, _ in leaves], jnp.int32)
    last = jnp.iinfo(jnp.int32).max
    bad = jnp.min(jnp.where(jnp.isfinite(squares), last, order))
    bad = jnp.where((guard["bad"] == 0) & (bad < last), bad, guard["bad"])
    return {**guard, "bad": bad, "squares": guard["squares"] + jnp.sum(squares)}


def tensor_names(params: dict) -> list[str]:
    """The parameters' paths, in the order in which "bad" counts them."""
    return [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]


def guarded(train_step: Callable, guard: Guard) -> Callable:
    """`train_step` that leaves out what is not finite or leaps. -> fn(state, batch) -> (state, metrics).

    A step that is left out counts in no metric but "skipped", the share of such steps. Besides, the metrics have "notice":
    {"ok", "row", "bad", "watched" [2], "deviations" [2]} of this step, for who reads them one by one.
    """
    if guard.then not in THEN:
        raise ValueError(f'guard.then is "{guard.then}"; it is one of: {", ".join(THEN)}.')

    def step(state: State, batch: dict) -> tuple[State, dict]:
        old = state.guard
        fresh = {**old, "bad": jnp.int32(0), "squares": jnp.float32(0.0)}
        new, metrics = train_step(state.replace(guard=fresh), batch)
        seen, metrics = new.guard, dict(metrics)
        loss, norm = metrics["loss"].compute(), jnp.sqrt(seen["squares"])
        watched = jnp.stack([loss, jnp.log(norm + 1e-12)])
        # Never narrower than a thousandth of the mean, or a loss that stands still would leap with every digit.
        width = jnp.sqrt(old["variance"]) + 1e-3 * jnp.abs(old["mean"]) + 1e-6
        deviations = (watched - old["mean"]) / width
        ok = jnp.isfinite(loss) & jnp.isfinite(norm) & (seen["bad"] == 0)
        if guard.spike:
            ok &= ~jnp.any((deviations > guard.spike) & (old["seen"] >= guard.window))

        def choose(after, before):
            return jax.tree.map(lambda a, b: jnp.where(ok, a, b), after, before)

        # While few were seen, the plain mean of them.
        share = 1.0 / jnp.minimum(old["seen"] + 1.0, float(guard.window))
        off = watched - old["mean"]
        running = {
            "seen": old["seen"] + 1.0,
            "mean": old["mean"] + share * off,
            "variance": (1.0 - share) * (old["variance"] + share * jnp.square(off)),
        }
        left_out = (~ok).astype(jnp.int32)
        row = (old["row"] + 1) * left_out
        kept = {**fresh, **choose(running, {name: old[name] for name in running})}
        new = new.replace(
            params=choose(new.params, state.params),
            variables=choose(new.variables, state.variables),
            opt_state=choose(new.opt_state, state.opt_state),
            ema=choose(new.ema, state.ema),
            guard={**kept, "skipped": old["skipped"] + left_out, "row": row},
        )
        metrics = choose(metrics, jax.tree.map(jnp.zeros_like, metrics))
        metrics["skipped"] = Mean.of(left_out)
        bad = {"ok": ok, "row": row, "bad": seen["bad"], "watched": watched, "deviations": deviations}
        return new, {**metrics, "notice": bad}

    return step


def why(notice: Mapping[str, Any], params: dict, guard: Guard) -> str:
    """In words, why a step was left out; "" for one that was not. notice: as numpy."""
    if notice["ok"]:
        return ""
    loss, norm = (float(x) for x in notice["watched"])
    if not np.isfinite(loss):
        return f"the loss is {loss}"
    if notice["bad"]:
        return f"the gradient of {tensor_names(params)[int(notice['bad']) - 1]} is not finite"
    leaps = [
        f"the {name} is {value:.4g}, {far:.1f} deviations above its mean"
        for name, value, far in zip(WATCHED, (loss, np.exp(norm)), notice["deviations"], strict=True)
        if far > guard.spike
    ]
    return " and ".join(leaps) or "the gradient's norm is not finite"


def bad_examples(batch: Mapping[str, np.ndarray]) -> dict[str, list[int]]:
    """{input: the rows in which it is not finite} of a batch on the host."""
    found = {}
    for name, values in batch.items():
        if np.issubdtype(values.dtype, np.floating):
            rows = ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)
            if rows.any():
                found[name] = np.flatnonzero(rows).tolist()
    return found
