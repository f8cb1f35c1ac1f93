"""The model of several modalities: levels, combinations against numpy, padding, missing modalities, and their dropout."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmgen_jax.models import multimodal

B, K, T = 3, 4, 5
EOS = 2
TOKENIZER = SimpleNamespace(vocab_size=11, eos=EOS)
TOWERS = {
    "image": {"name": "convnet", "widths": (6, 8), "blocks": 0},
    "question": {"name": "text_rnn", "features": 6, "embed_features": 4, "max_len": T, "pool": "none"},
    "sound": {"name": "text_rnn", "features": 6, "embed_features": 4, "max_len": T, "pool": "last"},
}
TOWERS["video"] = {
    "name": "video_transformer", "width": 8, "depth": 1, "heads": 2, "patch": 4, "image_size": 8, "frames": 4, "tubelet": 2
}  # fmt: skip
rng = np.random.default_rng(0)
INPUTS = {
    "image": rng.integers(0, 256, (B, 8, 8, 3), dtype=np.uint8),
    "question": np.array([[1, 3, 4, EOS, 0], [1, 5, EOS, 0, 0], [1, 6, 7, 8, EOS]], np.int32),
    "sound": np.array([[1, 3, EOS, 0, 0]] * B, np.int32),
    "index": np.arange(B, dtype=np.int32),
}


def make(modalities=("image", "question"), **fields):
    if fields.get("level") != "late":
        fields.setdefault("fusion", {"name": "cross_attention", "features": 8, "heads": 2, "layers": 1})
    return multimodal.make(
        towers=TOWERS, modalities=modalities, tokenizer=TOKENIZER, classes=K, pixels="half", **fields
    )


@functools.cache
def variables_of(model):
    shapes = jax.eval_shape(model.init, jax.random.key(0), INPUTS)
    draw = np.random.default_rng(1)
    return jax.tree.map(lambda x: np.float32(np.abs(0.3 * draw.normal(size=x.shape))), shapes)


def run(model, inputs=INPUTS, present=None):
    return jax.jit(model.apply)(variables_of(model), inputs, present)


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("probability", ["softmax", "sigmoid"])
@pytest.mark.parametrize("how", ["mean", "product", "weights"])
def test_combine_against_numpy(how, probability):
    logits, weights = 2 * rng.normal(size=(B, 3, K)), rng.normal(size=3)
    there = np.array([[1, 1, 1], [1, 0, 1], [0, 0, 0]], bool)
    given = np.float32(weights) if how == "weights" else None
    got = multimodal.combine(np.float32(logits), there, how, probability, given)
    for row in range(B):
        seen = there[row] if there[row].any() else np.ones(3, bool)
        share = softmax(weights[seen]) if how == "weights" else np.full(seen.sum(), 1 / seen.sum())
        if probability == "softmax":
            parts = softmax(logits[row, seen])
            whole = np.prod(parts, axis=0) if how == "product" else share @ parts
            np.testing.assert_allclose(softmax(np.float64(got[row])), whole / whole.sum(), rtol=1e-5)
        else:
            parts = sigmoid(logits[row, seen])
            odds = np.prod(parts / (1 - parts), axis=0)
            whole = odds / (1 + odds) if how == "product" else share @ parts
            np.testing.assert_allclose(sigmoid(np.float64(got[row])), whole, rtol=1e-5)


@pytest.mark.parametrize("level", ["early", "late", "hybrid"])
def test_levels(level):
    """Shapes, three modalities; padding counts nowhere; the places of the attention sum to one."""
    modalities = ("image", "question", "sound")
    model = make(modalities, level=level)
    out = run(model)
    assert out.logits.shape == (B, K) and out.logits.dtype == jnp.float32
    assert (out.heads is None) == (level == "early")
    if level != "late":
        np.testing.assert_allclose(out.attention.sum(axis=1), 1, rtol=1e-5)
        assert out.attention.shape == (B, 4)
    ends = INPUTS["question"] == EOS
    question = np.where(np.cumsum(ends, axis=1) - ends > 0, 9, INPUTS["question"])
    assert not np.array_equal(question, INPUTS["question"])
    np.testing.assert_array_equal(run(model, {**INPUTS, "question": question}).logits, out.logits)


@pytest.mark.parametrize("level", ["early", "late", "hybrid"])
def test_a_missing_modality(level):
    """What stands in its place does not matter, and a late mean is then the other head alone."""
    model = make(level=level, heads=True)
    present = np.array([[True, False], [True, True], [False, True]])
    other = {**INPUTS, "question": INPUTS["question"].copy(), "image": INPUTS["image"].copy()}
    other["question"][0] = [1, 9, 9, 9, 9]
    other["image"][2] = 0
    out, same = run(model, present=present), run(model, other, present)
    np.testing.assert_allclose(out.logits, same.logits, rtol=1e-6, atol=1e-6)
    whole = run(model)
    np.testing.assert_allclose(out.logits[1], whole.logits[1], rtol=1e-6, atol=1e-6)
    assert np.abs(out.logits[0] - whole.logits[0]).max() > 1e-3
    if level == "late":
        np.testing.assert_allclose(
            out.logits[0], np.log(softmax(np.float64(out.heads[0, 0]))), rtol=1e-5, atol=1e-5
        )


def test_one_modality_is_a_baseline():
    """It has no parameter of the others, and needs no input of theirs."""
    model = make(("question",))
    assert "towers_image" not in variables_of(model)["params"]
    out = run(model, {"question": INPUTS["question"]})
    assert out.logits.shape == (B, K) and out.attention.shape == (B, T)


def test_modality_dropout():
    """In training rows lose modalities, but never all; without training none does."""
    model = make(level="late", modality_dropout=0.5)
    params = variables_of(model)
    many = {name: np.repeat(x, 100, axis=0) for name, x in INPUTS.items()}

    def there(params, key):
        def streams(module):
            return [stream.mask.any(axis=1) for stream in module.streams(many, None, True)]

        return model.apply(params, method=streams, rngs={"dropout": key}, mutable=["batch_stats"])[0]

    image, question = map(np.asarray, jax.jit(there)(params, jax.random.key(0)))
    assert (image | question).all()
    # Both stay with 1/4, or with the 1/4 in which neither would have.
    assert 0.4 < (image & question).mean() < 0.6 and 0.15 < (image & ~question).mean() < 0.35
    np.testing.assert_array_equal(run(model, many).logits[:1], run(model, many).logits[1:2])


def test_probes_do_not_move_towers():
    """The loss of a probe's head reaches the head, not the tower; that of another head both."""
    model = make(heads=True, probes=("image",))
    variables = variables_of(model)

    def loss(params):
        return jnp.sum(jnp.square(model.apply({**variables, "params": params}, INPUTS).heads))

    grads = jax.jit(jax.grad(loss))(variables["params"])
    size = {name: sum(float(jnp.abs(x).sum()) for x in jax.tree.leaves(tree)) for name, tree in grads.items()}
    assert size["towers_image"] == 0 < size["own_image"]
    assert size["towers_question"] > 0 < size["own_question"] and size["head"] == 0


def test_clips():
    """A clip beside a question; frames that only pad it change nothing, and nobody looks at them."""
    model = make(("video", "question"))
    clip = rng.integers(0, 256, (B, 4, 8, 8, 3), dtype=np.uint8)
    given = {
        "question": INPUTS["question"],
        "video": clip,
        "frame_mask": np.array([[1, 1, 0, 0], [1] * 4, [1, 1, 1, 0]], bool),
    }
    shapes = jax.eval_shape(model.init, jax.random.key(0), given)
    variables = jax.tree.map(lambda x: np.float32(0.3 * rng.normal(size=x.shape)), shapes)
    out = jax.jit(model.apply)(variables, given)
    other = {**given, "video": np.where(given["frame_mask"][:, :, None, None, None], clip, 255 - clip)}
    same = jax.jit(model.apply)(variables, other)
    np.testing.assert_allclose(out.logits, same.logits, rtol=1e-6, atol=1e-6)
    assert out.attention.shape == (B, 8)  # two steps of four places
    assert not np.asarray(out.attention)[0, 4:].any() and np.asarray(out.attention)[1:].all()


def test_errors():
    with pytest.raises(ValueError, match=r"no question, which task.model.modalities names; they have image"):
        jax.eval_shape(make().init, jax.random.key(0), {"image": INPUTS["image"]})
    with pytest.raises(ValueError, match=r"There are 4 rows, but of the modalities \{'image': 3"):
        rows = {"image": INPUTS["image"][:3], "question": INPUTS["question"][[0, 1, 0, 1]]}
        jax.eval_shape(make().init, jax.random.key(0), rows)
    with pytest.raises(
        ValueError, match=r'Unknown modality in task.model.towers "imge".*Did you mean "image"'
    ):
        make(("imge",))
    with pytest.raises(ValueError, match=r'"late" has no fusion'):
        make(level="late", fusion={"name": "sum", "features": 8})
    with pytest.raises(ValueError, match=r'Unknown task.model.level "erly". Did you mean "early"'):
        make(level="erly")
    with pytest.raises(ValueError, match=r"at least one, and none twice"):
        make(("image", "image"))
