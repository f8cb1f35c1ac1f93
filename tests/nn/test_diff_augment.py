"""What each augmentation does, to all stages alike, and that gradients find their way back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mmgen_jax.nn.diff_augment import POLICIES, diff_augment

ALL = ("colour", "translation", "cutout")


def images(batch=16, height=16, width=8, seed=0):
    values = np.random.default_rng(seed).uniform(-1, 1, (batch, height, width, 3))
    return jnp.asarray(values, jnp.float32)


def pool(x, factor):
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // factor, factor, width // factor, factor, channels).mean(axis=(2, 4))


augment = jax.jit(diff_augment, static_argnums=(2, 3))


def run(x, policy, seed=0, strength=1.0):
    return np.asarray(augment((x,), jax.random.key(seed), (policy,), strength)[0])


def test_identity_at_zero_strength_and_without_a_policy():
    stages = (images(height=4, width=4), images(height=8, width=8).astype(jnp.bfloat16))
    for policy, strength in ((ALL, 0.0), ((), 1.0)):
        got = diff_augment(stages, jax.random.key(0), policy, strength)
        for a, b in zip(got, stages, strict=True):
            assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("policy", ALL)
def test_a_little_strength_changes_little(policy):
    x = images()
    np.testing.assert_allclose(run(x, policy, strength=1e-3), x, atol=5e-3)


@pytest.mark.parametrize("policy", ALL)
def test_draws_follow_the_key_and_differ_between_examples(policy):
    x = jnp.repeat(images(1), 32, axis=0)
    got = run(x, policy)
    np.testing.assert_array_equal(got, run(x, policy))
    assert not np.array_equal(got, run(x, policy, seed=1))
    assert len(np.unique(got.reshape(32, -1), axis=0)) > 8


def test_colour():
    """Brightness is what the mean gains, saturation what scales the channels' differences, contrast the rest."""
    x = np.float64(images(400))
    got = np.float64(run(jnp.asarray(x, jnp.float32), "colour"))
    brightness = got.mean(axis=(1, 2, 3)) - x.mean(axis=(1, 2, 3))

    def grey(x):
        return x.mean(axis=3, keepdims=True)

    def scale(new, old):
        """By how much the one is a multiple of the other, and that it is."""
        factor = np.sum(new * old, axis=(1, 2, 3)) / np.sum(old * old, axis=(1, 2, 3))
        np.testing.assert_allclose(new, factor[:, None, None, None] * old, atol=1e-5)
        return factor

    mean = x.mean(axis=(1, 2, 3), keepdims=True)
    contrast = scale(grey(got) - got.mean(axis=(1, 2, 3), keepdims=True), grey(x) - mean)
    saturation = scale(got - grey(got), x - grey(x)) / contrast
    for values, low, high in ((brightness, -0.5, 0.5), (contrast, 0.5, 1.5), (saturation, 0.0, 2.0)):
        reach = high - low
        assert low - 1e-4 < values.min() < low + 0.05 * reach
        assert high - 0.05 * reach < values.max() < high + 1e-4
        np.testing.assert_allclose(values.mean(), (low + high) / 2, atol=0.06 * reach)
    assert np.abs(np.corrcoef([brightness, contrast, saturation]) - np.eye(3)).max() < 0.2
    # Twice, then half as much again, of what is at most 2 from a mean, which moves by half.
    assert np.abs(got).max() < 6.5


def test_translation():
    """Every example is the old one, moved by at most 1/8, with 0 where nothing came from; all moves occur."""
    x = images(400, 16, 8)
    got, seen = run(x, "translation"), set()
    padded = np.pad(x, ((0, 0), (2, 2), (1, 1), (0, 0)))
    for old, new in zip(padded, got, strict=True):
        moves = [
            (row, column) for row in range(5) for column in range(3)
            if np.array_equal(old[row : row + 16, column : column + 8], new)
        ]  # fmt: skip
        assert len(moves) == 1
        seen.add(moves[0])
    assert len(seen) == 15


def test_cutout():
    """A rectangle of half of either side is 0 and the rest is as it was; its middle is anywhere."""
    x = images(600, 8, 6)
    got = run(x, "cutout")
    cut = np.all(got == 0, axis=3)
    np.testing.assert_array_equal(got, np.where(cut[..., None], 0, x))
    rows, columns = cut.any(axis=2), cut.any(axis=1)
    np.testing.assert_array_equal(cut, rows[:, :, None] & columns[:, None, :])
    # 4 rows around one of 9 edges; 3 columns around one of 6 pixels.
    assert {tuple(np.flatnonzero(row)) for row in rows} == {
        tuple(i for i in range(first, first + 4) if 0 <= i < 8) for first in range(-2, 7)
    }
    assert {tuple(np.flatnonzero(column)) for column in columns} == {
        tuple(i for i in range(first, first + 3) if 0 <= i < 6) for first in range(-1, 5)
    }


@pytest.mark.parametrize("policy", [*((name,) for name in ALL), ALL])
def test_stages_share_the_draw(policy):
    """Augmenting and pooling commute, so the stages of an example stay pictures of the same."""
    large = images(12, 32, 16)
    stages = (pool(large, 4), pool(large, 2), large)
    got = jax.jit(lambda stages: diff_augment(stages, jax.random.key(2), policy))(stages)
    np.testing.assert_allclose(got[0], pool(got[2], 4), atol=1e-5)
    np.testing.assert_allclose(got[1], pool(got[2], 2), atol=1e-5)
    assert np.abs(got[2] - large).max() > 0.1


def test_gradients_against_finite_differences():
    """The augmentation is linear in the image but for an offset, so float32 differences are good ones; rows by reverse mode."""
    stages = (images(2, 2, 2, seed=1), images(2, 8, 8, seed=2))
    weights = jax.tree.map(lambda x: jnp.cos(3.0 * x), stages)

    @jax.jit
    def value(stages):
        got = diff_augment(stages, jax.random.key(5), ALL)
        return sum(jnp.sum(jnp.sin(x) * w) for x, w in zip(got, weights, strict=True))

    gradients = jax.jit(jax.grad(value))(stages)
    rng = np.random.default_rng(0)
    for _ in range(8):
        way = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), stages)

        def moved(step):
            return float(value(jax.tree.map(lambda x, w: x + jnp.float32(step) * w, stages, way)))

        expected = (moved(1e-2) - moved(-1e-2)) / 2e-2
        got = sum(float(jnp.sum(g * w)) for g, w in zip(gradients, way, strict=True))
        np.testing.assert_allclose(got, expected, rtol=2e-3, atol=2e-3)


def test_the_gradient_of_a_translation_moves_back():
    """Exactly the transposed matrix, found by moving every unit image; and once more, for penalties."""
    key, x = jax.random.key(1), images(1, 8, 8)[..., :1]
    move = jax.jit(lambda x: diff_augment((x,), key, ("translation",))[0])
    shape = (64, 8, 8, 1)
    gradient = jax.jit(jax.grad(lambda x, w: jnp.sum(move(x) * w)))
    units = np.eye(64, dtype=np.float32).reshape(shape)
    matrix = np.stack([move(unit[None])[0].ravel() for unit in units], axis=1)
    back = np.stack([gradient(x, unit[None])[0].ravel() for unit in units], axis=1)
    np.testing.assert_array_equal(back, matrix.T)
    assert 0 < matrix.sum() < 64

    def penalty(x):
        return jnp.sum(jnp.square(jax.grad(lambda x: jnp.sum(jnp.square(move(x))))(x)))

    inside = matrix.sum(axis=0).reshape(x.shape)
    np.testing.assert_allclose(jax.jit(jax.grad(penalty))(x), 8 * x * inside, rtol=1e-5)


def test_dtypes_stay():
    got = augment((images().astype(jnp.bfloat16), images()), jax.random.key(0), ALL)
    assert [x.dtype for x in got] == [jnp.bfloat16, jnp.float32]
    np.testing.assert_allclose(np.float32(got[0]), got[1], atol=0.05)


def test_a_batch_over_devices_stays_where_it_is():
    """No image travels to another device, forward or back."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))

    def gradient(x, rng):
        return jax.grad(lambda x: jnp.sum(jnp.square(diff_augment((x,), rng, ALL)[0])))(x)

    step = jax.jit(gradient, in_shardings=(rows, None), out_shardings=rows)
    x, rng = images(16), jax.random.key(0)
    compiled = step.lower(x, rng).compile()
    assert not any(name in compiled.as_text() for name in ("all-gather", "all-to-all", "collective-permute"))
    np.testing.assert_allclose(
        compiled(jax.device_put(x, rows), rng), jax.jit(gradient)(x, rng), rtol=1e-5, atol=1e-6
    )


def test_errors():
    assert set(POLICIES) == set(ALL)
    with pytest.raises(ValueError, match=r'Unknown policy of diff_augment "color".*Did you mean "colour"'):
        diff_augment((images(),), jax.random.key(0), ("color",))
    with pytest.raises(ValueError, match="12x8 is none of 8x8"):
        diff_augment((images(1, 8, 8), images(1, 12, 8)), jax.random.key(0), ALL)
