"""Matching of frames place with place: what moves, what does not, frames that are not there, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmgen_jax.nn.matching import Matching

ROWS, COLUMNS, FEATURES = 4, 5, 32


@pytest.fixture(scope="module")
def variables():
    variables = Matching(width=FEATURES).init(jax.random.key(0), jnp.zeros((1, 2, ROWS, COLUMNS, FEATURES)))
    # Only what looks the same counts.
    sharp = {"sharpness": jnp.float32(200.0), "nearness": jnp.float32(0.0)}
    return {"params": {**variables["params"], **sharp}}


def moving(steps):
    """A clip of places that all look different, in which everything goes by `steps` (rows, columns), round the edges."""
    rng = np.random.default_rng(0)
    frame = rng.normal(size=(ROWS, COLUMNS, FEATURES)).astype(np.float32)
    frames = [frame]
    for step in steps:
        frames.append(np.roll(frames[-1], step, axis=(0, 1)))
    return np.stack(frames)[None]


def test_what_moves_is_followed_both_ways(variables):
    clip = moving([(1, 0), (0, -2)])
    moved, changed = Matching(width=FEATURES).apply(variables, clip)
    assert changed.shape == (1, 3, ROWS, COLUMNS, 2 * FEATURES)
    np.testing.assert_allclose(changed, 0.0, atol=1e-3)  # all of it is there again, somewhere
    assert moved.shape == (1, 3, ROWS, COLUMNS, 4)
    inner = moved[0, :, 1:3, 2:3]  # what does not leave the picture
    np.testing.assert_allclose(inner[0], np.broadcast_to([0, 0, 1, 0], inner[0].shape), atol=1e-3)
    np.testing.assert_allclose(inner[1], np.broadcast_to([1, 0, 0, -2], inner[1].shape), atol=1e-3)
    np.testing.assert_allclose(moved[0, 2, :, :3, :2], np.broadcast_to([0, -2], (ROWS, 3, 2)), atol=1e-3)
    np.testing.assert_array_equal(moved[0, 2, ..., 2:], 0.0)


def test_nothing_moves_in_what_looks_alike():
    """A clip of one colour: the mean of the places near by is the place itself, but at the edges."""
    module, clip = Matching(), jnp.ones((1, 2, 7, 7, 3))
    moved, changed = module.apply(module.init(jax.random.key(0), clip), clip)
    np.testing.assert_allclose(changed, 0.0, atol=1e-6)
    np.testing.assert_allclose(moved[0, :, 3, 3], 0.0, atol=1e-5)
    assert np.abs(moved).max() < 1.5


def test_what_changes_is_told_at_its_place_both_ways(variables):
    """A place whose features turn by a third of their length is still its own match, and only there is a change."""
    clip = moving([(0, 0), (0, 0)])
    change = np.zeros(FEATURES, np.float32)
    change[:4] = np.linalg.norm(clip[0, 0, 2, 3]) / 6
    clip[0, 1:, 2, 3] += change
    moved, changed = Matching(width=FEATURES).apply(variables, clip)
    np.testing.assert_allclose(moved, 0.0, atol=1e-2)
    expected = np.zeros_like(changed)
    expected[0, 0, 2, 3, FEATURES:] = expected[0, 1, 2, 3, :FEATURES] = change
    np.testing.assert_allclose(changed, expected, atol=2e-2)


def test_frames_that_are_not_there_move_nothing(variables):
    clip = moving([(1, 0), (1, 0)])
    module, mask = Matching(width=FEATURES), jnp.array([[True, True, False]])
    there = module.apply(variables, clip, mask)
    for some, all_of in zip(there, module.apply(variables, clip), strict=True):
        half = some.shape[-1] // 2
        np.testing.assert_array_equal(some[0, 0], all_of[0, 0])
        np.testing.assert_array_equal(some[0, 1, ..., half:], 0.0)
        np.testing.assert_array_equal(some[0, 2], 0.0)


def test_gradients_are_finite_and_reach_all_parameters():
    """Also where a clip is of one colour, and all features that are compared are 0."""
    module = Matching(width=8)

    def total(variables, clip):
        return sum(jnp.sum(jnp.sin(x)) for x in module.apply(variables, clip))

    for clip in (moving([(1, 0)]), np.ones((1, 2, ROWS, COLUMNS, FEATURES), np.float32)):
        variables = module.init(jax.random.key(0), clip)
        gradient = jax.grad(total)(variables, clip)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    gradient = jax.grad(total)(variables, moving([(1, 0)]))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))
