"""Adversarial objectives and penalties against float64 numpy and finite differences, masked and over devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from mmgen_jax.losses import adversarial
from mmgen_jax.losses.adversarial import OBJECTIVES

RNG = np.random.default_rng(0)
REAL, FAKE = (RNG.normal(0.5, 2.0, 16), RNG.normal(-0.5, 2.0, 16))
MASK = np.float32(np.arange(16) % 5 != 2)
SMOOTHABLE = ["non_saturating", "least_squares", "relativistic"]


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def expected_discriminator(name, real, fake, smooth, mask):
    """As the papers write it, with the logarithms of probabilities."""
    if name == "relativistic":
        real, fake = real - np.mean(fake[mask > 0]), fake - np.mean(real[mask > 0])
    if name in ("non_saturating", "relativistic"):
        on_real = -(1 - smooth) * np.log(sigmoid(real)) - smooth * np.log(1 - sigmoid(real))
        return on_real, -np.log(1 - sigmoid(fake))
    if name == "least_squares":
        return (real - (1 - smooth)) ** 2 / 2, fake**2 / 2
    if name == "hinge":
        return -np.minimum(0, -1 + real), -np.minimum(0, -1 - fake)
    return -real, fake


def expected_generator(name, fake, real, mask):
    if name == "relativistic":
        above, below = real - np.mean(fake[mask > 0]), fake - np.mean(real[mask > 0])
        return -np.log(sigmoid(below)) - np.log(1 - sigmoid(above))
    if name == "non_saturating":
        return -np.log(sigmoid(fake))
    return (fake - 1) ** 2 / 2 if name == "least_squares" else -fake


def single(*arrays):
    return [jnp.asarray(x, jnp.float32) for x in arrays]


def differences(function, x, step=1e-5):
    """The gradient of a scalar function of a float64 array."""
    gradient = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        move = np.zeros_like(x)
        move[place] = step
        gradient[place] = (function(x + move) - function(x - move)) / (2 * step)
    return gradient


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("name", "smooth"), [*((name, 0.0) for name in OBJECTIVES), *((name, 0.1) for name in SMOOTHABLE)]
)
def test_losses_are_those_of_the_papers(name, smooth, masked):
    objective = OBJECTIVES[name]
    mask = MASK if masked else np.ones_like(MASK)
    given = {"mask": jnp.asarray(mask)} if masked else {}
    got = objective.discriminator(*single(REAL, FAKE), smooth, **given)
    for a, b in zip(got, expected_discriminator(name, REAL, FAKE, smooth, mask), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    got = objective.generator(*single(FAKE, REAL), **given)
    np.testing.assert_allclose(got, expected_generator(name, FAKE, REAL, mask), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_are_those_of_the_papers(name):
    """Of the masked mean, both players', with respect to both kinds of logits."""
    objective = OBJECTIVES[name]
    given = {"mask": jnp.asarray(MASK)}

    @jax.jit
    def gradients(real, fake):
        def discriminator(real, fake):
            return jnp.sum(sum(objective.discriminator(real, fake, **given)) * given["mask"])

        def generator(real, fake):
            return jnp.sum(objective.generator(fake, real, **given) * given["mask"])

        return jax.grad(discriminator, (0, 1))(real, fake), jax.grad(generator, (0, 1))(real, fake)

    got = gradients(*single(REAL, FAKE))
    both = np.stack([REAL, FAKE])
    expected = (
        differences(lambda x: np.sum(sum(expected_discriminator(name, *x, 0.0, MASK)) * MASK), both),
        differences(lambda x: np.sum(expected_generator(name, x[1], x[0], MASK) * MASK), both),
    )
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(np.stack(a), b, rtol=1e-4, atol=1e-5)
    if not objective.relativistic:
        np.testing.assert_array_equal(got[1][0], 0.0)
        np.testing.assert_array_equal(
            objective.generator(single(FAKE)[0]), objective.generator(*single(FAKE, REAL))
        )
    if name == "non_saturating":
        # What gave it its name: full strength just where the discriminator is sure.
        np.testing.assert_allclose(got[1][1], -sigmoid(-FAKE) * MASK, rtol=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_logits_far_out_stay_finite(name):
    objective, far = OBJECTIVES[name], jnp.float32([-1e4, -100.0, 100.0, 1e4])
    smooth = 0.1 if name in SMOOTHABLE else 0.0

    def loss(real, fake):
        return sum(jnp.sum(x) for x in objective.discriminator(real, fake, smooth)) + jnp.sum(
            objective.generator(fake, real)
        )

    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(far, far[::-1])
    assert np.isfinite(value) and np.isfinite(gradients).all()
    if name == "non_saturating":
        np.testing.assert_allclose(objective.generator(far), [1e4, 100.0, 0.0, 0.0], atol=1e-30)
        np.testing.assert_allclose(objective.discriminator(far, far, 0.1)[0], [9e3, 90, 10, 1e3], rtol=1e-5)


def test_smoothing_has_its_optimum_at_the_target():
    for name, best in (("non_saturating", np.log(0.9 / 0.1)), ("least_squares", 0.9)):
        slope = jax.grad(lambda x: OBJECTIVES[name].discriminator(x, x, 0.1)[0][0])(jnp.float32([best]))
        np.testing.assert_allclose(slope, 0.0, atol=1e-6)


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_a_masked_example_might_as_well_not_be_there(bad):
    objective, there = OBJECTIVES["relativistic"], MASK > 0

    def both(real, fake, **given):
        return *objective.discriminator(real, fake, **given), objective.generator(fake, real, **given)

    real, fake = single(np.where(there, REAL, bad), np.where(there, FAKE, -bad))
    for a, b in zip(both(real, fake, mask=MASK), both(*single(REAL[there], FAKE[there])), strict=True):
        np.testing.assert_allclose(a[there], b, rtol=1e-5, atol=1e-6)
    nobody = both(*single(REAL, FAKE), mask=np.zeros_like(MASK))
    assert all(np.isfinite(x).all() for x in nobody)


def test_many_devices_are_equal_to_one():
    """Values, and each device's gradients for its own logits of the sum of all devices' losses."""
    objective, mask = OBJECTIVES["relativistic"], jnp.asarray(MASK)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

    def run(real, fake, mask, axis=None):
        def losses(real, fake):
            given = {"mask": mask, "axis": axis}
            on_real, on_fake = objective.discriminator(real, fake, 0.1, **given)
            on_both = objective.generator(fake, real, **given)
            return jnp.stack([on_real, on_fake, on_both], axis=1) * mask[:, None]

        values, pull = jax.vjp(losses, real, fake)
        return values, *pull(jnp.ones_like(values))

    rows = PartitionSpec("data")
    spread = jax.shard_map(
        partial(run, axis="data"), mesh=mesh, in_specs=(rows,) * 3, out_specs=(rows,) * 3, check_vma=False
    )
    for a, b in zip(jax.jit(spread)(*single(REAL, FAKE), mask), run(*single(REAL, FAKE), mask), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["hinge", "wasserstein"])
def test_smoothing_without_targets_is_refused(name):
    with pytest.raises(
        ValueError, match=f'no meaning for "{name}".*non_saturating, least_squares, relativistic'
    ):
        OBJECTIVES[name].discriminator(*single(REAL, FAKE), 0.1)


@pytest.mark.parametrize("smooth", [-0.1, 1.0])
@pytest.mark.parametrize("name", SMOOTHABLE)
def test_smoothing_has_bounds(name, smooth):
    with pytest.raises(ValueError, match=f"smooth = {smooth} must be at least 0 and less than 1"):
        OBJECTIVES[name].discriminator(*single(REAL, FAKE), smooth)


# Penalties, of a discriminator with two stages that is written down for numpy and jax alike. ---------------------------

SIZES, TEXT, HIDDEN = (2 * 2 * 1, 2 * 4 * 1), 3, 5
IMAGES = [RNG.normal(size=(3, 2, 2, 1)), RNG.normal(size=(3, 2, 4, 1))]
OTHERS = [RNG.normal(size=x.shape) for x in IMAGES]
SENTENCE = RNG.normal(size=(3, TEXT))
WEIGHTS = {
    "first": RNG.normal(scale=0.5, size=(SIZES[0], HIDDEN)),
    "second": RNG.normal(scale=0.5, size=(SIZES[1], HIDDEN)),
    "text": RNG.normal(scale=0.5, size=(TEXT, HIDDEN)),
    "out": RNG.normal(scale=0.5, size=HIDDEN),
}


def judge(weights, images, sentence=None, *, tanh=np.tanh):
    """One hidden layer a stage, of the image and the sentence -> [B], the stages' sum."""
    logit = 0.0
    for name, image in zip(("first", "second"), images, strict=True):
        hidden = image.reshape(len(image), -1) @ weights[name]
        logit += tanh(hidden if sentence is None else hidden + sentence @ weights["text"]) @ weights["out"]
    return logit


def slopes(weights, arrays):
    """For each array, by finite differences: every example's squared norm of its own logit's gradient [B]."""
    result = []
    for i in range(len(arrays)):

        def logit(x):
            inputs = [*arrays[:i], x, *arrays[i + 1 :]]
            return np.sum(judge(weights, inputs[:2], *inputs[2:]))

        result.append(np.sum(differences(logit, arrays[i]).reshape(len(arrays[i]), -1) ** 2, axis=1))
    return result


MIX = np.float64(jax.random.uniform(jax.random.key(7), (3,), jnp.float32))[:, None, None, None]
POINTS = [MIX * real + (1 - MIX) * fake for real, fake in zip(IMAGES, OTHERS, strict=True)]
PENALTIES = {
    "r1": (
        lambda judge: adversarial.r1(judge, single(*IMAGES)),
        lambda weights: sum(slopes(weights, IMAGES)),
    ),
    "wasserstein": (
        lambda judge: adversarial.wasserstein_penalty(
            judge, single(*IMAGES), single(*OTHERS), jax.random.key(7)
        ),
        lambda weights: sum((np.sqrt(square) - 1) ** 2 for square in slopes(weights, POINTS)),
    ),
    "matching_aware": (
        lambda judge: adversarial.matching_aware_penalty(judge, single(*IMAGES), *single(SENTENCE)),
        lambda weights: 2 * sum(slopes(weights, [*IMAGES, SENTENCE])) ** 3,
    ),
}


@pytest.mark.parametrize("name", PENALTIES)
def test_penalties_and_their_gradients(name):
    """Values against first differences of the logit, the parameters' gradients against differences of those."""
    penalty, expected = PENALTIES[name]
    weights = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), WEIGHTS)

    @jax.jit
    def run(weights):
        def total(weights):
            values = penalty(partial(judge, weights, tanh=jnp.tanh))
            return jnp.sum(values), values

        return jax.grad(total, has_aux=True)(weights)

    gradients, values = run(weights)
    assert values.shape == (3,) and values.dtype == jnp.float32
    np.testing.assert_allclose(values, expected(WEIGHTS), rtol=1e-4)
    for part in ("second", "out"):

        def total(x):
            return np.sum(expected({**WEIGHTS, part: x}))

        by_differences = differences(total, WEIGHTS[part], step=1e-4)
        scale = np.abs(by_differences).max()
        assert scale > 1e-2
        np.testing.assert_allclose(gradients[part], by_differences, rtol=1e-3, atol=1e-3 * scale)


@pytest.mark.parametrize("name", PENALTIES)
def test_a_flat_discriminator_has_a_finite_gradient(name):
    penalty, _ = PENALTIES[name]

    @jax.jit
    def run(weights):
        def total(weights):
            values = penalty(partial(judge, weights, tanh=jnp.tanh))
            return jnp.sum(values), values

        return jax.grad(total, has_aux=True)(weights)

    flat = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), WEIGHTS)
    gradients, values = run(flat)
    np.testing.assert_allclose(values, 2.0 if name == "wasserstein" else 0.0, atol=1e-6)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradients))


def test_a_critic_of_slope_one_is_not_punished():
    direction = np.float32([[3.0], [4.0]]) / 5.0
    images = [jnp.asarray(RNG.normal(size=(4, 1, 1, 2)), jnp.float32)]
    critic = lambda images: (images[0].reshape(4, 2) @ direction)[:, 0]
    got = adversarial.wasserstein_penalty(critic, images, [-images[0]], jax.random.key(0))
    np.testing.assert_allclose(got, 0.0, atol=1e-6)
    np.testing.assert_allclose(adversarial.r1(critic, images), 1.0, rtol=1e-6)


def test_the_estimate_of_r1_is_right_on_average():
    """Over many directions; and it passes gradients to the parameters, of which the mean is that of r1."""
    weights = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), WEIGHTS)

    def total(weights, penalty):
        return jnp.sum(penalty(partial(judge, weights, tanh=jnp.tanh)))

    @jax.jit
    def estimate(key):
        return jax.value_and_grad(total)(
            weights, lambda logit: adversarial.r1_estimate(logit, single(*IMAGES), key)
        )

    value, gradient = jax.lax.map(estimate, jax.random.split(jax.random.key(0), 20_000), batch_size=1000)
    exact, slope = jax.value_and_grad(total)(weights, lambda logit: adversarial.r1(logit, single(*IMAGES)))
    np.testing.assert_allclose(np.mean(value), exact, rtol=0.05)
    for part in ("second", "out"):
        scale = np.abs(slope[part]).max()
        np.testing.assert_allclose(np.mean(gradient[part], axis=0), slope[part], atol=0.1 * scale)


def test_stages_of_an_example_are_mixed_alike():
    """Where a critic reads a stage squared, its slope is twice the point."""
    real, fake = single(np.ones((5, 1, 1, 1)), np.zeros((5, 1, 1, 1)))
    critic = lambda images: sum(jnp.sum(jnp.square(x), axis=(1, 2, 3)) for x in images)
    one = adversarial.wasserstein_penalty(critic, [real], [fake], jax.random.key(3))
    two = adversarial.wasserstein_penalty(critic, [real, real], [fake, fake], jax.random.key(3))
    np.testing.assert_allclose(two, 2 * one, rtol=1e-6)
    assert np.unique(one).size == 5


def test_kl_against_numpy_and_an_integral():
    mean, log_variance = RNG.normal(size=(4, 6)), RNG.normal(size=(4, 6))
    got = adversarial.kl(*single(mean, log_variance))
    expected = 0.5 * np.mean(mean**2 + np.exp(log_variance) - 1 - log_variance, axis=1)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    x = np.linspace(-12.0, 12.0, 100_001)
    log_p = -0.5 * (x - 0.7) ** 2 / np.exp(0.4) - 0.2
    integral = np.sum(np.exp(log_p) * (log_p + 0.5 * x**2)) * (x[1] - x[0]) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(
        adversarial.kl(jnp.float32([[0.7]]), jnp.float32([[0.4]])), [integral], rtol=1e-5
    )
    np.testing.assert_array_equal(adversarial.kl(jnp.zeros((2, 3)), jnp.zeros((2, 3))), 0.0)


def test_diversity_against_numpy():
    """Up to the bound, beyond which there is no slope."""
    image, other = RNG.normal(size=(2, 5, 3, 4, 2))
    z, other_z = RNG.normal(size=(2, 5, 7))
    ratio = np.abs(image - other).mean(axis=(1, 2, 3)) / np.abs(z - other_z).mean(axis=1)
    bound = float(np.median(ratio))
    inputs = single(image, other, z, other_z)
    got = adversarial.diversity(*inputs, bound)
    np.testing.assert_allclose(got, np.minimum(ratio, bound), rtol=1e-5)
    slope = jax.grad(lambda x: adversarial.diversity(x, *inputs[1:], bound).sum())(inputs[0])
    moves = np.abs(slope).max(axis=(1, 2, 3)) > 0
    np.testing.assert_array_equal(
        moves[ratio != np.median(ratio)], (ratio < bound)[ratio != np.median(ratio)]
    )
