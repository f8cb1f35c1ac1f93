"""Question answering, and image with text to a class: losses and metrics against numpy, balance of modalities, learning."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmgen_jax.core import metrics as metrics_lib
from mmgen_jax.core import optimizer as optimizer_lib
from mmgen_jax.core import sharding
from mmgen_jax.losses import classification as losses_lib
from mmgen_jax.tasks.classification import Classification, take_init_from_towers
from mmgen_jax.tasks.question_answering import QuestionAnswering

B, T, K = 6, 4, 5
TOKENIZER = SimpleNamespace(vocab_size=9, eos=2)
MODEL = {
    # No batch statistics: an example's logits are its own.
    "towers": {
        "image": {"name": "vit", "width": 8, "depth": 1, "heads": 2, "patch": 4, "image_size": 8},
        "question": {"name": "text_rnn", "features": 8, "embed_features": 4, "max_len": T, "pool": "none"},
    },
    "modalities": ("image", "question"),
    "fusion": {"name": "cross_attention", "features": 8, "heads": 2, "layers": 1},
}
SUM = {**MODEL, "fusion": {"name": "sum", "features": 8}}
rng = np.random.default_rng(0)
BATCH = {
    "image": rng.integers(0, 256, (B, 8, 8, 3), dtype=np.uint8),
    "question": np.concatenate([np.ones((B, 1)), rng.integers(3, 9, (B, T - 2)), np.full((B, 1), 2)], 1).astype(np.int32),
    # One of ten annotators' scores, none known, single answers.
    "answer": np.float32([[0, 0.3, 1, 0, 0], [0, 0, 0, 0, 0], *np.eye(K)[[4, 1, 2, 0]]]),
    "mask": np.ones(B, np.float32),
    "index": np.arange(B, dtype=np.int32),
}  # fmt: skip


def common():
    return {
        "optimizer": optimizer_lib.make(name="adamw", learning_rate=1e-2, schedule="constant", steps=100),
        "layout": sharding.make(devices=jax.devices()[:1]),
    }


def make(model=SUM, answers=K, **options):
    context = {"tokenizer": TOKENIZER, "answers": range(answers)}
    return QuestionAnswering(model=model, context=context, **common(), **options)


def state_of(task, batch=BATCH):
    """Random parameters, without a program for them."""
    shapes = jax.eval_shape(task.init, jax.random.key(0), batch)
    draw = np.random.default_rng(0)
    params = jax.tree.map(lambda x: np.float32(0.3 * draw.normal(size=x.shape)), shapes.params)
    return params, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes.variables)


def gradients(task, batch=BATCH, key=1):
    run = jax.jit(task.gradients)
    grads, metrics, _ = run(*state_of(task, batch), batch, jax.random.key(key), jnp.int32(0))
    return jax.device_get(grads["model"]), metrics_lib.compute(metrics)


def predict(task, name, batch=BATCH):
    return jax.jit(task.predict[name])(*state_of(task, batch), batch, jax.random.key(0))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def norm(tree):
    return np.sqrt(sum(float(np.square(x).sum()) for x in jax.tree.leaves(tree)))


@pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
def test_loss_and_metrics_against_numpy(loss):
    task = make(loss=loss)
    batch = {**BATCH, "mask": np.float32([1, 1, 1, 0, 1, 1])}
    metrics = gradients(task, batch)[1]
    p, t, kept = np.float64(predict(task, "score")["score"]), np.float64(BATCH["answer"]), [0, 1, 2, 4, 5]
    if loss == "sigmoid":
        each = -(t * np.log(p) + (1 - t) * np.log(1 - p)).sum(1)[kept]
    else:  # the unknown answer does not count
        each = -(t * np.log(p)).sum(1)[[0, 2, 4, 5]] / t.sum(1)[[0, 2, 4, 5]]
        np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], each.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], t[range(B), p.argmax(1)][kept].mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["outside"], 1 / 5)
    best = predict(task, "answer")
    np.testing.assert_array_equal(best["answer"], np.argsort(-p, axis=1))
    np.testing.assert_allclose(best["probability"], -np.sort(-p, axis=1), rtol=1e-5)


def test_what_is_masked_changes_nothing():
    task = make(own_loss={"image": 0.5})
    grads, metrics = gradients(task, {**BATCH, "mask": np.float32([1, 1, 0, 1, 1, 1])})
    expected, other = gradients(task, {name: value[[0, 1, 3, 4, 5]] for name, value in BATCH.items()})
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert metrics.keys() == other.keys()
    for name in metrics:
        np.testing.assert_allclose(metrics[name], other[name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("absent", [False, True])
@pytest.mark.parametrize("modalities", [("image", "question"), ("image",)])
def test_several_questions_of_an_example(absent, modalities):
    """Two questions about each of three pictures are six examples with a picture each; the tower sees three."""
    pairs = {name: BATCH[name].reshape(3, 2, *BATCH[name].shape[1:]) for name in ("question", "answer")}
    whole = {"mask": np.float32([1, 0, 1])}
    if absent:
        whole["present"] = np.array([[True, True], [True, True], [False, True]])[:, : len(modalities)]
    apart = {name: np.repeat(value, 2, axis=0) for name, value in whole.items()}
    task = make({**MODEL, "modalities": modalities}, own_loss={"image": 0.5})
    once = {**BATCH, **pairs, **whole, "image": BATCH["image"][::2]}
    grads, metrics = gradients(task, once)
    each = {**BATCH, **apart, "image": np.repeat(BATCH["image"][::2], 2, axis=0)}
    expected, other = gradients(task, each)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    for name in metrics:
        np.testing.assert_allclose(metrics[name], other[name], rtol=1e-4, err_msg=name)
    several, alone = (predict(task, "score", batch)["score"] for batch in (once, each))
    assert several.shape == (3, 2, K)
    np.testing.assert_allclose(several, alone.reshape(3, 2, K), atol=1e-5)


@functools.cache
def watching():
    """Gradients and metrics of a model with heads that only watch."""
    return gradients(make(own_loss={"image": 0.0}))


def test_own_losses():
    """A modality with a weight has its own head's loss in its tower's gradient, one of weight 0 a head that only watches."""
    watched, metrics = watching()
    own, _ = gradients(make(own_loss={"image": 0.5}))
    double, _ = gradients(make(own_loss={"image": 1.0}))
    assert "own_image" not in jax.eval_shape(make().init, jax.random.key(0), BATCH).params["model"]
    assert norm(watched["own_image"]) > 0 and norm(watched["own_question"]) > 0
    for a, b, c in zip(*(jax.tree.leaves(g["towers_image"]) for g in (watched, own, double)), strict=True):
        np.testing.assert_allclose(b - a, 0.5 * (c - a), atol=1e-5)
    assert norm(jax.tree.map(np.subtract, own["towers_image"], watched["towers_image"])) > 1e-4
    for a, b in zip(*(jax.tree.leaves(g["towers_question"]) for g in (watched, own)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert {"loss/image", "loss/question", "confidence/image", "gradient_share/question"} <= metrics.keys()


def test_slow_down_against_the_paper():
    """Two modalities as the paper has them, and three."""
    rho = 0.6 / 0.2
    np.testing.assert_allclose(
        losses_lib.slow_down(np.float32([0.6, 0.2]), 0.4), [1 - np.tanh(0.4 * rho), 1], rtol=1e-6
    )
    rho = np.array([0.6 / 0.2, 0.3 / 0.35])
    np.testing.assert_allclose(
        losses_lib.slow_down(np.float32([0.6, 0.3, 0.1]), 0.4), [1 - np.tanh(0.4 * rho[0]), 1, 1], rtol=1e-6
    )
    np.testing.assert_array_equal(losses_lib.slow_down(np.float32([0.0, 0.0]), 0.4), [1, 1])


def test_modulation():
    """The tower that is ahead keeps the share of its gradient that the metrics say; the noise is as large as the gradient."""
    before, watched = watching()
    slowed, metrics = gradients(make(modulate={"alpha": 0.5, "noise": False}))
    noisy, _ = gradients(make(modulate={"alpha": 0.5}))
    own = {name: value for name, value in watched.items() if not name.startswith("gradient_share")}
    assert own == {name: metrics[name] for name in own}
    kept = [metrics["kept/image"], metrics["kept/question"]]
    assert sorted(kept)[1] == 1 > sorted(kept)[0] > 0
    for name, share in zip(("image", "question"), kept, strict=True):
        tower = f"towers_{name}"
        for a, b, c in zip(*(jax.tree.leaves(g[tower]) for g in (before, slowed, noisy)), strict=True):
            np.testing.assert_allclose(b, share * a, rtol=1e-4, atol=1e-7)
            if a.ndim > 1 and a.size > 30:
                np.testing.assert_allclose((c - b).std(), a.std(), rtol=0.5)
            elif a.ndim == 1:  # no noise; two programs round differently
                np.testing.assert_allclose(c, b, rtol=1e-5, atol=1e-8)
    for part in ("fusion", "head", "own_image"):
        for a, b in zip(jax.tree.leaves(before[part]), jax.tree.leaves(noisy[part]), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8)
    norms = [norm(slowed["towers_image"]), norm(slowed["towers_question"])]
    np.testing.assert_allclose(metrics["gradient_share/image"], norms[0] / sum(norms), rtol=1e-4)


def test_learns_and_looks():
    """A batch is learnt; the attention is over the picture's places, and not offered by a fusion that has none."""
    task = make(MODEL)
    state, step = jax.jit(task.init)(jax.random.key(0), BATCH), jax.jit(task.train_step)
    for _ in range(80):
        state, metrics = step(state, BATCH)
    metrics = metrics_lib.compute(metrics)
    np.testing.assert_allclose(metrics["accuracy"], 5 / 6)  # one of six has no answer in the vocabulary
    weights = predict(task, "attend")["weights"]
    assert weights.shape == (B, 4)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)
    assert "attend" not in make().predict


def test_image_with_text_to_a_class():
    """The classification task with towers: class weights against numpy, and late fusion."""
    model = {**MODEL, "level": "late", "fusion": None, "classes": K}
    label = np.array([0, 4, 3, 1, 1, 2], np.int32)
    batch = {**{name: BATCH[name] for name in ("image", "question", "mask", "index")}, "label": label}
    weights = (1.0, 2.0, 0.5, 1.0, 3.0)
    task = Classification(model=model, class_weights=weights, context={"tokenizer": TOKENIZER}, **common())
    metrics = gradients(task, batch)[1]
    p = softmax(np.float64(predict(task, "classify", batch)["logits"]))[range(B), label]
    share = np.array(weights)[label]
    np.testing.assert_allclose(metrics["loss"], -(share * np.log(p)).sum() / share.sum(), rtol=1e-5)
    assert {"loss/image", "confidence/question", "gradient_share/image"} <= metrics.keys()


def test_several_classes_at_once():
    tower = {**MODEL["towers"]["image"], "pool": "mean"}
    label = rng.integers(0, 2, (B, K)).astype(np.int32)
    batch = {"image": BATCH["image"], "mask": BATCH["mask"], "label": label}
    options = {"multi_label": True, "class_weights": (1, 2, 3, 1, 1), "label_smoothing": 0.2}
    task = Classification(model={"tower": tower, "classes": K}, context={}, **common(), **options)
    metrics = gradients(task, batch)[1]
    p = sigmoid(np.float64(predict(task, "classify", batch)["logits"]))
    t = 0.8 * label + 0.1
    each = -(t * np.log(p) + (1 - t) * np.log(1 - p)) * np.where(label, [1, 2, 3, 1, 1], 1)
    np.testing.assert_allclose(metrics["loss"], each.mean(), rtol=1e-5)
    right = (p > 0.5) == label
    np.testing.assert_allclose(metrics["accuracy"], right.mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["all_right"], right.all(axis=1).mean(), rtol=1e-6)


def test_where_towers_begin():
    """init_from of a tower is found where its parameters are, and that of one that is not built is not asked for."""
    towers = {name: {**tower, "init_from": f"{name}.st"} for name, tower in MODEL["towers"].items()}
    task = make({**SUM, "towers": towers, "modalities": ("question",), "init_from": ""})
    assert task.init_from == {("model", "towers_question"): "question.st"}
    assert "towers_question" in jax.eval_shape(task.init, jax.random.key(0), BATCH).params["model"]


def test_parts_of_parts_begin_where_they_say():
    """As the slow tower within a tower of clips."""
    slow = {"name": "convnet", "init_from": "pictures"}
    model = {
        "towers": {"video": {"name": "slow_fast", "slow": slow, "init_from": "clips"}},
        "modalities": ("video",),
    }
    built, found = take_init_from_towers({**model, "init_from": ""})
    assert found == {("model", "towers_video"): "clips", ("model", "towers_video", "slow"): "pictures"}
    assert [len(path) for path in found] == [2, 3]  # the whole before its part
    assert built["towers"] == {"video": {"name": "slow_fast", "slow": {"name": "convnet"}}}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "binary"}, r'Unknown task.loss "binary"'),
        ({"own_loss": {"imge": 1.0}}, r'Unknown modality in task.own_loss "imge". Did you mean "image"'),
        ({"modulate": {"alpha": 0.0}}, r"task.modulate.alpha is 0.0: above 0"),
        ({"modulate": {"alfa": 0.5}}, r'Unknown key "alfa" in task.modulate. Did you mean "alpha"'),
        ({"model": {**SUM, "levels": "late"}}, r'Unknown key "levels" in task.model. Did you mean "level"'),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_more_mistakes():
    with pytest.raises(ValueError, match=r"give the config data.answers=dict\(size=...\)"):
        QuestionAnswering(model=MODEL, context={"tokenizer": TOKENIZER}, **common())
    with pytest.raises(ValueError, match=r'come without "answer": write answers\(\)'):
        jax.eval_shape(make().init, jax.random.key(0), {k: v for k, v in BATCH.items() if k != "answer"})
    classes = functools.partial(Classification, context={"tokenizer": TOKENIZER}, **common())
    plain = {"tower": MODEL["towers"]["image"], "classes": K}
    with pytest.raises(ValueError, match=r"balance modalities: give task.model towers"):
        classes(model=plain, own_loss={"image": 1.0})
    with pytest.raises(ValueError, match=r"class_weights are 2 numbers: one above 0 for each of the 5"):
        classes(model=plain, class_weights=(1.0, 2.0))
    with pytest.raises(
        ValueError, match=r"labels is 3: then there are neither class_weights nor multi_label"
    ):
        classes(model={**plain, "labels": 3}, multi_label=True)
