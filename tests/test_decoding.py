"""Every search against brute force on small vocabularies; rules; sampling's frequencies; scheduled inputs."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmgen_jax import decoding
from mmgen_jax.decoding import Rules

PAD, BOS, EOS = 0, 1, 2
L, B = 4, 3
# The reserved tokens and three words.
V = 6
WORDS = (3, 4, 5)
RULES = Rules(BOS, EOS, PAD, L)


def tables(seed, sharpness=1.5, batch=B, depth=L):
    """Random logits for every history: [B, V ** depth, V]."""
    rng = np.random.default_rng(seed)
    return (sharpness * rng.normal(size=(batch, V**depth, V))).astype(np.float32)


def history_step(table, rows):
    """A model that reads its whole past from the carry: a carry in the wrong order gives other logits.

    table: [B, V ** L, V]; rows: of an image.
    """

    def step(tokens, carry):
        history, position = carry["history"], carry["position"]
        history = history.at[jnp.arange(len(tokens)), position].set(tokens)
        powers = jnp.asarray(V ** np.arange(history.shape[1]), jnp.int32)
        code = jnp.sum(history * powers[None, :], axis=1)
        return table[jnp.arange(len(tokens)) // rows, code], {"history": history, "position": position + 1}

    return step


def empty(rows, depth=L):
    return {"history": jnp.zeros((rows, depth), jnp.int32), "position": jnp.zeros(rows, jnp.int32)}


def log_probs(table, history):
    """log p(next | history) in float64 of one image's table. history: the words after BOS."""
    code = sum(token * V**i for i, token in enumerate((BOS, *history)))
    logits = table[code].astype(np.float64)
    return logits - np.logaddexp.reduce(logits)


def rescore(table, tokens):
    """log_prob of a sequence by teacher forcing, up to the end token or the last word."""
    total = 0.0
    for i, token in enumerate(tokens):
        total += log_probs(table, tokens[:i])[token]
        if token == EOS:
            break
    return total


def repeats(words, n):
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(grams)) < len(grams)


def sequences(rules, words=WORDS):
    """Every sequence that the rules allow: ended ones, and those that max_len cuts."""
    words = [word for word in words if word not in rules.forbid]
    for length in range(rules.max_len + 1):
        for body in itertools.product(words, repeat=length):
            if rules.no_repeat and repeats(body, rules.no_repeat):
                continue
            if length == rules.max_len:
                yield body
            elif length >= rules.min_len:
                yield (*body, EOS)


def brute_force(table, rules, length_penalty=0.0):
    """[(score, log_prob, padded sequence), ...], best first."""
    found = []
    for sequence in sequences(rules):
        log_prob = rescore(table, sequence)
        padded = sequence + (PAD,) * (rules.max_len - len(sequence))
        found.append((log_prob / len(sequence) ** length_penalty, log_prob, padded))
    return sorted(found, reverse=True)


@functools.partial(jax.jit, static_argnames=("rules", "beam", "n_best", "length_penalty"))
def beam_search(table, *, rules=RULES, beam, n_best=1, length_penalty=0.0):
    step, carry = history_step(table, beam), empty(len(table) * beam, rules.max_len)
    options = {"batch": len(table), "beam": beam, "n_best": n_best, "length_penalty": length_penalty}
    return decoding.beam_search(step, carry, rules, **options)


@functools.partial(jax.jit, static_argnames=("rules",))
def greedy(table, *, rules=RULES):
    return decoding.greedy(history_step(table, 1), empty(len(table), rules.max_len), rules, batch=len(table))


@functools.partial(jax.jit, static_argnames=("rules", "samples", "temperature", "top_k", "top_p"))
def sample(table, rng, *, samples, rules=RULES, **options):
    step, carry = history_step(table, samples), empty(len(table) * samples, rules.max_len)
    return decoding.sample(step, carry, rng, rules, batch=len(table), samples=samples, **options)


def check(decoded, table, rules):
    """What every result must be: padded behind its end, within the rules, with the model's own log_prob."""
    tokens, log_prob = np.asarray(decoded.tokens), np.asarray(decoded.log_prob)
    allowed = set(sequences(rules))
    for b, k in np.ndindex(tokens.shape[:2]):
        row = tokens[b, k].tolist()
        length = row.index(EOS) + 1 if EOS in row else rules.max_len
        assert set(row[length:]) <= {PAD}
        assert tuple(row[:length]) in allowed
        assert bool(decoded.finished[b, k]) == (EOS in row)
        np.testing.assert_allclose(log_prob[b, k], rescore(table[b], row[:length]), rtol=1e-5, atol=1e-5)


# 1 + 3 + 9 + 27 ended and 81 cut sequences: a beam of 128 holds them all.
WIDE = 128


@pytest.mark.parametrize(
    ("length_penalty", "rules"),
    [
        (0.0, RULES),
        (0.7, RULES),
        (1.0, RULES),
        (1.0, Rules(BOS, EOS, PAD, L, min_len=2, no_repeat=2, forbid=(4,))),
        (0.0, Rules(BOS, EOS, PAD, L, no_repeat=1)),
    ],
)
def test_wide_beam_is_exact(length_penalty, rules):
    table = tables(0)
    exact = [brute_force(one, rules, length_penalty) for one in table]
    n_best = min(10, len(exact[0]))
    found = beam_search(table, rules=rules, beam=WIDE, n_best=n_best, length_penalty=length_penalty)
    check(found, table, rules)
    for b in range(B):
        best = exact[b][:n_best]
        np.testing.assert_allclose(found.score[b], [score for score, *_ in best], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(
            found.log_prob[b], [log_prob for _, log_prob, _ in best], rtol=1e-5, atol=1e-5
        )
        assert [tuple(row) for row in found.tokens[b].tolist()] == [sequence for *_, sequence in best]


def plain_beam(table, rules, beam, length_penalty):
    """The beam search of the docstring, with Python lists: [(score, sequence), ...], best first."""
    beams = [(0.0, 0.0, ())]
    allowed = list(sequences(rules))
    for _ in range(rules.max_len):
        grown = []
        for score, log_prob, words in beams:
            if words and words[-1] == EOS:
                grown.append((score, log_prob, words))
                continue
            for word in (EOS, *WORDS):
                longer = (*words, word)
                if not any(sequence[: len(longer)] == longer for sequence in allowed):
                    continue
                total = log_prob + log_probs(table, words)[word]
                grown.append((total / len(longer) ** length_penalty, total, longer))
        beams = sorted(grown, reverse=True)[:beam]
    return [(score, words + (PAD,) * (rules.max_len - len(words))) for score, _, words in beams]


@pytest.mark.parametrize(("beam", "length_penalty"), [(2, 0.0), (3, 1.0), (7, 0.6)])
def test_narrow_beam_equals_plain_python(beam, length_penalty):
    table = tables(1)
    found = beam_search(table, beam=beam, n_best=beam, length_penalty=length_penalty)
    check(found, table, RULES)
    for b in range(B):
        expected = plain_beam(table[b], RULES, beam, length_penalty)
        assert [tuple(row) for row in found.tokens[b].tolist()] == [words for _, words in expected]
        np.testing.assert_allclose(found.score[b], [score for score, _ in expected], rtol=1e-5, atol=1e-5)


def test_n_best_is_sorted_and_distinct():
    found = beam_search(tables(2), beam=7, n_best=5, length_penalty=0.6)
    assert np.all(np.diff(found.score, axis=1) <= 0)
    for rows in found.tokens.tolist():
        assert len(set(map(tuple, rows))) == 5


def test_greedy_takes_the_likeliest_word():
    table = tables(3)
    found = greedy(table)
    check(found, table, RULES)
    for b in range(B):
        words = ()
        while len(words) < L and EOS not in words:
            scores = log_probs(table[b], words)
            words = (*words, max((EOS, *WORDS), key=lambda word: scores[word]))
        assert found.tokens[b, 0].tolist() == [*words, *[PAD] * (L - len(words))]


@pytest.mark.parametrize("rules", [RULES, Rules(BOS, EOS, PAD, L, min_len=3, no_repeat=2)])
def test_a_beam_of_one_is_greedy(rules):
    table = tables(4, sharpness=3.0)
    one, other = beam_search(table, rules=rules, beam=1), greedy(table, rules=rules)
    np.testing.assert_array_equal(one.tokens, other.tokens)
    np.testing.assert_allclose(one.log_prob, other.log_prob, rtol=1e-6)
    np.testing.assert_array_equal(one.finished, other.finished)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_no_repeat(n):
    """A model that loves to repeat itself; long sequences, so that n-grams meet at many distances."""
    depth, rng = 9, np.random.default_rng(n)
    table = rng.normal(size=(V, V)).astype(np.float32)
    table[:, EOS] = -3.0
    np.fill_diagonal(table, 5.0)
    words = tuple(range(3, V))
    rules = Rules(BOS, EOS, PAD, depth, no_repeat=n)

    def step(tokens, carry):
        return jnp.asarray(table)[tokens], carry

    def plain():
        row = []
        while len(row) < depth and EOS not in row:
            scores = table[row[-1] if row else BOS]
            fits = [word for word in words if not repeats([*row, word], n)]
            row.append(max([*fits, EOS], key=lambda word: scores[word]))
        return row + [PAD] * (depth - len(row))

    assert decoding.greedy(step, (), rules, batch=1).tokens[0, 0].tolist() == plain()
    for rows in (
        decoding.beam_search(step, (), rules, batch=1, beam=6, n_best=6).tokens[0],
        decoding.sample(step, (), jax.random.key(n), rules, batch=1, samples=20).tokens[0],
    ):
        for row in rows.tolist():
            body = [token for token in row if token not in (EOS, PAD)]
            assert not repeats(body, n)


@pytest.mark.parametrize("min_len", [0, 2, L])
def test_min_len(min_len):
    table = tables(5)
    table[:, :, EOS] += 8.0
    rules = Rules(BOS, EOS, PAD, L, min_len=min_len)
    for found in (greedy(table, rules=rules), beam_search(table, rules=rules, beam=4, n_best=4)):
        check(found, table, rules)
        lengths = np.sum((np.asarray(found.tokens) != PAD) & (np.asarray(found.tokens) != EOS), axis=-1)
        assert lengths.min() >= min_len
        # The end is so likely that the best caption is as short as it may be.
        assert np.all(lengths[:, 0] == min_len)


def test_forbidden_words_never_come():
    table = tables(6)
    table[:, :, [PAD, BOS, 5]] += 20.0
    rules = Rules(BOS, EOS, PAD, L, forbid=(5,))
    check(greedy(table, rules=rules), table, rules)
    check(beam_search(table, rules=rules, beam=4, n_best=4), table, rules)
    check(sample(table, jax.random.key(0), samples=8, rules=rules), table, rules)


def test_sequences_that_never_end_are_cut_and_flagged():
    table = tables(7)
    table[0, :, EOS] = -40.0
    table[1, :, EOS] = 40.0
    for found in (greedy(table), beam_search(table, beam=3), sample(table, jax.random.key(1), samples=2)):
        check(found, table, RULES)
        assert not found.finished[0].any()
        assert found.finished[1].all()
        assert np.all(np.asarray(found.tokens[0]) != PAD)


def test_no_word_left_ends_the_sequence():
    """Three words, none twice, and five asked for: the end is the only way out."""
    rules = Rules(BOS, EOS, PAD, 6, min_len=5, no_repeat=1)

    def step(tokens, carry):
        return jnp.zeros((len(tokens), V)), carry

    for found in (
        decoding.greedy(step, (), rules, batch=1),
        decoding.beam_search(step, (), rules, batch=1, beam=3),
        decoding.sample(step, (), jax.random.key(0), rules, batch=1),
    ):
        row = found.tokens[0, 0].tolist()
        assert sorted(row[:3]) == [3, 4, 5]
        assert row[3:] == [EOS, PAD, PAD]
        assert bool(found.finished[0, 0])
        np.testing.assert_allclose(found.log_prob[0, 0], 4 * np.log(1 / V), rtol=1e-5)


def test_a_beam_wider_than_all_sequences_says_which_are_none():
    """One word and a length of two: three sequences exist; the other places are empty and not finished."""
    rules = Rules(BOS, EOS, PAD, 2, forbid=(4, 5))
    found = beam_search(tables(8), rules=rules, beam=6, n_best=6)
    real = np.asarray(found.log_prob) > -1e9
    assert np.all(real.sum(axis=1) == 3)
    assert np.all(real[:, :3])
    assert not np.asarray(found.finished)[~real].any()


def chi_square(counts, probability):
    expected = probability * counts.sum()
    return np.sum((counts - expected) ** 2 / expected)


N = 20_000
LOGITS = np.array([-9.0, -9.0, -9.0, 1.2, 0.1, -0.7], np.float32)


def draw(**options):
    """The first of N drawn words from LOGITS."""
    rules = Rules(BOS, EOS, PAD, 1)

    def step(tokens, carry):
        return jnp.broadcast_to(jnp.asarray(LOGITS), (len(tokens), V)), carry

    decoded = decoding.sample(step, (), jax.random.key(0), rules, batch=N, **options)
    return np.bincount(np.asarray(decoded.tokens).ravel(), minlength=V), np.asarray(decoded.log_prob), decoded


def softmax(x):
    x = np.exp(x - x.max())
    return x / x.sum()


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_frequencies(temperature):
    counts, log_prob, decoded = draw(temperature=temperature)
    probability = softmax(np.where(np.isin(range(V), (PAD, BOS)), -np.inf, LOGITS / np.float32(temperature)))
    assert counts[[PAD, BOS]].sum() == 0
    # Three degrees of freedom: 99.9 % lie below 16.3. The rare end joins the rarest word.
    joined = lambda x: np.array([x[3], x[4], x[5] + x[EOS]])
    assert chi_square(joined(counts), joined(probability)) < 16.3
    # log_prob is the model's, whatever the temperature.
    expected = np.log(softmax(LOGITS.astype(np.float64)))[np.asarray(decoded.tokens).ravel()]
    np.testing.assert_allclose(log_prob.ravel(), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "support"),
    [
        ({"top_k": 1}, {3}),
        ({"top_k": 2}, {3, 4}),
        ({"top_k": 50}, {2, 3, 4, 5}),
        # The words have 0.68, 0.23 and 0.10.
        ({"top_p": 1e-6}, {3}),
        ({"top_p": 0.6}, {3}),
        ({"top_p": 0.7}, {3, 4}),
        ({"top_p": 0.95}, {3, 4, 5}),
        # At a temperature of 3 the first word alone has too little.
        ({"top_p": 0.6, "temperature": 3.0}, {3, 4}),
    ],
)
def test_support(options, support):
    counts, *_ = draw(**options)
    drawn = set(np.flatnonzero(counts))
    assert drawn <= support
    assert support - {EOS} <= drawn
    kept = sorted(support - {EOS})
    probability = softmax(LOGITS[kept] / np.float32(options.get("temperature", 1.0)))
    assert chi_square(counts[kept], probability) < 16.3 if len(kept) > 1 else counts[kept] == N


def test_samples_follow_the_model_and_differ():
    table = tables(9)
    found = sample(table, jax.random.key(2), samples=64, temperature=1.0)
    check(found, table, RULES)
    assert np.all(np.diff(found.log_prob, axis=1) <= 0)
    assert all(len(set(map(tuple, rows))) > 5 for rows in found.tokens.tolist())
    again = sample(table, jax.random.key(2), samples=64, temperature=1.0)
    np.testing.assert_array_equal(found.tokens, again.tokens)


def test_no_new_compilation_between_batches():
    for fn, options in ((beam_search, {"beam": 2}), (greedy, {})):
        before = fn._cache_size()
        for seed in range(3):
            table = tables(20 + seed, sharpness=1.0 + 3 * seed, batch=5)
            fn(table, **options)
        assert fn._cache_size() == before + 1


def test_the_loop_stops_when_all_have_ended():
    """Steps are counted by the carry; the second image's caption is the longest."""
    ends = jnp.array([1, 3, 2])

    def step(tokens, carry):
        logits = jnp.where((carry >= ends)[:, None] == (jnp.arange(V) == EOS)[None, :], 9.0, 0.0)
        return logits, carry + 1

    calls = []

    def counted(tokens, carry):
        jax.debug.callback(lambda: calls.append(1))
        return step(tokens, carry)

    found = decoding.greedy(counted, jnp.zeros(3, jnp.int32), Rules(BOS, EOS, PAD, 50), batch=3)
    jax.block_until_ready(found.tokens)
    jax.effects_barrier()
    assert np.sum(np.asarray(found.tokens) != PAD, axis=-1).ravel().tolist() == [2, 4, 3]
    assert len(calls) == 4


def test_ensemble_averages_probabilities():
    first, second = tables(10), tables(11)

    def both(beam):
        steps = [history_step(jnp.asarray(table), beam) for table in (first, second)]
        return decoding.ensemble(steps), [empty(B * beam), empty(B * beam)]

    def mean(*logits):
        return np.log(
            np.mean([np.exp(x - np.logaddexp.reduce(x, axis=-1, keepdims=True)) for x in logits], axis=0)
        )

    averaged = mean(first.astype(np.float64), second.astype(np.float64)).astype(np.float32)
    step, carry = both(1)
    logits, carry = step(jnp.full(B, BOS, jnp.int32), carry)
    np.testing.assert_allclose(logits, averaged[:, BOS], rtol=1e-5, atol=1e-5)
    assert len(carry) == 2
    step, carry = both(WIDE)
    found = decoding.beam_search(step, carry, RULES, batch=B, beam=WIDE, n_best=3)
    for b in range(B):
        expected = brute_force(averaged[b], RULES)[:3]
        assert [tuple(row) for row in found.tokens[b].tolist()] == [sequence for *_, sequence in expected]


@functools.partial(jax.jit, static_argnames="step_of")
def scheduled(table, tokens, rate, rng, step_of=history_step):
    rows = len(tokens) // len(table)
    return decoding.scheduled_inputs(step_of(table, rows), empty(len(tokens)), tokens, rate, rng)


def test_scheduled_inputs():
    rows = 600
    table = np.repeat(tables(12, batch=1), B, axis=0)
    rng = np.random.default_rng(0)
    true = rng.integers(3, V, (B * rows, L)).astype(np.int32)
    true[:, 0] = BOS
    np.testing.assert_array_equal(scheduled(table, true, 0.0, jax.random.key(0)), true)
    own = np.asarray(scheduled(table, true, 1.0, jax.random.key(0)))
    np.testing.assert_array_equal(own[:, 0], true[:, 0])
    # Drawn after its own words: frequencies of the second word, and of the third after the commonest.
    for history in ((), (np.bincount(own[:, 1]).argmax(),)):
        rows_there = np.all(own[:, 1 : 1 + len(history)] == np.array(history, int), axis=1)
        counts = np.bincount(own[rows_there, 1 + len(history)], minlength=V)
        # Five degrees of freedom: 99.9 % lie below 20.5.
        assert chi_square(counts, np.exp(log_probs(table[0], tuple(map(int, history))))) < 20.5
    half = np.asarray(scheduled(table, true, 0.5, jax.random.key(1)))
    changed = np.mean(half[:, 1:] != true[:, 1:], axis=0)
    # A drawn word may equal the true one.
    assert np.all((changed > 0.25) & (changed < 0.5))
