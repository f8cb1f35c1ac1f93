"""Video towers: divided attention against a loop, masks of frames, pools, shapes, gradients, compiled and not."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import erf

from mmgen_jax.core import registry
from mmgen_jax.nn import video, video_frames, video_transformer

FRAMES = 4
TRANSFORMER = {
    "name": "video_transformer",
    "width": 8,
    "depth": 2,
    "heads": 2,
    "frames": FRAMES,
    "patch": 4,
    "image_size": 8,
}
FRAME_TOWER = {"name": "video_frames", "tower": {"name": "convnet", "widths": (4,), "blocks": 0}, "width": 8}
TOWERS = {
    "divided": {**TRANSFORMER, "class_token": True},
    "divided, no token": TRANSFORMER,
    "joint": {**TRANSFORMER, "attention": "joint", "tubelet": 2, "class_token": True},
    "factorised": {**TRANSFORMER, "attention": "factorised", "tubelet": 2, "time_depth": 1},
    "transformer over grids": {
        **FRAME_TOWER,
        "over_time": {"name": "transformer", "depth": 1, "heads": 2, "frames": FRAMES},
    },
    "gru over vectors": {
        **FRAME_TOWER,
        "tower": {**FRAME_TOWER["tower"], "pool": "mean"},
        "differences": True,
        "over_time": {"name": "rnn", "features": 4},
    },
}
STEPS = {"joint": (2, 4), "factorised": (2, 1), "transformer over grids": (4, 16), "gru over vectors": (4, 1)}


def tower(name, **fields):
    return registry.build("nn", {**TOWERS[name], **fields}, dtype=jnp.float32, axis_name=None)


def clips(batch=2, frames=FRAMES):
    return jnp.asarray(np.random.default_rng(0).normal(size=(batch, frames, 8, 8, 3)), jnp.float32)


def start(module, seed=1):
    """Parameters that are not small, so that every branch counts."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), clips(), train=False))
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda leaf: jnp.float32(rng.normal(scale=0.4, size=leaf.shape)), shapes["params"])
    others = {name: tree for name, tree in shapes.items() if name != "params"}
    return {"params": params, **jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), others)}


@pytest.fixture(scope="module", params=TOWERS)
def built(request):
    module = tower(request.param)
    return request.param, module, start(module)


def norm(x, p):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def dense(x, p):
    return x @ p["kernel"] + p["bias"]


def look(query, keys, p, name):
    """One token looks at a list of tokens, head by head, after their norms. query: [D]; keys: n x [D] -> [D]."""
    of = [norm(token, p[f"{name}_norm"]) for token in (query, *keys)]
    q, *_ = np.split(dense(of[0], p[f"{name}_qkv"]), 3)
    result = []
    for h in (slice(0, 4), slice(4, 8)):
        scores, values = [], []
        for token in of[1:]:
            _, k, v = np.split(dense(token, p[f"{name}_qkv"]), 3)
            scores.append(q[h] @ k[h] / 2.0)
            values.append(v[h])
        weights = np.exp(scores) / np.sum(np.exp(scores))
        result.append(sum(w * v for w, v in zip(weights, values, strict=True)))
    return dense(np.concatenate(result), p[f"{name}_out"])


@pytest.mark.parametrize("with_token", [True, False])
def test_divided_attention_equals_a_loop(with_token):
    """Token by token in float64: its place in the frames that are there, then its frame's places and the class token."""
    times, places, rng = 3, 4, np.random.default_rng(3)
    x, first = rng.normal(size=(2, times, places, 8)), rng.normal(size=(2, 8)) if with_token else None
    mask = np.array([[True, True, True], [True, False, True]])
    block = video_transformer.DividedBlock(2, 16, "gelu", 1e-6, 0.0, jnp.float32)
    given = jnp.float32(x), None if first is None else jnp.float32(first), jnp.asarray(mask)
    shapes = jax.eval_shape(lambda: block.init(jax.random.key(0), *given, False))["params"]
    params = jax.tree.map(lambda leaf: rng.normal(scale=0.4, size=leaf.shape), shapes)
    want, want_first = np.copy(x), None if first is None else np.copy(first)

    def mlp(token):
        y = dense(norm(token, params["mlp_norm"]), params["mlp_in"])
        y = y * (1 + np.asarray(erf(np.float32(y / 2**0.5)))) / 2
        return token + dense(y, params["mlp_out"])

    for b in range(2):
        there = np.flatnonzero(mask[b])
        for t, s in itertools.product(range(times), range(places)):
            want[b, t, s] += look(x[b, t, s], [x[b, other, s] for other in there], params, "time")
        after = np.copy(want[b])
        for t in range(times):
            keys = [*([] if first is None else [first[b]]), *after[t]]
            for s in range(places):
                want[b, t, s] += look(after[t, s], keys, params, "space")
            if first is not None and mask[b, t]:
                want_first[b] += look(first[b], keys, params, "space") / len(there)
        for t, s in itertools.product(range(times), range(places)):
            want[b, t, s] = mlp(want[b, t, s])
        if first is not None:
            want_first[b] = mlp(want_first[b])
    params = {"params": jax.tree.map(jnp.float32, params)}
    got, got_first = jax.jit(lambda x, first, mask: block.apply(params, x, first, mask, False))(*given)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    assert (got_first is None) == (first is None)
    if first is not None:
        np.testing.assert_allclose(got_first, want_first, rtol=1e-5, atol=1e-5)


def test_shapes_of_all_pools(built):
    name, module, variables = built
    times, places = STEPS.get(name, (FRAMES, 4))
    wanted = {"none": (2, times * places, 8), "frames": (2, FRAMES, 8), "mean": (2, 8), "class": (2, 8)}
    for pool, shape in wanted.items():
        if pool == "class" and not TOWERS[name].get("class_token"):
            continue
        pooled = module.clone(pool=pool)
        got = jax.eval_shape(lambda clip, pooled=pooled: pooled.apply(variables, clip, train=False), clips())
        assert (got.shape, got.dtype) == (shape, jnp.float32), pool
    mask = jnp.array([[True, True, False, False], [True] * 4])
    there = module.token_mask(mask, times * places)
    assert there.sum(axis=1).tolist() == [times * places // 2, times * places]
    assert there[0, : times * places // 2].all()
    weights = jnp.arange(2.0 * times * places).reshape(2, -1)
    placed = module.over_frames(weights, FRAMES)  # a tubelet's frames share what is its
    np.testing.assert_allclose(
        placed.reshape(2, times, FRAMES // times, places).sum(axis=2).reshape(2, -1), weights
    )
    np.testing.assert_array_equal(placed, np.repeat(placed[:, :: FRAMES // times], FRAMES // times, axis=1))


def test_frames_that_are_not_there_change_nothing(built):
    """A padded clip gives what the short clip gives, whatever lies in the padding; a mask of all frames is none."""
    _, module, variables = built
    pooled = module.clone(pool="mean")

    @jax.jit
    def apply(clip, mask):
        return [one.apply(variables, clip, mask, train=False) for one in (module, pooled)]

    clip, mask = clips(), jnp.array([[True, True, False, False], [True] * 4])
    got, mean = apply(clip.at[0, 2:].set(jnp.nan), mask)
    half = got.shape[1] // 2
    np.testing.assert_array_equal(got[0, :half], apply(clip, mask)[0][0, :half])
    np.testing.assert_allclose(mean[0], got[0, :half].mean(axis=0), rtol=1e-5, atol=1e-5)
    whole = jax.jit(lambda clip: module.apply(variables, clip, train=False))(clip)
    np.testing.assert_allclose(got[1], whole[1], rtol=1e-5, atol=1e-5)
    assert not np.allclose(got[0, :half], whole[0, :half], atol=1e-3), "without the mask the frames meet"
    np.testing.assert_array_equal(apply(clip, jnp.zeros((2, FRAMES), bool))[1], 0.0)


def test_compiled_equals_eager():
    module = tower("joint")
    variables, mask = start(module), jnp.array([[True, True, False, False], [True] * 4])
    eager = module.apply(variables, clips(), mask, train=False)
    compiled = jax.jit(lambda clip: module.apply(variables, clip, mask, train=False))(clips())
    np.testing.assert_allclose(compiled, eager, rtol=1e-5, atol=1e-5)


def test_differences_show_what_has_changed():
    """Of a still clip they are 0: a tower without them, whose kernel is the first channels', gives the same."""
    still = jnp.repeat(clips(1, 1), FRAMES, axis=1)
    with_them, without = tower("gru over vectors"), tower("gru over vectors", differences=False)
    variables = start(with_them)
    kernel = variables["params"]["tower"]["conv1"]["kernel"]
    cut = {**variables["params"]["tower"], "conv1": {"kernel": kernel[:, :, :3]}}
    other = {**variables, "params": {**variables["params"], "tower": cut}}

    @jax.jit
    def run(clip):
        return with_them.apply(variables, clip, train=False), without.apply(other, clip, train=False)

    np.testing.assert_allclose(*run(still), rtol=1e-5, atol=1e-5)
    moving = run(clips(1))
    assert np.abs(moving[0] - moving[1]).max() > 1e-3


def test_gradients_reach_all_parameters(built):
    """Of the mean over frames that are there; padding that is not finite spoils none."""
    name, module, variables = built
    mask = jnp.array([[True, True, False, False], [True] * 4])
    clip = clips().at[0, 2:].set(jnp.nan)
    others = {key: tree for key, tree in variables.items() if key != "params"}
    pooled = module.clone(pool="class" if TOWERS[name].get("class_token") else "mean")

    @jax.jit
    @jax.grad
    def gradient(params):
        return jnp.sum(jnp.sin(pooled.apply({"params": params, **others}, clip, mask, train=False)))

    for path, leaf in jax.tree_util.tree_flatten_with_path(gradient(variables["params"]))[0]:
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, jax.tree_util.keystr(path)


def test_recomputation_changes_nothing(same):
    def gradient(remat):
        module = tower("divided", remat=remat, pool="class")
        variables = start(module)

        def loss(variables):
            return jnp.mean(jnp.sin(module.apply(variables, clips(), train=True)))

        assert ("remat" in str(jax.make_jaxpr(jax.grad(loss))(variables))) == remat
        return jax.jit(jax.grad(loss))(variables)

    same(gradient(True), gradient(False), rtol=1e-4, atol=1e-6)


def test_tubelets_are_boxes():
    clip = np.arange(4 * 4 * 4 * 2).reshape(1, 4, 4, 4, 2)
    cut = video_transformer.tubelets(jnp.asarray(clip), 2, 2)
    assert cut.shape == (1, 2, 2, 2, 16)
    np.testing.assert_array_equal(cut[0, 1, 0, 1], clip[0, 2:4, 0:2, 2:4].reshape(-1))


def test_other_lengths_and_sizes_resize_the_tables():
    module = tower("joint", pool="none")
    variables = start(module)
    clip = jnp.ones((1, 8, 8, 16, 3))
    got = jax.eval_shape(lambda: module.apply(variables, clip, train=False))
    assert got.shape == (1, 4 * 2 * 4, 8)


@pytest.mark.parametrize(
    ("variant", "blocks"),
    # ViT-B/16's count without class token's position; a block of TimeSformer has a second attention with its norm.
    [("timesformer_b", 12 * (768 * 2304 + 2304 + 768 * 768 + 768 + 2 * 768) + 8 * 768), ("vivit_b", None)],
)
def test_published_variants(variant, blocks):
    module = video_transformer.make(variant=variant, dtype=jnp.bfloat16)
    clip = jax.ShapeDtypeStruct((1, module.frames, 224, 224, 3), jnp.float32)
    pooled, variables = jax.eval_shape(
        lambda clip: module.init_with_output(jax.random.key(0), clip, train=False), clip
    )
    assert (pooled.shape, pooled.dtype) == ((1, 768), jnp.bfloat16)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables))
    vit_b = 86_567_656 - 1000 * 769 - 768
    if blocks:
        assert count == vit_b + blocks
    else:
        layer = 12 * 768**2 + 13 * 768
        # Twice as many pixels a token, times, four more layers with a norm and a class token of their own.
        assert count == vit_b + 768 * 768 + 16 * 768 + 4 * layer + 3 * 768


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attention": "dividde"}, 'Did you mean "divided"'),
        ({"attention": "joint", "time_depth": 2}, "the others have none"),
        ({"attention": "factorised"}, "needs blocks over time"),
        ({"tubelet": 3}, "does not divide into tubelets of 3"),
        ({"heads": 3}, "does not divide width"),
        ({"pool": "class"}, "class_token = True"),
        ({"pool": "median"}, "video pool"),
    ],
)
def test_errors_name_the_remedy(fields, message):
    with pytest.raises(ValueError, match=message):
        start(tower("divided, no token", **fields))


def test_wrong_inputs_are_refused():
    with pytest.raises(ValueError, match=r"reads clips \[B, F, H, W, 3\]"):
        video.blank(jnp.zeros((2, 8, 8, 3)), None)
    with pytest.raises(ValueError, match=r"it is \[B, F\]"):
        video.blank(clips(), jnp.ones((2, 3), bool))
    with pytest.raises(ValueError, match="net over time"):
        video_frames.make(tower={"name": "convnet"}, over_time={}, width=8, dtype=jnp.float32)
    with pytest.raises(ValueError, match='Did you mean "cell"'):
        video_frames.make(
            tower={"name": "convnet"}, over_time={"name": "rnn", "cel": "gru"}, width=8, dtype=jnp.float32
        )
