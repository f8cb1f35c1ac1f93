"""A video tower of two speeds: which frames each reads, masks, other lengths and sizes, gradients, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmgen_jax.core import registry

FRAMES, EVERY, PLACES = 4, 3, 16
TOWER = {
    "name": "slow_fast",
    "slow": {"name": "convnet", "widths": (4,), "blocks": 0},
    "fast": {
        "name": "video_frames",
        "tower": {"name": "convnet", "widths": (4,), "blocks": 0, "hidden": 4, "pool": "max"},
        "over_time": {"name": "rnn", "features": 8, "bidirectional": False},
        "width": 8,
        "differences": True,
    },
    "width": 8,
    "every": EVERY,
    "frames": FRAMES,
    "grid": (4, 4),
}
SLOW = 2 * PLACES  # tokens of the frames 0 and 3


def tower(**fields):
    return registry.build("nn", {**TOWER, **fields}, dtype=jnp.float32, axis_name=None)


def clips(frames=FRAMES, size=8):
    return jnp.asarray(np.random.default_rng(0).normal(size=(2, frames, size, size, 3)), jnp.float32)


@pytest.fixture(scope="module")
def module():
    return tower()


@pytest.fixture(scope="module")
def variables(module):
    return jax.jit(lambda: module.init(jax.random.key(0), clips(), train=False))()


@pytest.fixture(scope="module")
def apply(module, variables):
    return jax.jit(lambda clip, mask=None: module.apply(variables, clip, mask, train=False))


def test_the_slow_tower_sees_some_frames_and_the_fast_one_all(apply):
    clip = clips()
    before = apply(clip)
    assert before.shape == (2, SLOW + FRAMES, 8)
    between = apply(clip.at[:, 1].add(1.0))
    np.testing.assert_array_equal(between[:, :SLOW], before[:, :SLOW])
    assert np.any(between[:, SLOW:] != before[:, SLOW:])
    seen = apply(clip.at[:, EVERY].add(1.0))
    for frame in (slice(PLACES), slice(PLACES, SLOW)):  # the one before is told where things go
        assert np.any(seen[:, frame] != before[:, frame])


def test_frames_that_are_not_there_change_nothing(apply, module):
    """Neither what they hold, nor the tokens of those that are; `token_mask` says which those are."""
    mask = jnp.array([[True, True, True, False], [True] * FRAMES])
    there = module.token_mask(mask, SLOW + FRAMES)
    np.testing.assert_array_equal(there.sum(axis=1), [PLACES + 3, SLOW + FRAMES])
    assert there[0, :PLACES].all() and not there[0, PLACES:SLOW].any()
    clip = clips()
    padded, spoiled = apply(clip, mask), apply(clip.at[0, 3].set(jnp.nan), mask)
    np.testing.assert_array_equal(padded[there], spoiled[there])


def test_other_lengths_and_sizes_resize_the_tables(apply):
    assert apply(clips(frames=7, size=12)).shape == (2, 3 * 36 + 7, 8)


def test_gradients_reach_all_parameters(module, variables):
    others = {name: tree for name, tree in variables.items() if name != "params"}
    mask = jnp.array([[True, True, False, False], [True] * FRAMES])
    there = module.token_mask(mask, SLOW + FRAMES)[..., None]

    @jax.jit
    @jax.grad
    def gradient(params):
        tokens = module.apply({"params": params, **others}, clips(), mask, train=False)
        return jnp.sum(jnp.where(there, jnp.sin(tokens), 0.0))

    for path, leaf in jax.tree_util.tree_flatten_with_path(gradient(variables["params"]))[0]:
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, jax.tree_util.keystr(path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"variant": "r50"}, "has no variants"),
        ({"evry": 2}, 'Did you mean "every"'),
        ({"slow": {"name": "convnt"}}, 'Did you mean "convnet"'),
    ],
)
def test_errors_name_the_remedy(fields, message):
    with pytest.raises(ValueError, match=message):
        tower(**fields)


@pytest.mark.parametrize(
    ("name", "pool", "message"),
    [("slow", "mean", "gives no grid"), ("fast", "none", "not one token of 8 features for each of 4 frames")],
)
def test_towers_that_give_something_else_are_refused(name, pool, message):
    part = TOWER[name] if name == "slow" else TOWER[name]["tower"]
    part = {**part, "pool": pool}
    module = tower(**{name: part if name == "slow" else {**TOWER[name], "tower": part}})
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: module.init(jax.random.key(0), clips(), train=False))


def test_weights_on_tokens_are_weights_on_frames():
    """A slow frame's places keep theirs, a fast frame's token gives its own evenly; the sum stays."""
    weights = np.random.default_rng(0).random((2, SLOW + FRAMES), np.float32)
    placed = np.asarray(tower().over_frames(jnp.asarray(weights), FRAMES))
    assert placed.shape == (2, FRAMES, PLACES)
    for frame in range(FRAMES):
        expected = np.repeat(weights[:, SLOW + frame, None] / PLACES, PLACES, axis=1)
        if frame % EVERY == 0:
            expected += weights[:, frame // EVERY * PLACES :][:, :PLACES]
        np.testing.assert_allclose(placed[:, frame], expected, rtol=1e-6)
    np.testing.assert_allclose(placed.sum(axis=(1, 2)), weights.sum(axis=1), rtol=1e-6)
