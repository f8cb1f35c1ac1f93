"""Greedy, sampling and beam search over one contract: `step(tokens[N], carry) -> (logits[N, V], carry)`.

A carry is any pytree whose leaves have N rows. What all rows of an image share (its features) belongs into the closure of
`step`, not
into the carry, so that a beam neither repeats nor reorders it. Each search is one compiled loop over a whole batch, which
stops as soon
as every row has ended; shapes depend on batch, beam and length alone, so that no batch compiles anew.

log_prob is always the model's own: the sum of log softmax(logits) over the words up to and including the end token. What a caller
forbids is left out of the choice and not made up for by renormalising.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import struct

Step = Callable[[jax.Array, Any], tuple[jax.Array, Any]]
NEVER = -1e30  # of a forbidden word: finite, so that a difference of two is never nan


@struct.dataclass
class Rules:
    """What a decoded sequence must obey.

    Attributes:
      bos, eos, pad: token ids; every sequence starts after bos and is filled up with pad behind eos.
      max_len: L, the most words, the end token counted. A sequence that has not ended by then is cut, and `finished` says so.
      min_len: the end token is forbidden before so many words, as long as another word is left.
      no_repeat: an n-gram of so many words may not come twice (Paulus et al., 2018); 0 allows all.
      forbid: tokens that never come, such as the unknown word.
    """

    bos: int = struct.field(pytree_node=False)
    eos: int = struct.field(pytree_node=False)
    pad: int = struct.field(pytree_node=False)
    max_len: int = struct.field(pytree_node=False)
    min_len: int = struct.field(pytree_node=False, default=0)
    no_repeat: int = struct.field(pytree_node=False, default=0)
    forbid: tuple[int, ...] = struct.field(pytree_node=False, default=())


@struct.dataclass
class Decoded:
    """Sequences, best first.

    Attributes:
      tokens: int32 [B, K, L], behind the end token only pad.
      log_prob: float32 [B, K], of the whole sequence.
      score: float32 [B, K], what they are ranked by.
      finished: bool [B, K], false where max_len cut a sequence, and in a place for which there is none: a beam wider than
      the set of
        all sequences fills up with log_prob below -1e29.
    """

    tokens: jax.Array
    log_prob: jax.Array
    score: jax.Array
    finished: jax.Array


def _allowed(rules: Rules, tokens: jax.Array, position: jax.Array, vocab: int) -> jax.Array:
    """Which words may come at `position` (< L) after tokens[:, :position]. tokens: [N, L] -> bool [N, V]."""
    allowed = jnp.ones((len(tokens), vocab), bool)
    never = [token for token in {rules.bos, rules.pad, *rules.forbid} if token != rules.eos]
    allowed = allowed.at[:, jnp.array(never, jnp.int32)].set(False)
    allowed = allowed.at[:, rules.eos].set(position >= rules.min_len)
    n = rules.no_repeat
    if n and n <= rules.max_len:
        # An n-gram starts at each i; it is closed by the word that follows where its first n - 1 words are the last ones.
        starts = jnp.arange(rules.max_len - n + 1)
        seen = (starts + n - 1 < position)[None, :]
        for k in range(n - 1):
            last = jnp.take(tokens, jnp.maximum(position - (n - 1) + k, 0), axis=1)
            seen = seen & (tokens[:, k : k + len(starts)] == last[:, None])
        seen = jnp.broadcast_to(seen, (len(tokens), len(starts)))
        repeats = jnp.zeros(allowed.shape, bool)
        rows = jnp.arange(len(tokens))[:, None]
        repeats = repeats.at[rows, tokens[:, n - 1 : n - 1 + len(starts)]].max(seen)
        # The end is a word like any other here, but comes once: it is never a repeat.
        allowed = allowed & ~repeats
    # Where every word would break a rule, the end is the smallest harm.
    stuck = ~jnp.any(allowed, axis=1)
    return allowed.at[:, rules.eos].set(allowed[:, rules.eos] | stuck)


def _filter_top_k(logits: jax.Array, k: int) -> jax.Array:
    """Forbid all but the k largest (Fan et al., 2018). logits: [N, V]."""
    smallest = jax.lax.top_k(logits, min(k, logits.shape[-1]))[0][:, -1:]
    return jnp.where(logits < smallest, NEVER, logits)


def _filter_top_p(logits: jax.Array, p: float) -> jax.Array:
    """Forbid all but the smallest set of words whose probability reaches p (Holtzman et al., 2020). logits: [N, V]."""
    ordered = -jnp.sort(-logits, axis=-1)
    probability = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probability, axis=-1) - probability
    # The word that crosses p stays in, and so the first always does.
    smallest = jnp.min(jnp.where(before < p, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits < smallest, NEVER, logits)


def sample(
    step: Step,
    carry: Any,
    rng: jax.Array,
    rules: Rules,
    *,
    batch: int,
    samples: int = 1,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Decoded:
    """Draw `samples` sequences a row of the batch, best first; `temperature=0` is greedy.

    The filters act on the logits divided by the temperature. carry: leaves with B x samples rows, a batch row's samples
    side by side.
    """
    rows = batch * samples

    def choose(logits, rng):
        if temperature == 0:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        logits = logits / temperature
        if top_k:
            logits = _filter_top_k(logits, top_k)
        if top_p < 1:
            logits = _filter_top_p(logits, top_p)
        return jax.random.categorical(rng, logits, axis=-1).astype(jnp.int32)

    def body(loop):
        position, last, tokens, log_prob, done, carry = loop
        logits, carry = step(last, carry)
        log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
        allowed = _allowed(rules, tokens, position, logits.shape[-1])
        word = choose(jnp.where(allowed, logits, NEVER), jax.random.fold_in(rng, position))
        gain = jnp.take_along_axis(log_probs, word[:, None], axis=-1)[:, 0]
        word = jnp.where(done, rules.pad, word)
        log_prob = log_prob + jnp.where(done, 0.0, gain)
        tokens = tokens.at[:, position].set(word)
        return position + 1, word, tokens, log_prob, done | (word == rules.eos), carry

    def going(loop):
        return (loop[0] < rules.max_len) & ~jnp.all(loop[4])

    first = jnp.full(rows, rules.bos, jnp.int32)
    tokens = jnp.full((rows, rules.max_len), rules.pad, jnp.int32)
    loop = (jnp.int32(0), first, tokens, jnp.zeros(rows), jnp.zeros(rows, bool), carry)
    _, _, tokens, log_prob, done, _ = jax.lax.while_loop(going, body, loop)
    tokens, log_prob, done = (rearrange(x, "(b k) ... -> b k ...", b=batch) for x in (tokens, log_prob, done))
    order = jnp.argsort(-log_prob, axis=1, stable=True)
    tokens = jnp.take_along_axis(tokens, order[:, :, None], axis=1)
    log_prob, done = (jnp.take_along_axis(x, order, axis=1) for x in (log_prob, done))
    return Decoded(tokens, log_prob, log_prob, done)


def greedy(step: Step, carry: Any, rules: Rules, *, batch: int) -> Decoded:
    """The likeliest word each time. carry: leaves with B rows; the result has K = 1."""
    return sample(step, carry, jax.random.key(0), rules, batch=batch, temperature=0.0)


def beam_search(
    step: Step,
    carry: Any,
    rules: Rules,
    *,
    batch: int,
    beam: int,
    n_best: int = 1,
    length_penalty: float = 0.0,
) -> Decoded:
    """The n_best of `beam` sequences a row, ranked by log_prob / length ** length_penalty.

    A sequence that has ended keeps its place in the beam, and its score, as long as nothing better pushes it out; the
    loop ends when all K have ended or are at max_len. With a beam as wide as the set of all sequences it is exact.

    Args:
      carry: leaves with B x beam rows, a batch row's beams side by side.
      length_penalty: 0 ranks by probability, 1 by the mean log-probability a word (the end token is a word).
    """
    rows = jnp.arange(batch)[:, None]

    def normalise(log_prob, length):
        return (
            log_prob / jnp.maximum(length, 1).astype(jnp.float32) ** length_penalty
            if length_penalty
            else log_prob
        )

    def body(loop):
        position, tokens, log_prob, length, done, carry = loop
        last = jnp.take(tokens, jnp.maximum(position - 1, 0), axis=2)
        last = jnp.where(position == 0, rules.bos, last)
        logits, carry = step(rearrange(last, "b k -> (b k)"), carry)
        vocab = logits.shape[-1]
        log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
        allowed = _allowed(rules, rearrange(tokens, "b k l -> (b k) l"), position, vocab)
        log_probs = jnp.where(allowed, log_probs, NEVER)
        # Of each beam's V continuations only its K best can be among the K best of all.
        few = min(beam, vocab)
        gain, word = (rearrange(x, "(b k) v -> b k v", b=batch) for x in jax.lax.top_k(log_probs, few))
        # An ended sequence has one continuation: itself.
        itself = jnp.where(jnp.arange(few) == 0, 0.0, NEVER)[None, None, :]
        gain = jnp.where(done[:, :, None], itself, gain)
        word = jnp.where(done[:, :, None], rules.pad, word.astype(jnp.int32))
        total = log_prob[:, :, None] + gain
        longer = jnp.where(done, length, length + 1)
        score = normalise(total, jnp.broadcast_to(longer[:, :, None], total.shape))
        _, best = jax.lax.top_k(rearrange(score, "b k v -> b (k v)"), beam)
        source = best // few
        word, log_prob = (
            jnp.take_along_axis(rearrange(x, "b k v -> b (k v)"), best, axis=1) for x in (word, total)
        )
        tokens = tokens[rows, source].at[:, :, position].set(word)
        length, done = longer[rows, source], done[rows, source] | (word == rules.eos)
        flat = rearrange(source + rows * beam, "b k -> (b k)")
        carry = jax.tree.map(lambda x: jnp.take(x, flat, axis=0), carry)
        return position + 1, tokens, log_prob, length, done, carry

    def going(loop):
        return (loop[0] < rules.max_len) & ~jnp.all(loop[4])

    # All beams start equal; all but the first are out of the question, or the first words would come K times.
    log_prob = jnp.broadcast_to(jnp.where(jnp.arange(beam) == 0, 0.0, NEVER)[None], (batch, beam))
    tokens = jnp.full((batch, beam, rules.max_len), rules.pad, jnp.int32)
    loop = (
        jnp.int32(0),
        tokens,
        log_prob,
        jnp.zeros((batch, beam), jnp.int32),
        jnp.zeros((batch, beam), bool),
        carry,
    )
    _, tokens, log_prob, length, done, _ = jax.lax.while_loop(going, body, loop)
    score = normalise(log_prob, length)
    score, order = jax.lax.top_k(score, n_best)
    done = done & (log_prob > NEVER / 10)
    return Decoded(tokens[rows, order], log_prob[rows, order], score, done[rows, order])


def scheduled_inputs(
    step: Step, carry: Any, tokens: jax.Array, rate: float | jax.Array, rng: jax.Array
) -> jax.Array:
    """Scheduled sampling: inputs in which each word is, with probability `rate`, the model's own (Bengio et al., 2015).

    The model runs over its own mixed inputs, as in the paper; since nothing is differentiated through the drawn words, the
    caller may
    teacher-force the result and gets the paper's gradients with any decoder.

    Args:
      tokens: int32 [N, T], the true inputs, bos first.

    Returns:
      int32 [N, T]; the first column is unchanged.
    """

    def body(loop, inputs):
        drawn, carry = loop
        true, position = inputs
        coin, draw = jax.random.split(jax.random.fold_in(rng, position))
        own = (position > 0) & (jax.random.uniform(coin, true.shape) < rate)
        word = jnp.where(own, drawn, true)
        logits, carry = step(word, carry)
        return (jax.random.categorical(draw, logits, axis=-1).astype(tokens.dtype), carry), word

    length = tokens.shape[1]
    _, mixed = jax.lax.scan(body, (tokens[:, 0], carry), (tokens.T, jnp.arange(length)))
    return jax.lax.stop_gradient(mixed.T)


def ensemble(steps: Sequence[Step]) -> Step:
    """One step that averages the probabilities of several models; its carry is the list of theirs."""

    def step(tokens, carry):
        results = [one(tokens, c) for one, c in zip(steps, carry, strict=True)]
        log_probs = jnp.stack(
            [jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1) for logits, _ in results]
        )
        mean = jax.nn.logsumexp(log_probs, axis=0) - jnp.log(jnp.float32(len(results)))
        return mean, [c for _, c in results]

    return step
