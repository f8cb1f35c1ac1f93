"""Contrastive losses against float64 numpy and PyTorch, in tiles of any size, on any number of devices, in bounded memory."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from mmgen_jax.losses import contrastive

SCALE, BIAS = 10.0, -3.0


def examples(count, features, noise=1.0, seed=0):
    """image, text: unit rows, float32 [count, features], the closer to each other the less noise."""
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(count, features))
    text = image + noise * rng.normal(size=image.shape)
    return [(x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for x in (image, text)]


def marks(count, seed=0):
    """weight (some 0), image_id, text_id: some pairs have an image or a text in common, and not always the same two."""
    rng = np.random.default_rng(seed)
    weight = rng.uniform(0.5, 2.0, count) * (np.arange(count) % 5 != 1)
    image_id, text_id = np.arange(count) // 2, rng.integers(0, count, count)
    return {"weight": np.float32(weight), "image_id": np.int32(image_id), "text_id": np.int32(text_id)}


def relation(count, weight=None, image_id=None, text_id=None):
    """Which entries off the diagonal are of two real pairs, and which of those of equal ones."""
    real = np.ones(count, bool) if weight is None else weight > 0
    others = real[:, None] & real[None, :] & ~np.eye(count, dtype=bool)
    same = np.zeros_like(others)
    for ids in (image_id, text_id):
        if ids is not None:
            same |= ids[:, None] == ids[None, :]
    return others, same & others


def info_nce(image, text, scale, cotangent, *, equal="negative", symmetric=True, **marked):
    """Float64: losses, and of sum(cotangent * losses) the gradients of image, text and scale."""
    x, y = image.astype(np.float64), text.astype(np.float64)
    weight, eye = marked.get("weight"), np.eye(len(x), dtype=bool)
    others, same = relation(len(x), **marked)
    allowed = eye | (others & ~same if equal == "ignore" else others)
    target = (eye | same if equal == "positive" else eye).astype(np.float64)
    target /= target.sum(axis=1, keepdims=True)
    share = cotangent * (1.0 if weight is None else weight) / (2 if symmetric else 1)
    losses, slope = np.zeros(len(x)), np.zeros_like(target)
    for flip in (False, True)[: 1 + symmetric]:
        logits = scale * (y @ x.T if flip else x @ y.T)
        masked = np.where(allowed, logits, -np.inf)
        log_p = masked - np.logaddexp.reduce(masked, axis=1, keepdims=True)
        losses -= np.sum(target * np.where(target > 0, log_p, 0.0), axis=1)
        one = share[:, None] * (np.exp(log_p) - target)
        slope += one.T if flip else one
    losses = losses / (2 if symmetric else 1) * (1.0 if weight is None else weight)
    return losses, scale * slope @ y, scale * slope.T @ x, np.sum(slope * (x @ y.T))


def sigmoid(image, text, scale, bias, cotangent, *, equal="negative", **marked):
    """Float64: losses, and of sum(cotangent * losses) the gradients of image, text, scale and bias."""
    x, y = image.astype(np.float64), text.astype(np.float64)
    weight, eye = marked.get("weight"), np.eye(len(x), dtype=bool)
    others, same = relation(len(x), **marked)
    allowed = eye | (others & ~same if equal == "ignore" else others)
    sign = np.where(eye | same if equal == "positive" else eye, 1.0, -1.0)
    z = sign * (scale * x @ y.T + bias)
    weight = np.ones(len(x)) if weight is None else weight
    losses = weight * np.sum(np.where(allowed, np.logaddexp(0.0, -z), 0.0), axis=1)
    slope = np.where(allowed, -sign / (1.0 + np.exp(z)), 0.0) * (cotangent * weight)[:, None]
    return losses, scale * slope @ y, scale * slope.T @ x, np.sum(slope * (x @ y.T)), np.sum(slope)


def with_gradients(loss, cotangent, *inputs):
    """losses, and of sum(cotangent * losses) the gradients of all inputs."""

    @jax.jit
    def run(*inputs):
        losses, pull = jax.vjp(loss, *inputs)
        return losses, *pull(cotangent)

    return run(*(jnp.asarray(x, None if isinstance(x, jax.Array) else jnp.float32) for x in inputs))


def close(got, expected, tolerance=1e-5):
    for a, b in zip(got, expected, strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max() + 1e-30, (
            np.abs(a - b).max(),
            np.abs(b).max(),
        )


COUNT, FEATURES = 13, 6
IMAGE, TEXT = examples(COUNT, FEATURES)
COTANGENT = np.cos(np.arange(COUNT)).astype(np.float32)


@pytest.mark.parametrize("block", [0, 5])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("equal", [None, "negative", "positive", "ignore"])
def test_info_nce(equal, symmetric, block):
    options = dict(symmetric=symmetric, **(dict(equal=equal, **marks(COUNT)) if equal else {}))
    loss = partial(contrastive.info_nce, block_size=block, **options)
    close(
        with_gradients(loss, COTANGENT, IMAGE, TEXT, SCALE),
        info_nce(IMAGE, TEXT, SCALE, COTANGENT, **options),
    )


@pytest.mark.parametrize("block", [0, 5])
@pytest.mark.parametrize("equal", ["negative", "positive", "ignore"])
def test_sigmoid(equal, block):
    options = dict(equal=equal, **marks(COUNT))
    loss = partial(contrastive.sigmoid, block_size=block, **options)
    expected = sigmoid(IMAGE, TEXT, SCALE, BIAS, COTANGENT, **options)
    close(with_gradients(loss, COTANGENT, IMAGE, TEXT, SCALE, BIAS), expected)


@pytest.mark.parametrize("block", [1, 4, 7, 13, 14, 1000])
def test_every_block_size_gives_the_same(block):
    options = dict(equal="positive", block_size=block, **marks(COUNT))

    def both(image, text, scale, bias):
        return contrastive.info_nce(image, text, scale, **options) + contrastive.sigmoid(
            image, text, scale, bias, **options
        )

    got = with_gradients(both, COTANGENT, IMAGE, TEXT, SCALE, BIAS)
    del options["block_size"]
    a, b = (
        info_nce(IMAGE, TEXT, SCALE, COTANGENT, **options),
        sigmoid(IMAGE, TEXT, SCALE, BIAS, COTANGENT, **options),
    )
    close(got, [x + y for x, y in zip((*a, 0.0), b, strict=True)])


@pytest.mark.parametrize("scale", [14.3, 100.0])
@pytest.mark.parametrize("block", [0, 64, 100])
def test_five_digits_at_larger_sizes_and_scales(block, scale):
    image, text = examples(200, 48, noise=2.0)
    cotangent = np.full(200, 1 / 200, np.float32)
    got = with_gradients(partial(contrastive.info_nce, block_size=block), cotangent, image, text, scale)
    close(got, info_nce(image, text, np.float64(np.float32(scale)), cotangent))
    got = with_gradients(partial(contrastive.sigmoid, block_size=block), cotangent, image, text, scale, -10.0)
    close(got, sigmoid(image, text, np.float64(np.float32(scale)), -10.0, cotangent))


@pytest.mark.parametrize("block", [0, 16])
def test_pairs_that_are_all_but_learned_keep_their_digits(block):
    """A loss of 1e-5 comes from logits of 40: what float32 leaves of log(sum) - logit would be noise."""
    image, text = examples(32, 64, noise=0.8)
    cotangent = np.ones(32, np.float32)
    expected = info_nce(image, text, 40.0, cotangent)
    assert 1e-9 < expected[0].max() < 1e-3
    close(
        with_gradients(partial(contrastive.info_nce, block_size=block), cotangent, image, text, 40.0),
        expected,
        tolerance=2e-5,
    )


@pytest.mark.parametrize("block", [0, 16])
def test_bfloat16_at_the_highest_scale(block):
    """Logits are exact products, sums float32: only the gradients carry bfloat16's rounding."""
    image, text = (jnp.asarray(x, jnp.bfloat16) for x in examples(40, 32, noise=2.0))
    cotangent = np.full(40, 1 / 40, np.float32)
    rounded = [np.asarray(x, np.float64) for x in (image, text)]
    expected = info_nce(*rounded, 100.0, cotangent)
    loss = partial(contrastive.info_nce, block_size=block)
    losses, *gradients = with_gradients(loss, cotangent, image, text, jnp.float32(100))
    assert losses.dtype == jnp.float32 and gradients[0].dtype == jnp.bfloat16
    close([losses], expected[:1])
    close(gradients, expected[1:], tolerance=2e-2)


@pytest.mark.parametrize("block", [0, 5])
def test_equal_to_pytorch(block):
    torch = pytest.importorskip("torch")
    cross_entropy, log_sigmoid = torch.nn.functional.cross_entropy, torch.nn.functional.logsigmoid
    inputs = [
        torch.tensor(np.asarray(x), dtype=torch.float64, requires_grad=True)
        for x in (IMAGE, TEXT, SCALE, BIAS)
    ]
    image, text, scale, bias = inputs
    logits, target = scale * image @ text.T, torch.arange(COUNT)
    clip = 0.5 * (
        cross_entropy(logits, target, reduction="none") + cross_entropy(logits.T, target, reduction="none")
    )
    siglip = -log_sigmoid((2 * torch.eye(COUNT) - 1) * (logits + bias)).sum(dim=1)

    def ours(image, text, scale, bias):
        pair = contrastive.sigmoid(image, text, scale, bias, block_size=block)
        return 2.0 * contrastive.info_nce(image, text, scale, block_size=block) + pair

    losses = 2.0 * clip + siglip
    gradients = torch.autograd.grad((torch.tensor(COTANGENT) * losses).sum(), inputs)
    got = with_gradients(ours, COTANGENT, IMAGE, TEXT, SCALE, BIAS)
    close(got, [x.detach().numpy() for x in (losses, *gradients)])


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("negatives", ["sum", "hardest"])
def test_triplet_is_equal_to_pytorch(negatives, distance):
    torch = pytest.importorskip("torch")
    marked = marks(COUNT)
    others, same = relation(COUNT, **marked)
    image, text = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (IMAGE, TEXT))
    s = image @ text.T if distance == "cosine" else -torch.cdist(image, text)
    own = torch.diagonal(s)
    losses = 0.0
    for similarity in (s, s.T):
        cost = torch.relu(0.3 - own[:, None] + similarity) * torch.tensor(others & ~same)
        losses = losses + (cost.sum(dim=1) if negatives == "sum" else cost.amax(dim=1))
    losses = losses * torch.tensor(marked["weight"])
    gradients = torch.autograd.grad((torch.tensor(COTANGENT) * losses).sum(), (image, text))
    options = dict(margin=0.3, negatives=negatives, distance=distance, **marked)
    expected = [x.detach().numpy() for x in (losses, *gradients)]
    for equal in ("ignore", "positive"):
        loss = partial(contrastive.triplet, equal=equal, **options)
        close(with_gradients(loss, COTANGENT, IMAGE, TEXT), expected)


def everything(image, text, scale, bias, marked, *, axis=None, **tiles):
    """All losses in one, so that a program has to be compiled once."""
    tiles = {"axis": axis, **tiles}
    loss = contrastive.info_nce(image, text, scale, equal="positive", **marked, **tiles)
    loss += contrastive.info_nce(image, text, scale, symmetric=False, equal="ignore", **marked, **tiles)
    loss += contrastive.sigmoid(image, text, scale, bias, equal="ignore", **marked, **tiles)
    return loss + contrastive.triplet(image, text, margin=0.2, equal="ignore", axis=axis, **marked)


@pytest.mark.parametrize(
    ("devices", "exchange", "block"),
    [((1,), "ring", 3), ((2,), "gather", 3), ((2,), "ring", 3), ((4,), "gather", 0), ((4,), "ring", 3)]
    + [
        ((8,), "ring", 0),
        ((2, 4), "gather", 0),
        ((2, 4), "gather", 3),
        ((2, 4), "ring", 0),
        ((2, 4), "ring", 3),
    ],
)
def test_many_devices_are_equal_to_one(devices, exchange, block):
    """Each device's gradients of its own rows' losses, shared parameters' summed, are those of the whole batch."""
    names = ("data", "more")[: len(devices)]
    axis = names if len(devices) > 1 else "data"
    mesh = jax.make_mesh(devices, names, axis_types=(AxisType.Auto,) * len(devices))
    image, text = examples(32, FEATURES)
    cotangent, marked = np.cos(np.arange(32)).astype(np.float32), marks(32)
    inputs = image, text, jnp.float32(SCALE), jnp.float32(BIAS)
    rows, shared = PartitionSpec(names), PartitionSpec()

    def run(cotangent, marked, *inputs, axis, **tiles):
        losses, pull = jax.vjp(lambda *inputs: everything(*inputs, marked, axis=axis, **tiles), *inputs)
        d_image, d_text, *others = pull(cotangent)
        return losses, d_image, d_text, *(jax.lax.psum(others, axis) if axis else others)

    spread = jax.shard_map(
        partial(run, axis=axis, exchange=exchange, block_size=block),
        mesh=mesh,
        in_specs=(rows, rows, rows, rows, shared, shared),
        out_specs=(rows, rows, rows, shared, shared),
        check_vma=False,
    )
    expected = jax.jit(partial(run, axis=None))(cotangent, marked, *inputs)
    close(jax.jit(spread)(cotangent, marked, *inputs), expected)


def test_a_program_over_a_mesh_takes_the_gradient_from_outside():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    image, text = examples(16, FEATURES)
    rows, cotangent = PartitionSpec("data"), np.cos(np.arange(16)).astype(np.float32)
    loss = jax.shard_map(
        partial(contrastive.info_nce, axis="data", exchange="ring", block_size=3),
        mesh=mesh,
        in_specs=(rows, rows, PartitionSpec()),
        out_specs=rows,
        check_vma=False,
    )
    got = with_gradients(loss, cotangent, image, text, SCALE)
    close(got, info_nce(image, text, SCALE, cotangent))


@pytest.mark.parametrize("block", [0, 2])
def test_a_pair_of_weight_zero_might_as_well_not_be_there(block):
    real, ids = np.float32(np.arange(COUNT) < 9), np.arange(COUNT, dtype=np.int32) // 2
    # What fills up a batch may be anything: nothing, or far too large.
    image = np.where(real[:, None] > 0, IMAGE, np.float32(0))
    text = np.where(real[:, None] > 0, TEXT, np.float32(50))

    def loss(**marked):
        return lambda image, text: everything(image, text, SCALE, BIAS, marked, block_size=block)

    got = with_gradients(loss(weight=real, image_id=ids), COTANGENT, image, text)
    close([x[:9] for x in got], with_gradients(loss(image_id=ids[:9]), COTANGENT[:9], IMAGE[:9], TEXT[:9]))
    for x in got:
        np.testing.assert_array_equal(x[9:], 0.0)


@pytest.mark.parametrize("block", [0, 2])
@pytest.mark.parametrize(
    "marked",
    [
        {"image_id": [0]},
        {"image_id": [0, 1, 2], "weight": [0, 0, 0]},
        {"image_id": [0, 1, 2], "weight": [0, 1, 0]},
        {"image_id": [4, 4, 4]},
    ],
    ids=["one pair", "none real", "one real", "all equal"],
)
@pytest.mark.parametrize("rows", ["random", "zero"])
def test_without_negatives_all_is_finite(marked, block, rows):
    marked = {
        name: np.asarray(x, np.int32 if name == "image_id" else np.float32) for name, x in marked.items()
    }
    count = len(marked["image_id"])
    image, text = (
        examples(count, FEATURES) if rows == "random" else np.zeros((2, count, FEATURES), np.float32)
    )
    loss = lambda *inputs: everything(*inputs, marked, block_size=block)
    assert all(
        np.isfinite(x).all()
        for x in with_gradients(loss, np.ones(count, np.float32), image, text, 100.0, BIAS)
    )


def test_a_batch_of_one_has_nothing_to_learn_from_others():
    one = IMAGE[:1], TEXT[:1]
    np.testing.assert_array_equal(contrastive.info_nce(*one, SCALE), [0.0])
    np.testing.assert_array_equal(contrastive.triplet(*one, margin=0.2, negatives="hardest"), [0.0])
    z = SCALE * np.sum(one[0] * one[1]) + BIAS
    np.testing.assert_allclose(contrastive.sigmoid(*one, SCALE, BIAS), [np.logaddexp(0, -z)], rtol=1e-5)


def test_the_distance_of_an_image_that_is_its_text_has_a_gradient():
    gradient = jax.jit(jax.grad(lambda x: contrastive.triplet(x, x, margin=0.5, distance="euclidean").sum()))
    assert np.isfinite(gradient(IMAGE)).all()
    assert np.isfinite(gradient(np.ones((COUNT, FEATURES), np.float32))).all()


def test_equal_pairs_change_the_loss_as_they_should():
    """Two copies of every pair: as negatives the loss cannot fall below log 2; as positives it is log 2 at best; else 0."""
    image, text = (np.repeat(x, 2, axis=0) for x in examples(4, 64, noise=0.01))
    ids = np.arange(8, dtype=np.int32) // 2
    for equal, least in (("negative", np.log(2)), ("positive", np.log(2)), ("ignore", 0.0)):
        loss = contrastive.info_nce(image, text, 100.0, text_id=ids, equal=equal)
        np.testing.assert_allclose(loss, least, atol=1e-4)


@pytest.mark.parametrize("name", ["info_nce", "sigmoid"])
def test_memory_grows_with_the_batch_and_not_with_its_square(name):
    """Temporaries of value and gradients, as the compiler plans them."""

    def temporaries(count, block):
        def loss(image, text, scale, bias):
            more = (scale, bias) if name == "sigmoid" else (scale,)
            return getattr(contrastive, name)(image, text, *more, block_size=block).mean()

        rows = jax.ShapeDtypeStruct((count, 512), jnp.bfloat16)
        number = jax.ShapeDtypeStruct((), jnp.float32)
        step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3)))
        return step.lower(rows, rows, number, number).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(65_536, 0) > 16e9
    assert temporaries(65_536, 1024) <= 0.5e9
    assert temporaries(65_536, 1000) <= 0.5e9
    assert temporaries(1_048_576, 1024) <= 17 * temporaries(65_536, 1024)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"equal": "positives"}, 'Unknown equal "positives".* Did you mean "positive"'),
        ({"equal": "ignore"}, "needs image_id or text_id"),
        ({"exchange": "rings"}, 'Did you mean "ring"'),
        ({"block_size": -1}, "block_size=-1 must be"),
    ],
)
def test_options_that_cannot_be_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        contrastive.info_nce(IMAGE, TEXT, SCALE, **options)


def test_rows_that_do_not_pair_up_are_named():
    with pytest.raises(ValueError, match=r"float32\[12,6\] and float32\[13,6\]"):
        contrastive.sigmoid(IMAGE[:12], TEXT, SCALE, BIAS)
    with pytest.raises(ValueError, match=r'Unknown distance "cosin".* Did you mean "cosine"'):
        contrastive.triplet(IMAGE, TEXT, margin=0.2, distance="cosin")
