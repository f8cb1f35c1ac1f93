"""State: one pytree for any number of networks."""

import jax
from flax import struct


@struct.dataclass
class State:
    """All that training changes. Every dict is keyed by the network's name, such as {"model": ...}.

    Attributes:
      step: int32 scalar, the number of finished steps.
      rng: typed key; a step uses `fold_in(rng, step)`, so that a resumed run draws the same numbers.
      params: trained parameters, float32.
      variables: what a network keeps besides its parameters, such as batch statistics.
      opt_state: the optimizer's state.
      ema: averaged parameters of the networks that want them.
      guard: what core/guard.py knows of the last steps; {} in a State made by hand, which nothing guards.
    """

    step: jax.Array
    rng: jax.Array
    params: dict
    variables: dict
    opt_state: dict
    ema: dict
    guard: dict = struct.field(default_factory=dict)

    @property
    def eval_params(self) -> dict:
        """The parameters to evaluate with: the average of a network where one is kept, else its own."""
        return {**self.params, **self.ema}
