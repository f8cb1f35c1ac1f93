"""Task: a network with its objective. The loop, the checkpoints and the sharding know no more of it than this."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from einops import rearrange

from mmgen_jax.core import guard, parallel, sharding
from mmgen_jax.core import metrics as metrics_lib
from mmgen_jax.core.metrics import Mean
from mmgen_jax.core.optimizer import Optimizer
from mmgen_jax.core.sharding import Layout
from mmgen_jax.core.state import State

Batch = dict[str, jax.Array]
Metrics = dict[str, Mean]
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def take_init_from(
    model: Mapping[str, Any], network: str = "model"
) -> tuple[dict[str, Any], dict[tuple[str, ...], str]]:
    """A network's config without its `init_from`, and what those said, for `Task.init_from`.

    One may stand in the config, for all of it, and one in each part that is a dict, or in a part of that, for that part; empty
    ones say nothing. What is named first is filled first: the whole before its parts.
    """
    found = {}

    def take(part: Mapping[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
        if source := part.get("init_from"):
            found[path] = source
        return {
            name: take(value, (*path, name)) if isinstance(value, Mapping) else value
            for name, value in part.items()
            if name != "init_from"
        }

    return take(model, (network,)), found


class Matcher(NamedTuple):
    """How a finished model of a task leads a generator: it tells how badly drawn images show their texts, and learns nothing.

    A file in tasks/ whose models can do so has `make_matcher(*, tokenizer, dtype, **model) -> Matcher`.

    Attributes:
      init: fn(rng, image, tokens) -> its variables, as the task's `networks` would make them. tokens: [B, C, T].
      losses: fn(variables, image, tokens, *, weight, image_id, text_id, axis) -> nats, float32 [B], differentiable in the image.
        image: float32 [B, H, W, 3] from -1 to 1; tokens: [B, T]. weight [B] is 0 for a row to be left out; rows of one image_id
        or text_id, int32 [B], belong together where a loss compares rows, also those of other devices of the mapped `axis`.
    """

    init: Callable[..., dict]
    losses: Callable[..., jax.Array]


class Task:
    """A task with one network writes `networks`, `loss` and `predict`, and stops. A GAN overrides `train_step`.

    Attributes:
      optimizer: see core/optimizer.py.
      layout: the mesh and the mode of the step.
      axis: the name over which `train_step` averages by itself (pmap mode), or None.
      frozen: networks that no step changes; they have no optimizer state and no average.
      predict: what evaluators may call: {name: fn(params, variables, batch, rng) -> tree of arrays}.
      init_from: {path in State.params, such as ("model", "encoder"): file or workdir whose weights start that part}.
    """

    def __init__(self, optimizer: Optimizer, layout: Layout):
        self.optimizer, self.layout = optimizer, layout
        self.axis = parallel.axis_of(layout)
        self.frozen: frozenset[str] = frozenset()
        self.predict: dict[str, Callable] = {}
        self.init_from: dict[tuple[str, ...], str] = {}

    def networks(self, rng: jax.Array, batch: Batch) -> dict[str, dict]:
        """Initialise: {network: flax variables, "params" among them}."""
        raise NotImplementedError

    def loss(
        self, params: dict, variables: dict, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, tuple[Metrics, dict]]:
        """The scalar to minimise, (metrics, new variables). `step` is for schedules inside a loss.

        `metrics["loss"].count` is the weight of this batch when its gradient is averaged with that of others.
        """
        raise NotImplementedError

    def constrain(self, params: dict) -> dict:
        """Bring parameters back into their bounds, after every update."""
        return params

    def advise(self, step: int, report: Mapping[str, float]) -> str | None:
        """What a report of the loop ({"train/loss": ...}) says is going wrong, and where to look; None if nothing is."""
        del step, report
        return None

    def init(self, rng: jax.Array, batch: Batch) -> State:
        """The state before the first step. batch: only its shapes matter."""
        init_rng, rng = jax.random.split(rng)
        networks = self.networks(init_rng, batch)
        params = {name: variables["params"] for name, variables in networks.items()}
        variables = {
            name: {key: value for key, value in variables.items() if key != "params"}
            for name, variables in networks.items()
        }
        trained = {name: tree for name, tree in params.items() if name not in self.frozen}
        opt_state = {name: self.optimizer.of(name).transform.init(tree) for name, tree in trained.items()}
        # A copy: the step gives its old state's memory away, and one buffer cannot be given away twice.
        ema = {
            name: jax.tree.map(jnp.copy, tree)
            for name, tree in trained.items()
            if self.optimizer.of(name).ema
        }
        return State(jnp.int32(0), rng, params, variables, opt_state, ema, guard.start())

    def gradients(
        self, params: dict, variables: dict, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[Any, Metrics, dict]:
        """Gradient of the loss over a batch, in `optimizer.accumulate` slices and over the devices of `axis`.

        Slices and devices are weighted by their count, so that the result is the whole batch's gradient even where captions
        differ in length.
        """

        def summed(params, variables, batch, rng):
            # Weighted before it is differentiated: batch statistics carry gradients from one device to another.
            params = sharding.gathered(params, self.layout)
            params = {name: self.optimizer.of(name).hold(tree) for name, tree in params.items()}
            loss, (metrics, variables) = self.loss(params, variables, batch, rng, step)
            return loss * jax.lax.stop_gradient(metrics["loss"].count), (metrics, variables)

        def of(variables, batch, rng):
            grads, (metrics, variables) = jax.grad(summed, has_aux=True)(params, variables, batch, rng)
            return variables, (grads, metrics)

        slices = self.optimizer.accumulate
        if slices == 1:
            variables, (grads, metrics) = of(variables, batch, rng)
        else:
            # Every slice takes rows from each device, so that no row moves.
            rows = len(next(iter(batch.values())))
            if rows % slices:
                raise ValueError(
                    f"A batch of {rows} does not divide into optimizer.accumulate={slices} slices."
                )
            parts = jax.tree.map(lambda x: rearrange(x, "(b s) ... -> s b ...", s=slices), batch)

            def body(loop, inputs):
                index, part = inputs
                variables, (grads, metrics) = of(loop[0], part, jax.random.fold_in(rng, index))
                return (
                    variables,
                    jax.tree.map(jnp.add, loop[1], grads),
                    metrics_lib.merge(loop[2], metrics),
                ), None

            first = jax.tree.map(lambda x: x[0], parts)
            empty = jax.tree.map(
                lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(of, variables, first, rng)[1]
            )
            loop, _ = jax.lax.scan(body, (variables, *empty), (jnp.arange(slices), parts))
            variables, grads, metrics = loop
        grads, metrics = parallel.total((grads, metrics), self.axis)
        weight = jnp.maximum(metrics["loss"].count, 1e-12)
        return jax.tree.map(lambda g: g / weight, grads), metrics, variables

    def update(self, state: State, grads: dict) -> State:
        """The state after one update of the networks in `grads`: their parameters, optimizer states and averages."""
        params, opt_state, ema = dict(state.params), dict(state.opt_state), dict(state.ema)
        for name, grad in grads.items():
            updates, opt_state[name] = self.optimizer.of(name).transform.update(
                grad, state.opt_state[name], state.params[name]
            )
            params[name] = optax.apply_updates(state.params[name], updates)
        params = self.constrain(params)
        # A young average is as short as the run, or it would hold on to the random start for 1 / (1 - decay) steps.
        step = state.step.astype(jnp.float32)
        for name in grads.keys() & ema.keys():
            decay = jnp.minimum(self.optimizer.of(name).ema, (1.0 + step) / (10.0 + step))
            ema[name] = optax.incremental_update(params[name], ema[name], 1.0 - decay)
        seen = guard.see(state.guard, state.params, grads)
        return state.replace(params=params, opt_state=opt_state, ema=ema, guard=seen)

    def train_step(self, state: State, batch: Batch) -> tuple[State, Metrics]:
        """One update of every network through `loss`."""
        rng = parallel.device_key(jax.random.fold_in(state.rng, state.step), self.axis)
        grads, metrics, variables = self.gradients(state.params, state.variables, batch, rng, state.step)
        metrics["grad_norm"] = Mean.of(optax.tree.norm(grads))
        metrics["learning_rate"] = Mean.of(self.optimizer.schedule(state.step))
        state = self.update(state, grads)
        return state.replace(step=state.step + 1, variables=variables), metrics
