"""Text to image by adversarial training: a generator draws, a discriminator tells drawn from real and right text from wrong.

One step is a turn of the discriminator, or several, and one of the generator (Goodfellow et al., 2014; Reed et al., 2016).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from einops import rearrange, reduce, repeat

from mmgen_jax.core import metrics as metrics_lib
from mmgen_jax.core import parallel, registry
from mmgen_jax.core.metrics import Mean
from mmgen_jax.core.optimizer import Optimizer
from mmgen_jax.core.sharding import Layout, gathered
from mmgen_jax.core.state import State
from mmgen_jax.losses import adversarial
from mmgen_jax.models.text_to_image import TextEncoder, interpolate
from mmgen_jax.nn.diff_augment import diff_augment
from mmgen_jax.nn.text_conditioning import Generated, Judged, Text
from mmgen_jax.tasks.base import DTYPES, Batch, Matcher, Metrics, Task, take_init_from
from mmgen_jax.tasks.collapse import CollapseWatch
from mmgen_jax.tasks.contrastive import text_ids

WATCHED = 8  # samples of one caption whose distances the collapse watch measures
VALUES = ("pixels", "points")
UPDATES = ("alternating", "simultaneous")

NEXT = """
Next:
  python scripts/generate.py --workdir {workdir} --n 8 --out samples/    # its own captions; or name yours: "a red circle"
  python scripts/evaluate.py --workdir {workdir}      # the scores again, or with --split another data set's
  ls {workdir}/figures                                # a picture of the same captions and noise at each evaluation
"""


class Penalty(NamedTuple):
    """A gradient penalty of the discriminator.

    Attributes:
      name: "r1" (Mescheder et al., 2018), its cheaper "r1_estimate", "wasserstein" (Gulrajani et al., 2017) or "matching_aware"
        (DF-GAN: Tao et al., 2022).
      weight: of the penalty: half the paper's gamma for r1 and its estimate, its lambda (10) for wasserstein, its k (2) for
        matching_aware.
      every: of every so many rows of the batch only, which costs that much less: as good as all rows at every so many steps
        (Karras et al., 2020, appendix B), but all steps are alike.
    """

    name: str
    weight: float
    every: int = 1


class Diversity(NamedTuple):
    """What the generator gains where two samples of one text differ, see `adversarial.diversity`.

    Attributes:
      weight: lambda.
      bound: tau. Two draws of noise are 1.13 apart, so that pictures, from -1 to 1, gain up to 1.13 tau; `train/real_distance` is
        how far real ones of all texts are apart.
      every: of every so many rows of the batch only, which are drawn twice more.
    """

    weight: float
    bound: float
    every: int = 4


class Loss(NamedTuple):
    """What the two networks minimise.

    Attributes:
      name: one of losses/adversarial.py's OBJECTIVES.
      smooth: one-sided label smoothing: what is real should look so much less than certainly real (Salimans et al., 2016).
      matching: the discriminator also sees real images with the text of another example, as something to refuse (Reed et
        al., 2016, GAN-CLS); its weight, 0 for none.
      mismatches: so many other examples' texts, each of which it refuses for itself. One more costs only the last layers.
      interpolation: weight of generated images for texts half-way between two examples' (Reed et al., 2016, GAN-INT).
      kl: weight of the conditioning augmentation's divergence from the normal distribution (StackGAN).
      penalty: see `Penalty`; None for none.
      diversity: see `Diversity`; None for none.
    """

    name: str = "non_saturating"
    smooth: float = 0.0
    matching: float = 1.0
    mismatches: int = 1
    interpolation: float = 0.0
    kl: float = 1.0
    penalty: Mapping[str, Any] | None = None
    diversity: Mapping[str, Any] | None = None


class Noise(NamedTuple):
    """Noise on all that the discriminator sees, real and generated, which dies away: the coarse is learned before the fine.

    With much of it the two distributions overlap, so that the slopes lead to modes that a generator has not found yet
    (instance noise: Sonderby et al., 2017; Arjovsky and Bottou, 2017).

    Attributes:
      std: its standard deviation at the start, in units of what the discriminator sees.
      half_life: steps in which it halves.
    """

    std: float
    half_life: float


class TextToImage(Task):
    """Draw an image for a text. Networks: "text" (none for an unconditional model), "generator", "discriminator".

    The discriminator's gradient trains the text tower too, through the sentence's vector; the generator takes the text as given.

    Args:
      text: a text tower of nn/ by name with its fields; `pool` says how its words become a sentence (models/text_to_image.py),
        `init_from` which run or file it starts from, `train` False freezes it. None for an unconditional model.
      generator, discriminator: `name` of a file in nn/ (dcgan, resnet_gan, stackgan, attngan, mlp_gan) and its fields; the
        generator's `init_from` says which run it starts from.
      matchers: finished runs that tell the generator how well images show their texts, by their task ("damsm", "captioning",
        "contrastive"): {"damsm": {"weight": AttnGAN's lambda, "init_from": the run's folder, and the model of its config}}. They
        stand in the State as "damsm_matcher" and so on, frozen.
      matcher: how configs of earlier runs name their one matcher, a DAMSM; its weight is then `loss["damsm"]`.
      loss: see `Loss`.
      update: "alternating": the generator answers to the discriminator after its update, as in the paper; "simultaneous": to the
        one before, whose forward pass then serves both.
      discriminator_steps: turns of the discriminator before one of the generator; the batch is cut into so many parts.
      augment: kinds of differentiable augmentation of what the discriminator sees, see nn/diff_augment.py.
      noise: see `Noise`; None for none.
      watch: see `CollapseWatch`.
      values: "pixels", or "points" for data that is no image.
      dtype: "float32" or "bfloat16", of the computation.
    """

    def __init__(
        self,
        *,
        text: Mapping[str, Any] | None,
        generator: Mapping[str, Any],
        discriminator: Mapping[str, Any],
        loss: Mapping[str, Any],
        matchers: Mapping[str, Any] | None = None,
        matcher: Mapping[str, Any] | None = None,
        update: str = "alternating",
        discriminator_steps: int = 1,
        augment: Sequence[str] = (),
        noise: Mapping[str, Any] | None = None,
        watch: Mapping[str, Any] | None = None,
        values: str = "pixels",
        dtype: str = "float32",
        optimizer: Optimizer,
        layout: Layout,
        context: Mapping[str, Any],
    ):
        super().__init__(optimizer, layout)
        dtype = registry.choose(DTYPES, dtype, "dtype")
        for what, value, valid in (("update", update, UPDATES), ("values", values, VALUES)):
            if value not in valid:
                raise ValueError(f'Unknown task.{what} "{value}".{registry.nearest(value, valid)}')
        if update == "simultaneous" and discriminator_steps != 1:
            raise ValueError('update="simultaneous" is one step of both: set discriminator_steps to 1.')
        if optimizer.accumulate != 1:
            raise ValueError("optimizer.accumulate is for tasks with one loss; a GAN takes a smaller batch.")
        self.text = self._text_encoder(text, context["tokenizer"], dtype) if text else None
        make = {"dtype": dtype, "axis_name": self.axis}
        generator, found = take_init_from(generator, "generator")  # StackGAN's stage I
        self.init_from.update(found)
        self.generator = _network("make_generator", generator, make)
        self.discriminator = _network("make_discriminator", discriminator, make)
        loss = dict(loss)
        earlier = {"weight": loss.pop("damsm", 0.0), **(matcher or {})}
        self._loss = registry.call(Loss, loss, "task.loss")
        specs = {f"{name}_matcher": (name, spec) for name, spec in (matchers or {}).items()}
        if matcher:
            specs["matcher"] = ("damsm", earlier)
        # {network: (its weight, the matcher)}
        self._matchers = {
            network: self._matcher(network, *spec, context["tokenizer"], dtype)
            for network, spec in specs.items()
        }
        if self._matchers and not self.text:
            raise ValueError("task.matchers say how well images show their texts: they need a task.text.")
        self._objective = registry.choose(adversarial.OBJECTIVES, self._loss.name, "adversarial loss")
        self._penalty = None
        if self._loss.penalty:
            self._penalty = registry.call(Penalty, self._loss.penalty, "task.loss.penalty")
            registry.choose(PENALTIES, self._penalty.name, "gradient penalty")
        more = self._loss.diversity
        self._diversity = registry.call(Diversity, more, "task.loss.diversity") if more else None
        self._blur = registry.call(Noise, noise, "task.noise") if noise else None
        self._watch = registry.call(CollapseWatch, watch or {}, "task.watch")
        self._simultaneous, self._steps = update == "simultaneous", discriminator_steps
        self._augment, self._values = tuple(augment), values
        self.predict = {"generate": self._predict_generate, "stages": self._predict_stages}
        if self.text:
            self.predict["embed_text"] = self._predict_text
        if getattr(self.generator, "attends", False):
            self.predict["attend"] = self._predict_attend

    def _text_encoder(self, spec: Mapping[str, Any], tokenizer: Any, dtype: Any) -> TextEncoder:
        (spec, found), pool = take_init_from(spec, "text"), "last"
        self.init_from.update(found)
        pool = spec.pop("pool", pool)
        if not spec.pop("train", True):
            self.frozen |= {"text"}
        tower = registry.build(
            "nn", spec, pool="none", dtype=dtype, vocab_size=tokenizer.vocab_size, eos=tokenizer.eos
        )
        return TextEncoder(tower, pool)

    def _matcher(
        self, network: str, name: str, spec: Mapping[str, Any], tokenizer: Any, dtype: Any
    ) -> tuple[float, Matcher]:
        module, where = registry.lookup("tasks", name), f"task.matchers.{name}"
        if not hasattr(module, "make_matcher"):
            raise ValueError(
                f"{where}: models of this task lead no generator; those of damsm, captioning and contrastive do."
            )
        spec, found = take_init_from(spec, network)
        if not found:
            raise ValueError(
                f"{where} has no init_from: an untrained matcher would lead the generator astray. Train one "
                "(scripts/train.py --config configs/damsm_scenes.py --workdir runs/damsm_scenes) and name its folder."
            )
        self.init_from.update(found)
        self.frozen |= {network}
        weight = spec.pop("weight", 1.0)
        return weight, module.make_matcher(tokenizer=tokenizer, dtype=dtype, **spec)

    def networks(self, rng: jax.Array, batch: Batch) -> dict[str, dict]:
        keys = jax.random.split(rng, 4 + len(self._matchers))
        networks, text = {}, None
        if self.text:
            if "tokens" not in batch:
                raise ValueError(
                    "The examples have no tokens: end data.transforms with text(...), or set task.text=None."
                )
            tokens = batch["tokens"][:, 0]
            networks["text"] = self.text.init(keys[0], tokens, train=False)
            text = self.text.apply(networks["text"], tokens, train=False)
        z = jnp.zeros((len(batch["image"]), self.generator.z_features), jnp.float32)
        networks["generator"] = self.generator.init(
            {"params": keys[1], "noise": keys[2]}, z, text, train=False
        )
        images = self.generator.apply(networks["generator"], z, text, train=False).images
        if images[-1].shape != batch["image"].shape:
            raise ValueError(
                f"The generator draws {list(images[-1].shape[1:])} and the data's images are {list(batch['image'].shape[1:])}: "
                "set image_size in task.generator and task.discriminator, or the size in data.transforms."
            )
        for (name, (_, matcher)), key in zip(self._matchers.items(), keys[4:], strict=True):
            networks[name] = matcher.init(key, batch["image"], batch["tokens"])
        networks["discriminator"] = self.discriminator.init(keys[3], images, text, train=False)
        return networks

    # -------------------------------------------------------------------------------------------------- one step

    def train_step(self, state: State, batch: Batch) -> tuple[State, Metrics]:
        """`discriminator_steps` turns of the discriminator on parts of the batch; with the last, the generator's turn."""
        rng = jax.random.fold_in(state.rng, state.step)
        rows = len(batch["mask"])
        if rows % self._steps:
            raise ValueError(
                f"A batch of {rows} does not divide into task.discriminator_steps={self._steps}."
            )
        # Every part takes rows from each device, so that no row moves.
        parts = jax.tree.map(lambda x: rearrange(x, "(b s) ... -> s b ...", s=self._steps), batch)
        metrics: Metrics = {}
        for i in range(self._steps):
            part = jax.tree.map(lambda x, i=i: x[i], parts)
            last = i == self._steps - 1
            state, new = self._turn(state, part, jax.random.fold_in(rng, i), with_generator=last)
            metrics = {**new, **metrics_lib.merge(metrics, new)}
        metrics["learning_rate"] = Mean.of(self.optimizer.schedule(state.step))
        return state.replace(step=state.step + 1), metrics

    def _turn(
        self, state: State, batch: Batch, rng: jax.Array, with_generator: bool
    ) -> tuple[State, Metrics]:
        """Update the discriminator, and the generator where asked; each network runs forward once where that is enough."""
        noise_key, halfway_key, augment_key, penalty_key, watch_key = jax.random.split(rng, 5)
        params, variables, weight = state.params, dict(state.variables), batch["mask"]
        real_images = self._real(batch["image"])
        text, pull_text = None, None
        if self.text:
            text, pull_text, variables["text"] = self._encode(
                params["text"], variables["text"], batch["tokens"], jax.random.fold_in(noise_key, 1)
            )
        # Both networks take the text as given; the discriminator's gradient reaches its tower through `sentence`.
        sentence = text.sentence if text else None
        drawn_text, z = text, self._noise(noise_key, len(weight))
        if self._loss.interpolation and text:
            half = interpolate(
                text, jax.tree.map(partial(self._shift, by=1), text), jnp.full(len(weight), 0.5)
            )
            drawn_text = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), text, half)
            z = jnp.concatenate([z, self._noise(halfway_key, len(weight))])

        def draw(params):
            return self._apply("generator", params, variables["generator"], halfway_key, z, drawn_text)

        generated, pull_generator, variables["generator"] = jax.vjp(draw, params["generator"], has_aux=True)
        real_blur, fake_blur = jax.random.split(jax.random.fold_in(augment_key, 1))
        reals = self._blurred(_pyramid(real_images, generated.images), real_blur, state.step)
        real_key, fake_key = jax.random.split(parallel.device_key(augment_key, self.axis))

        def judge_real(params, sentence):
            """-> logits of real images with their own and with another example's text."""
            images = diff_augment(reals, real_key, self._augment)
            features, new = self._apply(
                "discriminator", params, variables["discriminator"], None, images, method="features"
            )
            held = {**variables["discriminator"], **new}

            def judged(features, sentence):
                given = text._replace(sentence=sentence) if text else None
                return self._apply("discriminator", params, held, None, features, given, method="judge")

            real, new = judged(features, sentence)
            wrong = None
            if self._mismatches:
                copies = jax.tree.map(self._copies, features)
                wrong, _ = judged(copies, self._others(sentence))
            return (real, wrong), {**held, **new}

        (real, wrong), pull_real, variables["discriminator"] = jax.vjp(
            judge_real, params["discriminator"], sentence, has_aux=True
        )
        held = variables["discriminator"]

        def judge_fake(params, sentence, images):
            images = self._blurred(images, fake_blur, state.step)
            images = diff_augment(images, fake_key, self._augment)
            given = None
            if text:
                # The half-way texts belong to the generator alone; the tower learns nothing from them.
                rest = jax.lax.stop_gradient(drawn_text.sentence[len(weight) :])
                given = drawn_text._replace(sentence=jnp.concatenate([sentence, rest]))
            return self._apply("discriminator", params, held, None, images, given)

        fake, pull_fake, variables["discriminator"] = jax.vjp(
            judge_fake, params["discriminator"], sentence, generated.images, has_aux=True
        )
        different = self._different(batch) if self._mismatches else None

        def discriminator_loss(real, wrong, fake):
            losses = self._discriminator_loss(real, wrong, different, _first(fake, len(weight)), weight)
            return jnp.sum(jnp.where(weight > 0, losses, 0.0) * weight), losses

        cotangents, losses = jax.grad(discriminator_loss, argnums=(0, 1, 2), has_aux=True)(real, wrong, fake)
        of_real, of_fake = pull_real(cotangents[:2]), pull_fake(cotangents[2])
        grads = {"discriminator": jax.tree.map(jnp.add, of_real[0], of_fake[0])}
        metrics = {"loss": Mean.of(losses, weight), **self._accuracies(real, wrong, different, fake, weight)}
        if self._penalty:
            penalty_key = parallel.device_key(penalty_key, self.axis)
            grad, metrics["penalty"] = self._penalty_gradient(
                params["discriminator"], held, reals, generated.images, text, weight, penalty_key
            )
            grads["discriminator"] = jax.tree.map(jnp.add, grads["discriminator"], grad)
        if text and "text" not in self.frozen:
            (grads["text"],) = pull_text(of_real[1] + of_fake[1])
        grads, metrics = self._mean(grads, metrics)
        metrics["discriminator_grad_norm"] = Mean.of(optax.tree.norm(grads))
        state = self.update(state.replace(variables=variables), grads)
        if not with_generator:
            return state, metrics

        if self._simultaneous:
            # One forward pass of the discriminator serves both; what is not used of a pull-back is never computed.
            def pull_images(cotangent):
                return pull_fake(cotangent)[2]

        else:
            now = state.params["discriminator"]
            fake, pull = jax.vjp(lambda images: judge_fake(now, sentence, images)[0], generated.images)

            def pull_images(cotangent):
                return pull(cotangent)[0]

        def pull_both(of_fake, of_generated):
            of_images = jax.tree.map(jnp.add, of_generated.images, pull_images(of_fake))
            return pull_generator(of_generated._replace(images=of_images))[0]

        keys = watch_key, jax.random.fold_in(rng, 5)
        state, new = self._generator_turn(state, batch, text, real, fake, generated, pull_both, keys)
        new["grad_norm"] = Mean.of(
            jnp.hypot(new["generator_grad_norm"].total, metrics["discriminator_grad_norm"].total)
        )
        return state, {**metrics, **new}

    def _generator_turn(
        self,
        state: State,
        batch: Batch,
        text: Text | None,
        real: Judged,
        fake: Judged,
        generated: Generated,
        pull: Callable[[Judged, Generated], dict],
        keys: tuple[jax.Array, jax.Array],
    ) -> tuple[State, Metrics]:
        """Update the generator by what the discriminator says of real and, as it now is, of generated images.

        pull: the cotangents of `fake` and of `generated` -> the gradient of the generator's parameters; keys: of what is watched
        and of the diversity.
        """
        watch_key, diversity_key = keys
        weight = weights = batch["mask"]
        if self._loss.interpolation and text:
            weights = jnp.concatenate([weight, self._loss.interpolation * weight])

        def loss(fake, generated):
            losses = self._generator_loss(fake, real, generated, weights)
            matches = self._match(state, batch, generated)
            for name, match in matches.items():
                losses = losses.at[: len(weight)].add(self._matchers[name][0] * match)
            matches = {name: Mean.of(match, weight) for name, match in matches.items()}
            return jnp.sum(jnp.where(weights > 0, losses, 0.0) * weights), (losses, matches)

        cotangents, (losses, matches) = jax.grad(loss, argnums=(0, 1), has_aux=True)(fake, generated)
        metrics = {"generator_loss": Mean.of(losses[: len(weight)], weight), **matches}
        grad = pull(*cotangents)
        if self._diversity:
            more, metrics["diversity"] = self._diversity_gradient(
                state.params["generator"], state.variables["generator"], text, weight, diversity_key
            )
            grad = jax.tree.map(jnp.add, grad, more)
        metrics.update(self._distances(state, batch, text, watch_key))
        # Divided by the number of examples, as the discriminator's: half-way texts add to that by their weight.
        grads, metrics = self._mean({"generator": grad}, metrics, "generator_loss")
        metrics["generator_grad_norm"] = Mean.of(optax.tree.norm(grads))
        return self.update(state, grads), metrics

    @property
    def _mismatches(self) -> int:
        """K, how many wrong texts a real image is judged with."""
        return self._loss.mismatches if self.text and self._loss.matching else 0

    def _encode(
        self, params: dict, variables: dict, tokens: jax.Array, rng: jax.Array
    ) -> tuple[Text, Any, dict]:
        """-> (the text without gradients, the pull-back of the sentence's to the tower's parameters, new variables)."""
        dropout = parallel.device_key(rng, self.axis)

        def encode(params):
            text, new = self.text.apply(
                {"params": gathered(params, self.layout), **variables},
                tokens[:, 0],
                train="text" not in self.frozen,
                mutable=list(variables),
                rngs={"dropout": dropout},
            )
            return text.sentence, (text, new)

        _, pull, (text, new) = jax.vjp(encode, params, has_aux=True)
        return jax.lax.stop_gradient(text), pull, new

    def _apply(
        self, network: str, params: dict, variables: dict, key: Any, *inputs: Any, method: Any = None
    ) -> tuple:
        """Run a network as in training: (what it gives, its new variables)."""
        module = self.generator if network == "generator" else self.discriminator
        rngs = {} if key is None else {"noise": parallel.device_key(key, self.axis)}
        return module.apply(
            {"params": gathered(params, self.layout), **variables},
            *inputs,
            train=True,
            mutable=list(variables),
            rngs=rngs,
            method=method,
        )

    def _noise(self, rng: jax.Array, rows: int) -> jax.Array:
        return self._normal(rng, (rows, self.generator.z_features))

    def _normal(self, rng: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Noise for the rows of this device, [B, ...]: the same for an example on any number of devices."""
        shape = (parallel.whole(shape[0], self.axis), *shape[1:])
        return parallel.own_rows(jax.random.normal(rng, shape, jnp.float32), self.axis)

    def _blurred(
        self, images: tuple[jax.Array, ...], rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, ...]:
        """Images with this step's noise, the same for an example on any number of devices. [B, H, W, C] each."""
        if self._blur is None:
            return images
        std = self._blur.std * jnp.exp2(-step.astype(jnp.float32) / self._blur.half_life)

        def blurred(image, rng):
            return image + (std * self._normal(rng, image.shape)).astype(image.dtype)

        return tuple(blurred(x, jax.random.fold_in(rng, i)) for i, x in enumerate(images))

    def _shift(self, x: jax.Array, by: int) -> jax.Array:
        """Each example gets what belongs to the one `by` places before it, over all devices. [B, ...] -> [B, ...]."""
        return parallel.own_rows(jnp.roll(parallel.gather(x, self.axis), by, axis=0), self.axis)

    def _copies(self, x: jax.Array) -> jax.Array:
        """Each example K times. [B, ...] -> [B K, ...]: side by side, so that they stay on their device."""
        return repeat(x, "b ... -> (b k) ...", k=self._mismatches)

    def _others(self, x: jax.Array) -> jax.Array:
        """What belongs to the examples 1, 2, ... K places before each. [B, ...] -> [B K, ...]."""
        others = [self._shift(x, by) for by in range(1, self._mismatches + 1)]
        return rearrange(others, "k b ... -> (b k) ...")

    def _different(self, batch: Batch) -> jax.Array:
        """1 where the other example has another text, and is none of the broken ones. float32 [B K]."""
        tokens = batch["tokens"][:, 0]
        other = jnp.any(self._copies(tokens) != self._others(tokens), axis=-1)
        return other.astype(jnp.float32) * self._others(batch["mask"])

    def _real(self, image: jax.Array) -> jax.Array:
        """uint8 -> float32 from -1 to 1; points stay."""
        return image if self._values == "points" else image.astype(jnp.float32) / 127.5 - 1.0

    def _discriminator_loss(self, real, wrong, different, fake, weight) -> jax.Array:
        """-> a loss an example, [B], summed over stages and over both kinds of logits."""
        options = {"mask": weight, "axis": self.axis}
        losses = jnp.zeros_like(weight)
        for r, f in zip(real.unconditional, fake.unconditional, strict=True):
            losses += sum(self._objective.discriminator(r, f, self._loss.smooth, **options))
        for i, (r, f) in enumerate(zip(real.conditional, fake.conditional, strict=True)):
            on_real, on_fake = self._objective.discriminator(r, f, self._loss.smooth, **options)
            if wrong is not None:
                copies = self._mismatches
                copied = {"mask": self._copies(weight), "axis": self.axis}
                _, on_wrong = self._objective.discriminator(
                    self._copies(r), wrong.conditional[i], self._loss.smooth, **copied
                )
                on_wrong, there = (rearrange(x, "(b k) -> b k", k=copies) for x in (on_wrong, different))
                count = jnp.sum(there, axis=1)
                on_wrong = jnp.sum(on_wrong * there, axis=1) / jnp.maximum(count, 1.0)
                share = self._loss.matching * jnp.minimum(count, 1.0)
                # As much weight on what is to be refused as on what is real.
                on_fake = (on_fake + share * on_wrong) / (1.0 + share)
            losses += on_real + on_fake
        return losses

    def _generator_loss(
        self, fake: Judged, real: Judged, generated: Generated, weights: jax.Array
    ) -> jax.Array:
        copies = len(weights) // len(_logits(real)[0])
        losses = jnp.zeros_like(weights)
        for f, r in zip(_logits(fake), _logits(real), strict=True):
            r = jax.lax.stop_gradient(jnp.tile(r, copies))
            losses += self._objective.generator(f, r, mask=weights, axis=self.axis)
        if generated.statistics and self._loss.kl:
            losses += self._loss.kl * adversarial.kl(**generated.statistics)
        return losses

    def _match(self, state: State, batch: Batch, generated: Generated) -> dict[str, jax.Array]:
        """Each frozen matcher's losses of what was drawn with the texts that were asked for. {name: [B]}"""
        if not self._matchers:
            return {}
        tokens, image = batch["tokens"][:, 0], generated.images[-1][: len(batch["mask"])]
        ids = {"weight": batch["mask"], "image_id": batch["index"], "text_id": text_ids(tokens)}

        def on_rows(rows, variables, axis):
            image, tokens, ids = rows
            return {
                name: matcher.losses(variables[name], image, tokens, **ids, axis=axis)
                for name, (_, matcher) in self._matchers.items()
            }

        variables = {name: {"params": state.params[name], **state.variables[name]} for name in self._matchers}
        return parallel.by_rows(on_rows, self.layout)((image, tokens, ids), variables)

    def _penalty_gradient(self, params, variables, reals, fakes, text, weight, rng):
        """-> (gradient of the penalty, summed over the rows, its mean over those where it is taken)."""
        penalty = self._penalty
        # Rows here and there, so that each device has some.
        reals, fakes, text = jax.lax.stop_gradient(
            jax.tree.map(lambda x: x[: len(weight) : penalty.every], (reals, fakes, text))
        )
        weight = penalty.every * weight[:: penalty.every]

        def summed(params):
            def logit(images, sentence=text.sentence if text else None):
                given = text._replace(sentence=sentence) if text else None
                judged, _ = self._apply("discriminator", params, variables, None, images, given)
                return sum(_logits(judged))

            values = PENALTIES[penalty.name](logit, reals, fakes, text, rng)
            return penalty.weight * jnp.sum(jnp.where(weight > 0, values, 0.0) * weight), Mean.of(
                values, weight
            )

        return jax.grad(summed, has_aux=True)(params)

    def _diversity_gradient(self, params, variables, text, weight, rng):
        """-> (gradient of what too little diversity costs, summed over the rows, the mean diversity of those that were drawn)."""
        every = self._diversity.every
        text = jax.tree.map(lambda x: jnp.concatenate([x[::every]] * 2), text)
        weight = every * weight[::every]
        z = [self._noise(key, len(weight)) for key in jax.random.split(rng)]

        def summed(params):
            drawn, _ = self._apply("generator", params, variables, rng, jnp.concatenate(z), text)
            values = adversarial.diversity(*jnp.split(drawn.images[-1], 2), *z, self._diversity.bound)
            gain = self._diversity.weight * jnp.sum(jnp.where(weight > 0, values, 0.0) * weight)
            return -gain, Mean.of(values, weight)

        return jax.grad(summed, has_aux=True)(params)

    def _accuracies(self, real, wrong, different, fake, weight) -> Metrics:
        """How often the discriminator is right about each kind of pair, and how far its logits spread."""
        rows = len(weight)
        metrics, every = {}, []
        kinds = {"real": (real, weight, 1.0), "fake": (_first(fake, rows), weight, -1.0)}
        if wrong is not None:
            kinds["wrong"] = (
                Judged(wrong.conditional, ()),
                self._copies(weight) * different,
                -1.0,
            )
        for kind, (judged, weights, sign) in kinds.items():
            for logits in _logits(judged):
                value = Mean.of(sign * logits > 0, weights)
                metrics[f"{kind}_accuracy"] = (
                    metrics[f"{kind}_accuracy"].merge(value) if f"{kind}_accuracy" in metrics else value
                )
                every.append((logits, weights))
        logits, weights = (jnp.concatenate(parts) for parts in zip(*every, strict=True))
        mean = Mean.of(logits, weights).compute()
        return {**metrics, "logit_spread": Mean.of(jnp.abs(logits - mean), weights)}

    def _distances(self, state, batch, text, rng) -> Metrics:
        """Mean distance a value of two samples of one caption, and of two real images; counted every `watch.every` steps."""

        def apart(images):
            images = images.astype(jnp.float32)
            pairs = jnp.mean(jnp.abs(images[:, None] - images[None]), axis=(2, 3, 4))
            off = 1.0 - jnp.eye(len(images))
            return Mean.of(pairs, off)

        def measure(_):
            first = jax.tree.map(lambda x: jnp.repeat(x[:1], WATCHED, axis=0), text)
            z = jax.random.normal(rng, (WATCHED, self.generator.z_features), jnp.float32)
            params = gathered(state.params["generator"], self.layout)
            drawn = self.generator.apply(
                {"params": params, **state.variables["generator"]},
                z,
                first,
                train=False,
                rngs={"noise": rng},
            )
            return {
                "sample_distance": apart(drawn.images[-1]),
                "real_distance": apart(self._real(batch["image"][:WATCHED])),
            }

        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(measure, 0))
        return jax.lax.cond(state.step % self._watch.every == 0, measure, lambda _: nothing, 0)

    def _mean(self, grads: dict, metrics: Metrics, by: str = "loss") -> tuple[dict, Metrics]:
        """Sums over this device's rows -> the mean over the whole batch's."""
        grads, metrics = parallel.total((grads, metrics), self.axis)
        count = jnp.maximum(metrics[by].count, 1e-12)
        return jax.tree.map(lambda g: g / count, grads), metrics

    def advise(self, step: int, report: Mapping[str, float]) -> str | None:
        return self._watch.advise(step, report)

    # ----------------------------------------------------------------------------------------------- predictions

    def _draw(self, params, variables, batch, rng) -> Generated:
        """Samples of the first text of each row. Optional in the batch: "z" [B, Z], which is then all the noise there is, so that
        a row depends on no other; "other" [B, T] with "mix" [B], towards which the text goes."""
        text = self._read(params, variables, batch["tokens"][:, 0]) if self.text else None
        if text and "other" in batch:
            text = interpolate(text, self._read(params, variables, batch["other"]), batch["mix"])
        noise_key, z_key = jax.random.split(rng)
        rows = len(batch["tokens"] if self.text else batch["mask"])
        z, rngs = batch.get("z"), {}
        if z is None:
            z = jax.random.normal(z_key, (rows, self.generator.z_features), jnp.float32)
            rngs = {"noise": noise_key}
        return self.generator.apply(
            {"params": params["generator"], **variables["generator"]}, z, text, train=False, rngs=rngs
        )

    def _read(self, params, variables, tokens) -> Text:
        return self.text.apply({"params": params["text"], **variables["text"]}, tokens, train=False)

    def _pixels(self, images: jax.Array) -> jax.Array:
        """From -1 .. 1 to uint8; points stay float32."""
        images = images.astype(jnp.float32)
        if self._values == "points":
            return images
        return jnp.round((jnp.clip(images, -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)

    def _predict_generate(self, params, variables, batch, rng):
        """-> {"image" uint8 [B, H, W, 3]}, or float32 points; see `_draw` for what the batch may hold."""
        return {"image": self._pixels(self._draw(params, variables, batch, rng).images[-1])}

    def _predict_stages(self, params, variables, batch, rng):
        """-> {"stage1" uint8 [B, h, w, 3], ...}, the smallest first."""
        images = self._draw(params, variables, batch, rng).images
        return {f"stage{i + 1}": self._pixels(image) for i, image in enumerate(images)}

    def _predict_attend(self, params, variables, batch, rng):
        """-> {"weights1" float32 [B, h, w, T], ...}: where each stage with attention looked for each word."""
        weights = self._draw(params, variables, batch, rng).attention
        return {f"weights{i + 1}": weight.astype(jnp.float32) for i, weight in enumerate(weights)}

    def _predict_text(self, params, variables, batch, rng):
        """-> {"text" float32 [B, C, F]}."""
        del rng
        rows = len(batch["tokens"])
        text = self._read(params, variables, rearrange(batch["tokens"], "b c t -> (b c) t"))
        return {"text": rearrange(text.sentence.astype(jnp.float32), "(b c) f -> b c f", b=rows)}


PENALTIES = {
    "r1": lambda logit, real, fake, text, rng: adversarial.r1(logit, real),
    "r1_estimate": lambda logit, real, fake, text, rng: adversarial.r1_estimate(logit, real, rng),
    "wasserstein": lambda logit, real, fake, text, rng: adversarial.wasserstein_penalty(
        logit, real, fake, rng
    ),
    "matching_aware": lambda logit, real, fake, text, rng: adversarial.matching_aware_penalty(
        logit, real, text.sentence, weight=1.0
    ),
}


def _network(make: str, spec: Mapping[str, Any], more: Mapping[str, Any]) -> Any:
    spec = dict(spec)
    module = registry.lookup("nn", spec.pop("name"))
    return getattr(module, make)(**spec, **more)


def _logits(judged: Judged) -> tuple[jax.Array, ...]:
    return (*judged.conditional, *judged.unconditional)


def _first(judged: Judged, rows: int) -> Judged:
    return jax.tree.map(lambda x: x[:rows], judged)


def _pyramid(image: jax.Array, like: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """The real image at the sizes of the generator's stages, by averaging. [B, H, W, C] -> [B, h, w, C] each."""
    factors = [image.shape[1] // x.shape[1] for x in like]
    return tuple(
        image if f == 1 else reduce(image, "b (h p) (w q) c -> b h w c", "mean", p=f, q=f) for f in factors
    )


make = TextToImage
