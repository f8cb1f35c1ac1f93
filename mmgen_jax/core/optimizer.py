"""Optimizers and schedules from a config; regex rules for freezing, weight decay and learning rate."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import optax
from optax import contrib

from mmgen_jax.core import registry

Schedule = Callable[[jax.Array], jax.Array]


class Optimizer(NamedTuple):
    """What `make` returns: the transformation, its schedule, and two numbers the training step acts on.

    Attributes:
      transform: gradients -> updates.
      schedule: step -> learning rate, for the log.
      accumulate: a step's batch is cut into so many slices, whose gradients are averaged.
      ema: decay of the parameters' running average, min(ema, (1 + step) / (10 + step)); 0 keeps none.
      networks: the optimizers of those networks that have one of their own.
      hold: a network's parameters -> the same, through which no gradient reaches those that a rule freezes: they cost no backward
        pass, and count in no norm.
    """

    transform: optax.GradientTransformation
    schedule: Schedule
    accumulate: int
    ema: float
    networks: Mapping[str, "Optimizer"]
    hold: Callable[[Any], Any]

    def of(self, network: str) -> "Optimizer":
        """The optimizer of one of the State's networks."""
        return self.networks.get(network, self)


def path_name(path: Sequence[Any]) -> str:
    """A pytree path as text: 'encoder/stage1/kernel'."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _constant(step, steps):
    del steps
    return 1.0 + 0.0 * step


def _cosine(step, steps):
    return 0.5 * (1.0 + jax.numpy.cos(jax.numpy.pi * jax.numpy.clip(step / steps, 0.0, 1.0)))


def _inverse_sqrt(step, steps):
    # `steps` is the length after the warm-up; the time scale of the decay is the warm-up itself.
    del steps
    return jax.lax.rsqrt(1.0 + step)


def _linear(step, steps):
    return 1.0 - jax.numpy.clip(step / steps, 0.0, 1.0)


def _drop(step, steps):
    return jax.numpy.where(step < 0.5 * steps, 1.0, 0.1)


def _exponential(step, steps):
    return 0.1 ** (step / steps)


def _trapezoid(step, steps):
    return jax.numpy.clip(3.0 * (1.0 - step / steps), 0.0, 1.0)


SCHEDULES = {
    "constant": _constant,
    "cosine": _cosine,
    "linear": _linear,
    "drop": _drop,
    "trapezoid": _trapezoid,
    "exponential": _exponential,
    "inverse_sqrt": _inverse_sqrt,
}


def make_schedule(name: str, peak: float, warmup: int, steps: int, final: float = 0.0) -> Schedule:
    """Linear warm-up from 0 to `peak` over `warmup` steps, then `name`.

    "constant" stays; "cosine" (Loshchilov and Hutter, 2017) and "linear" fall to `final * peak` at `steps`; "drop"
    falls to a tenth half-way; "trapezoid" stays for two thirds and falls linearly in the last (Zhai et al., 2022);
    "exponential" falls by the same factor each step, to a tenth at `steps`; "inverse_sqrt" falls as sqrt(w / (w + t)), t
    steps after the warm-up of w steps (Vaswani et al., 2017), and not below `final * peak`.
    """
    decay = registry.choose(SCHEDULES, name, "schedule")
    scale = max(warmup, 1)

    def schedule(step):
        step = jax.numpy.asarray(step, jax.numpy.float32)
        after = jax.numpy.maximum(step - warmup, 0.0)
        # The inverse square root counts time in warm-ups, the others in steps.
        factor = decay(after / scale if name == "inverse_sqrt" else after, max(steps - warmup, 1))
        rise = jax.numpy.minimum((step + 1.0) / scale, 1.0) if warmup else 1.0
        return peak * rise * (final + (1.0 - final) * factor)

    return schedule


def _muon() -> optax.GradientTransformation:
    """Muon for matrices inside the network; Adam for vectors, embeddings and convolutions (Jordan et al., 2024)."""

    def label(path, leaf):
        return "muon" if leaf.ndim == 2 and "embed" not in path_name(path).lower() else "adam"

    def matrices(params):
        # optax takes a whole tree only where it is told which axes to orthogonalise.
        return jax.tree.map(lambda _: contrib.MuonDimensionNumbers(), params)

    return optax.partition(
        {"muon": contrib.scale_by_muon(weight_dimension_numbers=matrices), "adam": optax.scale_by_adam()},
        lambda params: jax.tree_util.tree_map_with_path(label, params),
    )


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adamw": lambda b1=0.9, b2=0.999, eps=1e-8: optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
    "sgd": lambda momentum=0.9, nesterov=False: optax.trace(decay=momentum, nesterov=nesterov),
    "lion": lambda b1=0.9, b2=0.99: optax.scale_by_lion(b1=b1, b2=b2),
    "muon": _muon,
}


class Rule(NamedTuple):
    """What the first matching rule says of a parameter; without a word on decay, vectors are not decayed."""

    learning_rate: float = 1.0
    weight_decay: float | None = None


def _rules(rules: Mapping[str, Mapping[str, float]]) -> Callable[[str, int], Rule]:
    compiled = [
        (re.compile(pattern), registry.call(Rule, dict(values), f'optimizer.rules["{pattern}"]'))
        for pattern, values in rules.items()
    ]

    def find(path: str, ndim: int) -> Rule:
        rule = next((rule for pattern, rule in compiled if pattern.search(path)), Rule())
        return rule if rule.weight_decay is not None else rule._replace(weight_decay=float(ndim > 1))

    return find


def _lenient(transform: optax.GradientTransformation) -> optax.GradientTransformation:
    """optax relies on jax's standard promotion of types and ranks, also where the program around it is strict."""

    def update(updates, state, params=None):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return transform.update(updates, state, params)

    return optax.GradientTransformation(transform.init, update)


def make(
    *,
    name: str,
    learning_rate: float,
    schedule: str = "cosine",
    warmup: int = 0,
    steps: int,
    final: float = 0.0,
    weight_decay: float = 0.0,
    clip_norm: float = 0.0,
    accumulate: int = 1,
    ema: float = 0.0,
    options: Mapping[str, Any] | None = None,
    rules: Mapping[str, Mapping[str, float]] | None = None,
    networks: Mapping[str, Mapping[str, Any]] | None = None,
) -> Optimizer:
    """Build an optimizer.

    The order is: frozen gradients to zero, clip the rest by their global norm, scale (Adam, ...), add decoupled weight
    decay, multiply by the rule's factor, multiply by the schedule.

    Args:
      name: adamw, sgd, lion or muon.
      learning_rate: the schedule's peak.
      schedule, warmup, steps, final: see `make_schedule`.
      weight_decay: decoupled (Loshchilov and Hutter, 2019), on everything with two or more axes.
      clip_norm: the largest global gradient norm; 0 does not clip.
      accumulate, ema: see `Optimizer`.
      options: the optimizer's own numbers, such as {"b2": 0.95}.
      rules: {regex: {"learning_rate": factor, "weight_decay": factor}}; a parameter takes the first whose regex is found
        in its path ("encoder/.*kernel"). A learning-rate factor of 0 freezes: no moments are kept for it.
      networks: {network: any of these arguments}, of a task with several, such as the two learning rates of a GAN (TTUR, Heusel
        et al., 2017): {"discriminator": {"learning_rate": 4e-4}}; the rest is as for all.

    Raises:
      ValueError: an unknown name or key; the message names the nearest.
    """
    shared = {key: value for key, value in locals().items() if key != "networks"}
    own = {
        network: registry.call(make, {**shared, **dict(values)}, f"optimizer.networks.{network}")
        for network, values in (networks or {}).items()
    }
    find = _rules(rules or {})
    sched = make_schedule(schedule, learning_rate, warmup, steps, final)

    def per_path(function):
        return lambda params: jax.tree_util.tree_map_with_path(
            lambda path, leaf: function(find(path_name(path), leaf.ndim)), params
        )

    def scale_by(factor):
        """Multiply every update by what its rule says."""

        def update(updates, state, params=None):
            del params
            factors = per_path(factor)(updates)
            # A frozen part may have gradients without meaning; zero times nan would not be zero.
            scaled = jax.tree.map(
                lambda u, f: u if f == 1.0 else u * f if f else jax.numpy.zeros_like(u), updates, factors
            )
            return scaled, state

        return optax.GradientTransformation(lambda params: optax.EmptyState(), update)

    def decay(updates, state, params):
        factors = per_path(lambda rule: rule.weight_decay)(params)
        return jax.tree.map(
            lambda u, p, f: u + weight_decay * f * p if f else u, updates, params, factors
        ), state

    chain = [registry.choose(OPTIMIZERS, name, "optimizer")]
    chain = [registry.call(chain[0], options or {}, f"optimizer.options of {name}")]
    if clip_norm:
        chain.insert(0, optax.clip_by_global_norm(clip_norm))
    if weight_decay:
        chain.append(optax.GradientTransformation(lambda params: optax.EmptyState(), decay))
    chain.append(scale_by(lambda rule: rule.learning_rate))
    chain.append(optax.scale_by_learning_rate(sched))
    transform, hold = optax.chain(*chain), lambda params: params
    if any(dict(values).get("learning_rate") == 0.0 for values in (rules or {}).values()):
        frozen = scale_by(lambda rule: float(rule.learning_rate != 0.0))
        trainable = per_path(lambda rule: rule.learning_rate != 0.0)
        transform = optax.chain(frozen, optax.masked(transform, trainable))

        def hold(params):
            return jax.tree.map(
                lambda leaf, learns: leaf if learns else jax.lax.stop_gradient(leaf),
                params,
                trainable(params),
            )

    return Optimizer(_lenient(transform), sched, accumulate, ema, own, hold)
