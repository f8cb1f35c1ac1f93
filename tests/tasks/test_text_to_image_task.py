"""The adversarial step: its gradients are those of the plain losses, each computed once; what is not there changes
nothing; trouble is named."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmgen_jax.core import metrics as metrics_lib
from mmgen_jax.core import optimizer as optimizer_lib
from mmgen_jax.core import sharding
from mmgen_jax.data.text import BOS, EOS, PAD, UNK
from mmgen_jax.losses import adversarial
from mmgen_jax.tasks import captioning, contrastive
from mmgen_jax.tasks.collapse import Collapsed
from mmgen_jax.tasks.text_to_image import WATCHED, TextToImage

B, T, V = 6, 6, 16
TEXT = {"name": "text_rnn", "features": 8, "embed_features": 8, "max_len": T, "pool": "max"}
DCGAN = {"name": "dcgan", "image_size": 16, "width": 4, "z_features": 8}
LEARNING_RATE = 1.0
TOKENIZER = SimpleNamespace(vocab_size=V, pad=PAD, eos=EOS)


def make(text=TEXT, generator=None, discriminator=None, loss=None, optimizer=None, **options):
    optimizer = {
        "name": "sgd",
        "options": {"momentum": 0.0},
        "learning_rate": LEARNING_RATE,
        **(optimizer or {}),
    }
    return TextToImage(
        text=text,
        generator={**(DCGAN if "name" not in (generator or {}) else {}), **(generator or {})},
        discriminator={"name": "dcgan", "width": 4, "spectral": True, **(discriminator or {})},
        loss={"name": "hinge", **(loss or {})},
        optimizer=optimizer_lib.make(schedule="constant", steps=60, **optimizer),
        layout=sharding.make(devices=jax.devices()[:1]),
        context={"tokenizer": TOKENIZER},
        **options,
    )


def make_batch(seed=0, rows=B):
    rng = np.random.default_rng(seed)
    tokens = np.full((rows, 1, T), PAD, np.int32)
    for i in range(rows):
        words = rng.integers(UNK + 1, V, rng.integers(2, T - 1))
        tokens[i, 0, : len(words) + 2] = [BOS, *words, EOS]
    return {
        "image": rng.integers(0, 256, (rows, 16, 16, 3), dtype=np.uint8),
        "tokens": tokens,
        "mask": np.ones(rows, np.float32),
        "index": np.arange(rows, dtype=np.int32),
    }


def start(task, batch):
    return jax.jit(task.init)(jax.random.key(0), batch)


def step(task, state, batch):
    """-> (state, metrics computed)."""
    state, metrics = jax.jit(task.train_step)(state, batch)
    return state, metrics_lib.compute(metrics)


def close(left, right, rtol=1e-4):
    """Relative to the largest number of each array."""
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(left), jax.tree.leaves(right), strict=True):
        bound = rtol * max(np.abs(b).max(), 1e-6)
        np.testing.assert_allclose(a, b, rtol=0, atol=bound, err_msg=jax.tree_util.keystr(path))


def plain_gradients(task, state, batch, matching=True, now=None):
    """What one turn should do, written down plainly: three calls of the discriminator, whole gradients of two losses.

    now: the discriminator to which the generator answers; default the one before its update.
    """
    key = jax.random.split(jax.random.fold_in(jax.random.fold_in(state.rng, 0), 0), 5)[0]
    z = jax.random.normal(key, (B, 8), jnp.float32)
    tokens, shifted = batch["tokens"][:, 0], np.roll(batch["tokens"][:, 0], 1, axis=0)
    image = batch["image"] / np.float32(127.5) - 1
    objective = adversarial.OBJECTIVES["hinge"]

    def read(params, tokens):
        return task.text.apply({"params": params["text"], **state.variables["text"]}, tokens, train=True)

    def draw(params):
        variables = {"params": params["generator"], **state.variables["generator"]}
        text = jax.lax.stop_gradient(read(params, tokens))
        return task.generator.apply(variables, z, text, train=True, mutable=["batch_stats"])[0].images

    def judge(params, variables, images, text):
        return task.discriminator.apply(
            {"params": params["discriminator"], **variables},
            images,
            text,
            train=True,
            mutable=list(variables),
        )

    def losses(params):
        """The discriminator's loss; the vectors of the spectral norm go from one call to the next, in the order of the task."""
        variables = state.variables["discriminator"]
        real, _ = judge(params, variables, (image,), read(params, tokens))
        wrong, _ = judge(params, variables, (image,), read(params, shifted))
        after = advance(params, variables)
        fake, _ = judge(params, after, jax.lax.stop_gradient(draw(params)), read(params, tokens))
        on_real, on_fake = objective.discriminator(real.conditional[0], fake.conditional[0])
        _, on_wrong = objective.discriminator(real.conditional[0], wrong.conditional[0])
        return jnp.mean(on_real + ((on_fake + on_wrong) / 2 if matching else on_fake))

    def advance(params, variables):
        """The variables after what the real images and their two texts did to them."""
        fixed = jax.lax.stop_gradient(params)
        text = read(fixed, tokens)
        apply = functools.partial(task.discriminator.apply, train=True, mutable=list(variables))
        features, new = apply({"params": fixed["discriminator"], **variables}, (image,), method="features")
        variables = {**variables, **new}
        for given in (text,):
            _, new = apply({"params": fixed["discriminator"], **variables}, features, given, method="judge")
        return {**variables, **new}

    def generator_loss(params):
        judging = {**params, "discriminator": (now or state.params)["discriminator"]}
        after = advance(state.params, state.variables["discriminator"])
        fake, _ = judge(judging, after, draw(params), jax.lax.stop_gradient(read(params, tokens)))
        return jnp.mean(objective.generator(fake.conditional[0]))

    of_discriminator, of_generator = (
        jax.jit(jax.grad(loss))(state.params) for loss in (losses, generator_loss)
    )
    return {
        "text": of_discriminator["text"],
        "discriminator": of_discriminator["discriminator"],
        "generator": of_generator["generator"],
    }


def taken(before, after):
    """The gradient of plain descent, from what it did."""
    return jax.tree.map(lambda a, b: (a - b) / LEARNING_RATE, before.params, after.params)


@pytest.mark.parametrize("update", ["simultaneous", "alternating"])
def test_the_step_takes_the_gradients_of_the_plain_losses(update):
    task, batch = make(update=update), make_batch()
    state = start(task, batch)
    after, _ = step(task, state, batch)
    now = after.params if update == "alternating" else None
    expected = plain_gradients(task, state, batch, now=now)
    got = taken(state, after)
    assert got.keys() == expected.keys()
    close(got, expected, rtol=2e-3)  # parameters lose digits when a step is taken from them again


def flops(function, *args):
    return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]


def test_nothing_is_computed_without_need():
    """An alternating step costs no more than its parts: drawing, judging real and drawn images, and judging what is drawn
    once more, with gradients for the images alone. The usual way takes those of the parameters too. A simultaneous step
    judges what is drawn once."""
    fields = {"generator": {"width": 16}, "discriminator": {"width": 16}, "text": None}
    rows = 64  # beside which the few samples of the collapse watch weigh little
    batch = make_batch(rows=rows)
    tasks = {update: make(update=update, **fields) for update in ("simultaneous", "alternating")}
    state = start(tasks["alternating"], batch)
    cost = {update: flops(task.train_step, state, batch) for update, task in tasks.items()}

    task, variables = tasks["alternating"], state.variables
    z, image = np.zeros((rows, 8), np.float32), np.zeros((rows, 16, 16, 3), np.float32)

    def draw(params):
        return task.generator.apply(
            {"params": params, **variables["generator"]}, z, None, train=True, mutable=["batch_stats"]
        )[0].images

    def judge(params, images):
        judged, _ = task.discriminator.apply(
            {"params": params, **variables["discriminator"]}, images, None, train=True, mutable=["spectral"]
        )
        return jnp.sum(judged.unconditional[0])

    own, other = state.params["generator"], state.params["discriminator"]
    forward = flops(draw, own)
    drawing = flops(jax.grad(lambda p: sum(jnp.sum(x) for x in draw(p))), own)
    judging = flops(jax.grad(judge, argnums=(0, 1)), other, (image,))
    looking = flops(judge, other, (image,))
    to_weights = flops(jax.grad(judge), other, (image,))
    to_images = flops(jax.grad(judge, argnums=1), other, (image,))
    drawing += forward * WATCHED / rows
    answering = drawing + 2 * to_weights + to_images
    assert forward < drawing and looking < to_images < judging
    assert cost["simultaneous"] < 1.03 * (answering - looking)
    assert cost["alternating"] < 1.03 * answering
    usual = drawing + 2 * to_weights + judging
    assert cost["alternating"] < 0.97 * usual


def test_a_broken_example_changes_nothing():
    """Whatever stands in a masked row: without batch statistics, all numbers are as before."""
    task = make(
        discriminator={"spectral": False, "batch_norm": False},
        generator={"name": "mlp_gan", "shape": (16, 16, 3), "width": 8, "z_features": 8},
    )
    batch = make_batch()
    batch["mask"][2] = 0
    state = start(task, batch)
    other = {**batch, "image": batch["image"].copy()}
    other["image"][2] = 255 - other["image"][2]
    first, second = step(task, state, batch), step(task, state, other)
    close(first[0].params, second[0].params, rtol=1e-6)
    first[1].pop("real_distance"), second[1].pop("real_distance")
    assert first[1] == pytest.approx(second[1], rel=1e-5)


def test_noise_dies_away():
    """What the discriminator sees is noisy, half as much after each half-life; later the step is as without."""
    noisy, quiet, batch = make(noise={"std": 2.0, "half_life": 4.0}), make(), make_batch()
    images = (jnp.zeros((B, 8, 8, 3)), jnp.ones((B, 16, 16, 3)))
    first, later = (noisy._blurred(images, jax.random.key(1), jnp.int32(step)) for step in (0, 8))
    close(
        jax.tree.map(lambda a, b: a - b, first, images), jax.tree.map(lambda a, b: 4 * (a - b), later, images)
    )
    assert np.std(first[1]) == pytest.approx(2.0, rel=0.05)
    state = start(quiet, batch)
    same, other = (step(quiet, state, batch)[0].params, step(noisy, state, batch)[0].params)
    difference = jax.tree.map(lambda a, b: np.abs(a - b).max(), same, other)
    assert max(jax.tree.leaves(difference)) > 1e-4
    state = state.replace(step=jnp.int32(400))
    close(step(quiet, state, batch)[0].params, step(noisy, state, batch)[0].params, rtol=1e-5)


def test_equal_texts_are_no_mismatch():
    """Where all captions are the same there is no wrong text: matching then changes nothing."""
    batch = make_batch()
    batch["tokens"][:] = batch["tokens"][0]
    with_matching, without = make(), make(loss={"matching": 0.0})
    state = start(without, batch)
    close(step(with_matching, state, batch)[0].params, step(without, state, batch)[0].params, rtol=1e-6)


def test_more_wrong_texts():
    """Each image refuses the texts of two others: the mean over both, of which one may be equal to its own."""
    batch = make_batch()
    batch["tokens"][1] = batch["tokens"][0]
    state = start(make(), batch)
    losses = []
    for mismatches in (1, 2):
        task = make(loss={"mismatches": mismatches})
        _, metrics = step(task, state, batch)
        losses.append(metrics["loss"])
    assert losses[0] != losses[1]
    # All others: their order no longer matters.
    every = make(loss={"mismatches": B - 1})
    shuffled = jax.tree.map(lambda x: x[::-1], batch)
    one, other = (step(every, state, given)[1] for given in (batch, shuffled))
    for name in ("real_accuracy", "wrong_accuracy"):
        assert one[name] == pytest.approx(other[name])


def test_several_turns_of_the_discriminator():
    """Two turns on halves of the batch, the generator's with the second; its average follows it alone."""
    networks = {"generator": {"ema": 0.9}, "discriminator": {"learning_rate": 0.02}}
    task, batch = make(discriminator_steps=2, optimizer={"networks": networks}), make_batch()
    state = start(task, batch)
    after, _ = step(task, state, batch)
    assert set(after.ema) == {"generator"}
    assert set(after.opt_state) == {"text", "generator", "discriminator"}
    assert int(after.step) == 1
    # By hand: each half is a turn of its own.
    key = jax.random.fold_in(state.rng, 0)
    expected = state
    for i in range(2):
        half = jax.tree.map(lambda x, i=i: x[i::2], batch)
        turn = functools.partial(task._turn, with_generator=i == 1)
        expected, _ = jax.jit(turn)(expected, half, jax.random.fold_in(key, i))
    close(after.params, expected.params, rtol=1e-5)
    with pytest.raises(ValueError, match=r"batch of 6 does not divide into task.discriminator_steps=4"):
        step(make(discriminator_steps=4), state, batch)


def test_the_generator_gains_by_diversity():
    """Its update is that of before and the slope of the mean diversity, over the rows that are drawn for it."""
    spec, batch = {"weight": 3.0, "bound": 10.0, "every": 2}, make_batch()
    batch["mask"][2] = 0.0
    diverse, plain = make(loss={"diversity": spec}), make()
    state = start(plain, batch)
    (after, metrics), (before, _) = (step(task, state, batch) for task in (diverse, plain))
    key = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(state.rng, 0), 0), 5)
    z = [jax.random.normal(k, (B // 2, 8), jnp.float32) for k in jax.random.split(key)]
    there = batch["mask"][::2]
    text = diverse._read(state.params, state.variables, jnp.concatenate([batch["tokens"][::2, 0]] * 2))

    def mean(params):
        variables = {"params": params, **state.variables["generator"]}
        drawn, _ = diverse.generator.apply(
            variables, jnp.concatenate(z), text, train=True, mutable=["batch_stats"]
        )
        values = adversarial.diversity(*jnp.split(drawn.images[-1], 2), *z, 10.0)
        return jnp.sum(values * there) / there.sum(), values

    (value, _), slope = jax.value_and_grad(mean, has_aux=True)(state.params["generator"])
    assert metrics["diversity"] == pytest.approx(float(value), rel=1e-5)
    share = 3.0 * 2 * there.sum() / batch["mask"].sum()
    expected = jax.tree.map(lambda p, g: p + LEARNING_RATE * share * g, before.params["generator"], slope)
    close(after.params["generator"], expected)
    close(after.params["discriminator"], before.params["discriminator"], rtol=1e-6)


def test_a_frozen_text_tower_stays():
    """And reads without dropout, whereas one that learns draws some."""
    task, batch = make(text={**TEXT, "train": False, "dropout": 0.5}), make_batch()
    state = start(task, batch)
    after, metrics = step(task, state, batch)
    assert metrics["loss"] == pytest.approx(
        step(make(text={**TEXT, "train": False}), state, batch)[1]["loss"]
    )
    assert "text" not in after.opt_state
    learning = make(text={**TEXT, "dropout": 0.5})
    assert step(learning, start(learning, batch), batch)[1]["loss"] != pytest.approx(
        metrics["loss"], rel=1e-6
    )
    jax.tree.map(np.testing.assert_array_equal, after.params["text"], state.params["text"])


TOWER = {"name": "convnet", "widths": (4, 8), "blocks": 0}
MATCHERS = {
    "damsm": {
        "image": {**TOWER, "pool": "none"},
        "text": {**TEXT, "bidirectional": True, "pool": "last"},
        "embed_dim": 16,
        "weight": 5.0,
        "init_from": "runs/damsm",
    },
    "captioning": {
        "encoder": TOWER,
        "decoder": {"name": "rnn", "features": 8, "embed_features": 8, "attention_features": 8},
        "weight": 0.5,
        "init_from": "runs/captioner",
    },
    "contrastive": {
        "image": {**TOWER, "pool": "mean"},
        "text": {**TEXT, "pool": "max"},
        "embed_dim": 8,
        "image_size": 20,
        "weight": 2.0,
        "init_from": "runs/dual_encoder",
    },
}


def test_frozen_matchers_lead_the_generator():
    """Their losses are added to the generator's alone; they stay as they are, and have no optimizer state."""
    batch, plain = make_batch(), make()
    led_by_all = make(matchers=MATCHERS)
    names = {f"{name}_matcher": spec["init_from"] for name, spec in MATCHERS.items()}
    assert led_by_all.init_from == {(name,): source for name, source in names.items()}
    state = start(led_by_all, batch)
    assert names.keys() <= state.params.keys()
    assert not names.keys() & {**state.opt_state, **state.ema}.keys()
    led, metrics = step(led_by_all, state, batch)
    drop = {
        part: {k: v for k, v in getattr(state, part).items() if k not in names}
        for part in ("params", "variables")
    }
    alone, before = step(plain, state.replace(**drop), batch)
    added = sum(spec["weight"] * metrics[f"{name}_matcher"] for name, spec in MATCHERS.items())
    assert metrics["generator_loss"] == pytest.approx(before["generator_loss"] + added, rel=1e-5)
    close(led.params["discriminator"], alone.params["discriminator"], rtol=1e-5)
    for name in names:
        jax.tree.map(np.testing.assert_array_equal, led.params[name], state.params[name])
    kernels = led.params["generator"]["first"]["kernel"], alone.params["generator"]["first"]["kernel"]
    assert np.abs(np.subtract(*kernels)).max() > 1e-6


def test_the_matcher_of_an_earlier_run():
    """Its config and its checkpoint have another name for it, and the weight elsewhere."""
    spec = {key: value for key, value in MATCHERS["damsm"].items() if key != "weight"}
    earlier = make(matcher=spec, loss={"damsm": 5.0})
    assert earlier.init_from == {("matcher",): "runs/damsm"} and earlier.frozen == {"matcher"}
    today = make(matchers={"damsm": MATCHERS["damsm"]})
    batch = make_batch()
    state = start(earlier, batch)
    renamed = {
        part: {"damsm_matcher" if k == "matcher" else k: v for k, v in getattr(state, part).items()}
        for part in ("params", "variables")
    }
    found, expected = step(earlier, state, batch)[1], step(today, state.replace(**renamed), batch)[1]
    assert found["generator_loss"] == pytest.approx(expected["generator_loss"], rel=1e-6)
    assert found["matcher"] == pytest.approx(expected["damsm_matcher"], rel=1e-6)


def test_a_captioner_leads_by_the_nats_of_its_words():
    """As the captioner's own task counts them, on the bytes of the same picture; the gradient is that of the slope."""
    batch = make_batch()
    spec = {key: MATCHERS["captioning"][key] for key in ("encoder", "decoder")}
    matcher = captioning.make_matcher(tokenizer=TOKENIZER, dtype=jnp.float32, **spec)
    tokens, image = batch["tokens"][:, 0], batch["image"].astype(np.float32) / 127.5 - 1.0
    variables = matcher.init(jax.random.key(0), batch["image"], batch["tokens"])
    ids = {"weight": batch["mask"], "image_id": batch["index"], "text_id": batch["index"], "axis": None}

    @jax.jit
    def losses(image):
        return matcher.losses(variables, image, tokens, **ids)

    model = captioning.make_model(**spec, vocab_size=TOKENIZER.vocab_size)
    logits, _ = model.apply(variables, batch["image"], batch["tokens"][:, :, :-1])
    log_probs = np.asarray(jax.nn.log_softmax(logits[:, 0]), np.float64)
    expected = [
        -sum(log_probs[row, t - 1, word] for t, word in enumerate(words) if t and word)
        for row, words in enumerate(np.asarray(tokens))
    ]
    np.testing.assert_allclose(losses(image), expected, rtol=1e-5)
    slope = jax.jit(jax.grad(lambda image: losses(image).sum()))(image)
    moved = 1e-2 * slope / jnp.linalg.norm(slope)
    change = float(jnp.sum(losses(image + moved) - losses(image - moved)))
    assert change == pytest.approx(2e-2 * float(jnp.linalg.norm(slope)), rel=0.05)


def test_a_dual_encoder_leads_by_the_texts_of_the_batch():
    """InfoNCE of the resized pictures; rows of one text are left out, and one without weight is nobody's negative."""
    batch = make_batch()
    spec = {key: MATCHERS["contrastive"][key] for key in ("image", "text", "embed_dim")}
    loss = {"name": "info_nce", "equal": "ignore"}
    matcher = contrastive.make_matcher(
        tokenizer=TOKENIZER, dtype=jnp.float32, image_size=20, loss=loss, **spec
    )
    tokens, image = batch["tokens"][:, 0], batch["image"].astype(np.float32) / 127.5 - 1.0
    variables = matcher.init(jax.random.key(0), batch["image"], batch["tokens"])
    rows = len(tokens)
    weight, text_id = np.ones(rows, np.float32), np.arange(rows)
    weight[-1], text_id[1] = 0.0, 0
    ids = {"weight": weight, "image_id": np.arange(rows), "text_id": text_id, "axis": None}
    found = matcher.losses(variables, image, tokens, **ids)

    model = contrastive.make_model(**spec, context={"tokenizer": TOKENIZER})
    larger = jax.image.resize(np.float32(batch["image"]), (rows, 20, 20, 3), "bilinear")
    pictures, texts = model.apply(variables, larger, tokens[:, None])
    logits = np.float64(pictures @ texts[:, 0].T) * np.exp(float(variables["params"]["logit_scale"]))
    there = (weight[:, None] * weight > 0) & ((text_id[:, None] != text_id) | np.eye(rows, dtype=bool))
    sums = [np.log(np.sum(np.exp(x[:-1]), axis=1, where=there[:-1])) for x in (logits, logits.T)]
    expected = np.mean(sums, axis=0) - np.diag(logits)[:-1]
    np.testing.assert_allclose(found[:-1], expected, rtol=1e-4)
    assert found[-1] == 0.0


@pytest.mark.parametrize(
    "loss",
    [
        {"name": "non_saturating", "smooth": 0.1, "penalty": {"name": "r1", "weight": 1.0, "every": 2}},
        {"name": "non_saturating", "penalty": {"name": "r1_estimate", "weight": 1.0, "every": 3}},
        {"name": "wasserstein", "penalty": {"name": "wasserstein", "weight": 10.0}},
        {"name": "hinge", "penalty": {"name": "matching_aware", "weight": 1.0}},
        {"name": "relativistic", "interpolation": 0.5},
        {"name": "least_squares", "interpolation": 1.0},
        {"name": "relativistic", "diversity": {"weight": 1.0, "bound": 0.5}},
    ],
    ids=lambda loss: f"{loss['name']}_{loss.get('penalty', {}).get('name', 'free')}",
)
def test_every_kind_of_loss_trains_all_networks(loss):
    task = make(
        loss=loss, discriminator={"spectral": False, "batch_norm": False}, augment=("colour", "translation")
    )
    batch = make_batch()
    state = start(task, batch)
    after, metrics = step(task, state, batch)
    assert all(np.isfinite(value) for value in metrics.values()), metrics
    for name in ("text", "generator", "discriminator"):
        moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), after.params[name], state.params[name])
        assert max(jax.tree.leaves(moved)) > 0, name
    if "penalty" in loss:
        assert metrics["penalty"] > 0


def test_samples():
    """The same noise gives the same sample, half-way texts lie at both ends where they should, and texts matter."""
    task, batch = make(), make_batch()
    state = start(task, batch)
    rng, z = jax.random.key(3), np.random.default_rng(0).standard_normal((B, 8)).astype(np.float32)

    def generate(**more):
        return np.asarray(
            task.predict["generate"](state.params, state.variables, {**batch, **more}, rng)["image"], np.int32
        )

    # Untrained networks draw in grey: stretched, so that texts can be told apart.
    state = state.replace(
        params={**state.params, "generator": jax.tree.map(lambda x: 8 * x, state.params["generator"])}
    )
    plain = generate(z=z)
    assert plain.shape == (B, 16, 16, 3) and len(np.unique(plain)) > 20
    np.testing.assert_array_equal(plain, generate(z=z))
    other = np.roll(batch["tokens"][:, 0], 1, axis=0)
    np.testing.assert_array_equal(plain, generate(z=z, other=other, mix=np.zeros(B, np.float32)))
    np.testing.assert_array_equal(
        generate(z=z, tokens=other[:, None]), generate(z=z, other=other, mix=np.ones(B, np.float32))
    )
    assert np.any(plain != generate(z=z, tokens=other[:, None]))
    assert np.any(generate() != plain)


def test_without_texts():
    task, batch = make(text=None), make_batch()
    del batch["tokens"]
    state = start(task, batch)
    assert set(state.params) == {"generator", "discriminator"}
    after, metrics = step(task, state, batch)
    assert "wrong_accuracy" not in metrics and np.isfinite(metrics["loss"])
    image = task.predict["generate"](
        after.params, after.variables, {"mask": batch["mask"]}, jax.random.key(0)
    )["image"]
    assert image.shape == (B, 16, 16, 3) and image.dtype == jnp.uint8


def test_one_batch_is_learnt():
    """The discriminator tells a fixed batch from what is drawn, and a right text from a wrong one, better than by chance."""
    task = make(
        discriminator={"spectral": False},
        optimizer={"name": "adamw", "options": {"b1": 0.5}, "learning_rate": 2e-3},
    )
    batch = make_batch()
    state = start(task, batch)
    jitted = jax.jit(task.train_step)
    for _ in range(60):
        state, metrics = jitted(state, batch)
    metrics = metrics_lib.compute(metrics)
    assert metrics["real_accuracy"] >= 0.8 and metrics["wrong_accuracy"] >= 0.8, metrics


HEALTHY = {
    "train/loss": 1.0,
    "train/real_accuracy": 0.8,
    "train/fake_accuracy": 0.7,
    "train/logit_spread": 1.0,
    "train/grad_norm": 1.0,
    "train/generator_grad_norm": 1.0,
    "train/sample_distance": 0.2,
    "train/real_distance": 0.3,
}
TROUBLES = {
    "mode collapse": {"train/sample_distance": 0.001},
    "vanishing gradient": {
        "train/real_accuracy": 1.0,
        "train/fake_accuracy": 1.0,
        "train/generator_grad_norm": 1e-5,
    },
    "blind discriminator": {"train/logit_spread": 1e-6},
    "explosion": {"train/grad_norm": 1e6},
}


@pytest.mark.parametrize("kind", TROUBLES)
def test_trouble_is_named_once(kind):
    task, bad = make(), {**HEALTHY, **TROUBLES[kind]}
    assert task.advise(100, bad) is None, "a generator that has hardly begun draws the same everywhere"
    assert task.advise(1000, HEALTHY) is None
    assert task.advise(1050, bad).startswith(kind)
    assert task.advise(1100, bad) is None
    task.advise(1150, HEALTHY)
    assert task.advise(1200, bad).startswith(kind)


def test_a_run_may_stop_at_a_collapse():
    task, bad = make(watch={"stop": True, "patience": 2}), {**HEALTHY, **TROUBLES["mode collapse"]}
    task.advise(1000, bad)
    with pytest.raises(Collapsed, match=r"Stopped at step 1050, after 2 reports in a row of mode collapse"):
        task.advise(1050, bad)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"update": "both"}, r'Unknown task.update "both"'),
        ({"update": "simultaneous", "discriminator_steps": 2}, r"set discriminator_steps to 1"),
        ({"loss": {"name": "hinges"}}, r'Unknown adversarial loss "hinges". Did you mean "hinge"'),
        (
            {"loss": {"penalty": {"name": "r2", "weight": 1.0}}},
            r'Unknown gradient penalty "r2". Did you mean "r1"',
        ),
        ({"generator": {"widht": 8}}, r'Unknown key "widht".*Did you mean "width"'),
        ({"augment": ("color",)}, r'Unknown policy of diff_augment "color". Did you mean "colour"'),
        ({"text": None, "matchers": MATCHERS}, r"task.matchers say .* need a task.text"),
        ({"matchers": {"damsm": {"embed_dim": 8}}}, r"task.matchers.damsm has no init_from.*damsm_scenes"),
        (
            {"matchers": {"classification": {}}},
            r"task.matchers.classification: models of this task lead no generator",
        ),
        ({"matchers": {"captions": {}}}, r'Unknown name "captions" in tasks/. Did you mean "captioning"'),
        ({"optimizer": {"accumulate": 2}}, r"takes a smaller batch"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_mistakes_in_a_config(options, message):
    with pytest.raises(ValueError, match=message):
        task, batch = make(**options), make_batch()
        jax.eval_shape(task.train_step, jax.eval_shape(task.init, jax.random.key(0), batch), batch)


def test_sizes_that_do_not_fit():
    with pytest.raises(
        ValueError, match=r"The generator draws \[32, 32, 3\] and the data's images are \[16, 16, 3\]"
    ):
        start(make(generator={"image_size": 32}), make_batch())
    batch = make_batch()
    del batch["tokens"]
    with pytest.raises(ValueError, match=r"The examples have no tokens"):
        start(make(), batch)
