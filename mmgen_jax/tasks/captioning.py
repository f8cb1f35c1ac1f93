"""Captioning: token cross-entropy, scheduled sampling, doubly stochastic attention; captions by any search."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange

from mmgen_jax import decoding
from mmgen_jax.core import registry
from mmgen_jax.core.metrics import Mean
from mmgen_jax.core.optimizer import Optimizer
from mmgen_jax.core.sharding import Layout
from mmgen_jax.data import text
from mmgen_jax.losses import sequence
from mmgen_jax.models import captioner
from mmgen_jax.tasks.base import DTYPES, Batch, Matcher, Metrics, Task, take_init_from

NEXT = """
Next:
  python scripts/caption.py --workdir {workdir} --figures /tmp/attention PATH...   # caption your own images
  python scripts/evaluate.py --workdir {workdir} --split test                      # score another split
  tail -n 3 {workdir}/metrics.jsonl                                                # every number of the run
  ls {workdir}/figures                                                             # where it looked for each word
"""


def make_model(
    *,
    encoder: Mapping[str, Any],
    decoder: Mapping[str, Any],
    grid: int = 0,
    position: bool = True,
    dropout: float = 0.0,
    pixels: str = "imagenet",
    vocab_size: int,
    dtype: Any = jnp.float32,
    axis: str | None = None,
) -> captioner.Captioner:
    """Build the captioner that a config describes; `name` says which tower (a file in nn/) and which decoder."""
    tower = registry.build("nn", encoder, dtype=dtype, axis_name=axis)
    writer = captioner.make_decoder(decoder, vocab_size=vocab_size, dtype=dtype)
    return captioner.Captioner(
        tower, writer, grid=grid, position=position, dropout=dropout, pixels=pixels, dtype=dtype
    )


def make_matcher(*, tokenizer: Any, dtype: Any, **model: Any) -> Matcher:
    """-log p(caption | image): the text is drawn so that it can be read again (MirrorGAN: Qiao et al., 2019, equation 9)."""
    network = registry.call(
        make_model, model, "task.matchers.captioning", vocab_size=tokenizer.vocab_size, dtype=dtype
    )

    def init(rng, image, tokens):
        return network.init(rng, image, tokens[:, :, :-1])

    def losses(variables, image, tokens, **ids):
        del ids  # an image is read without a look at the others
        logits, _ = network.apply(variables, 127.5 * (image + 1.0), tokens[:, None, :-1])
        targets = tokens[:, 1:]
        nats = sequence.cross_entropy(logits[:, 0], targets)
        return jnp.sum(jnp.where(targets != tokenizer.pad, nats, 0.0), axis=-1)

    return Matcher(init, losses)


class Writing(Task):
    """Maximise the probability of texts about what is seen, and write them: what captions and generated answers share.

    A subclass sets `model`, a `captioner.Writer`, and has `seen`.

    Args:
      decode: how "generate" writes, see `search`.
      label_smoothing: see losses/sequence.py.
      doubly_stochastic: lambda of the attention penalty, a text's sum over its number of words.
      scheduled_sampling: the share of the model's own words in the inputs at the end of training; it rises linearly from 0 over
        `scheduled_steps`.
    """

    model: captioner.Writer

    def __init__(
        self,
        *,
        decode: Mapping[str, Any],
        label_smoothing: float = 0.0,
        doubly_stochastic: float = 0.0,
        scheduled_sampling: float = 0.0,
        scheduled_steps: int = 1,
        optimizer: Optimizer,
        layout: Layout,
    ):
        super().__init__(optimizer, layout)
        self._label_smoothing, self._doubly_stochastic = label_smoothing, doubly_stochastic
        self._scheduled_sampling, self._scheduled_steps = scheduled_sampling, scheduled_steps
        generate = registry.call(self.search, decode, "task.decode")
        self.predict = {"loss": self._predict_loss, "generate": generate, "attend": self._predict_attend}

    def seen(self, batch: Batch) -> Any:
        """Of a batch, what the model's `encode` takes: arrays of B rows."""
        raise NotImplementedError

    def networks(self, rng: jax.Array, batch: Batch) -> dict[str, dict]:
        return {"model": self.model.init(rng, self.seen(batch), batch["tokens"][:, :, :-1])}

    def loss(self, params, variables, batch, rng, step):
        mutable = list(variables["model"])
        dropout, schedule = jax.random.split(rng)
        every = {"params": params["model"], **variables["model"]}

        def apply(module, seen, inputs):
            memory = module.encode(seen, train=True)
            rows = rearrange(inputs, "b c t -> (b c) t")
            if self._scheduled_sampling:
                carry = module.start(memory, *rows.shape)
                rate = self._scheduled_sampling * jnp.minimum(step / self._scheduled_steps, 1.0)
                rows = decoding.scheduled_inputs(
                    lambda words, carry: module.step(memory, words, carry), carry, rows, rate, schedule
                )
            logits, weights = module.teacher_force(memory, rows, train=True)
            return tuple(rearrange(x, "(b c) ... -> b c ...", b=len(inputs)) for x in (logits, weights))

        (logits, weights), updated = self.model.apply(
            every,
            self.seen(batch),
            batch["tokens"][:, :, :-1],
            method=apply,
            mutable=mutable,
            rngs={"dropout": dropout},
        )
        scalar, metrics = self._objective(logits, weights, batch)
        return scalar, (metrics, {"model": updated})

    def _objective(self, logits: jax.Array, weights: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
        """logits: [B, C, T, V]; weights: [B, C, T, H, P] -> scalar, metrics. The scalar is nats a token plus the penalty a
        token."""
        targets = batch["tokens"][:, :, 1:]
        mask = (targets != text.PAD).astype(jnp.float32) * batch["mask"][:, None, None]
        metrics = {"loss": Mean.of(sequence.cross_entropy(logits, targets), mask)}
        smooth = Mean.of(sequence.cross_entropy(logits, targets, self._label_smoothing), mask)
        total = smooth.total
        if self._doubly_stochastic:
            penalty = sequence.doubly_stochastic(weights, mask)
            # The paper adds it to a caption's summed loss; both are divided by the words here.
            total = total + self._doubly_stochastic * jnp.sum(penalty * batch["mask"][:, None])
            metrics["attention_penalty"] = Mean.of(
                penalty, jnp.broadcast_to(batch["mask"][:, None], penalty.shape)
            )
        return total / jnp.maximum(smooth.count, 1.0), metrics

    def search(
        self,
        *,
        max_len: int,
        beam: int = 1,
        n_best: int = 1,
        length_penalty: float = 0.0,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_len: int = 0,
        no_repeat: int = 0,
    ):
        """A prediction that writes texts: beam search, or with a temperature n_best samples, or greedy.

        Returns:
          fn(params, variables, batch, rng) -> {"tokens" [B, n_best, L], "log_prob", "score", "finished" [B, n_best]}.

        Raises:
          ValueError: a number out of its range, or options that contradict each other.
        """
        for name, value in (("max_len", max_len), ("beam", beam), ("n_best", n_best)):
            if value < 1:
                raise ValueError(f"decode: {name}={value}; it is at least 1.")
        if temperature < 0 or not 0 < top_p <= 1:
            raise ValueError(
                f"decode: temperature={temperature} and top_p={top_p}; a temperature is 0 (no sampling) or more, "
                "and top_p lies above 0 and is at most 1."
            )
        rules = decoding.Rules(text.BOS, text.EOS, text.PAD, max_len, min_len, no_repeat, forbid=(text.UNK,))
        if temperature and beam > 1:
            raise ValueError(
                f"decode: beam={beam} with temperature={temperature}; take a beam or samples, not both."
            )
        if not temperature and n_best > beam:
            raise ValueError(
                f"decode: n_best={n_best} of beam={beam}; widen the beam, or sample with a temperature."
            )
        width = n_best if temperature else beam

        def generate(params, variables, batch, rng):
            every = {"params": params["model"], **variables["model"]}
            seen = self.seen(batch)
            memory = self.model.apply(every, seen, method="encode")
            rows = len(jax.tree.leaves(seen)[0])
            carry = self.model.apply(every, memory, rows * width, max_len, method="start")

            def step(tokens, carry):
                return self.model.apply(every, memory, tokens, carry, method="step")

            if temperature or beam == 1:
                options = dict(samples=width, temperature=temperature, top_k=top_k, top_p=top_p)
                decoded = decoding.sample(step, carry, rng, rules, batch=rows, **options)
            else:
                options = dict(beam=beam, n_best=n_best, length_penalty=length_penalty)
                decoded = decoding.beam_search(step, carry, rules, batch=rows, **options)
            return {
                "tokens": decoded.tokens,
                "log_prob": decoded.log_prob,
                "score": decoded.score,
                "finished": decoded.finished,
            }

        return generate

    def _forward(self, params, variables, batch):
        every = {"params": params["model"], **variables["model"]}
        return self.model.apply(every, self.seen(batch), batch["tokens"][:, :, :-1])

    def _predict_loss(self, params, variables, batch, rng):
        """Nats of every target token, 0 where padding. -> {"nll": [B, C, T]}."""
        del rng
        logits, _ = self._forward(params, variables, batch)
        targets = batch["tokens"][:, :, 1:]
        return {"nll": jnp.where(targets != text.PAD, sequence.cross_entropy(logits, targets), 0.0)}

    def _predict_attend(self, params, variables, batch, rng):
        """Where the model looks as it writes batch["tokens"]. -> {"weights": [B, C, T, P], of a video [B, C, T, F, S]}, the mean
        over heads."""
        del rng
        _, weights = self._forward(params, variables, batch)
        return {"weights": self.model.placed(weights.mean(axis=-2), self.seen(batch))}


class Captioning(Writing):
    """Maximise the probability of an image's, or a video's, captions.

    Args:
      model: see `make_model`; `init_from` in the encoder's part starts it from other weights.
      decode, label_smoothing, doubly_stochastic, scheduled_sampling, scheduled_steps: see `Writing`.
      dtype: "float32" or "bfloat16", of the computation.
    """

    def __init__(
        self,
        *,
        model: Mapping[str, Any],
        decode: Mapping[str, Any],
        label_smoothing: float = 0.0,
        doubly_stochastic: float = 0.0,
        scheduled_sampling: float = 0.0,
        scheduled_steps: int = 1,
        dtype: str = "float32",
        optimizer: Optimizer,
        layout: Layout,
        context: Mapping[str, Any],
    ):
        super().__init__(
            decode=decode,
            label_smoothing=label_smoothing,
            doubly_stochastic=doubly_stochastic,
            scheduled_sampling=scheduled_sampling,
            scheduled_steps=scheduled_steps,
            optimizer=optimizer,
            layout=layout,
        )
        vocab_size = context["tokenizer"].vocab_size
        dtype = registry.choose(DTYPES, dtype, "dtype")
        model, self.init_from = take_init_from(model)
        self.model = registry.call(
            make_model, model, "task.model", vocab_size=vocab_size, dtype=dtype, axis=self.axis
        )

    def seen(self, batch: Batch) -> jax.Array:
        """What is captioned: images [B, H, W, 3], or videos [B, F, H, W, 3].

        Raises:
          ValueError: the videos are padded, and the decoder would look at what pads them.
        """
        if "frame_mask" in batch:
            raise ValueError(
                'A captioner\'s decoder looks at every frame, also at those that pad a short video: leave too_short="pad" out of '
                "frames(...), which then sets short videos aside, or sample fewer frames."
            )
        return batch["video"] if "video" in batch else batch["image"]


make = Captioning
