"""What a discriminator and a generator minimise, and penalties on the discriminator's slope: one value an example.

A logit is what the discriminator says of an example, before any sigmoid: the higher, the more real.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

Images = Sequence[jax.Array]  # float [B, H, W, C], one a stage
Axis = str | Sequence[str] | None


class Objective(NamedTuple):
    """The two sides of a game. All arrays are float32 [B].

    mask and axis matter where an average over the batch is taken, in relativistic objectives: mask 0 leaves an example out of
    it, and axis names the mapped axes over which the batch is spread. As elsewhere in losses/ the caller leaves masked
    examples' own values out of its mean.

    Attributes:
      discriminator: (real, fake, smooth=0.0, *, mask=None, axis=None) -> (losses of real, of fake). smooth is a plain number:
        the target of real examples is 1 - smooth, that of fake ones stays 0 (one-sided label smoothing, Salimans et al., 2016,
        section 3.4). ValueError where the objective has no targets, or outside of [0, 1).
      generator: (fake, real=None, *, mask=None, axis=None) -> losses; `real` is needed where relativistic, and else not read.
      relativistic: an example is judged by how it differs from those of the other kind.
    """

    discriminator: Callable[..., tuple[jax.Array, jax.Array]]
    generator: Callable[..., jax.Array]
    relativistic: bool = False


def _non_saturating_discriminator(real, fake, smooth=0.0, *, mask=None, axis=None):
    del mask, axis
    _check_smooth(smooth)
    return _cross_entropy(real, 1.0 - smooth), _cross_entropy(fake, 0.0)


def _non_saturating_generator(fake, real=None, *, mask=None, axis=None):
    del real, mask, axis
    return _cross_entropy(fake, 1.0)


def _least_squares_discriminator(real, fake, smooth=0.0, *, mask=None, axis=None):
    del mask, axis
    _check_smooth(smooth)
    return 0.5 * jnp.square(real - (1.0 - smooth)), 0.5 * jnp.square(fake)


def _least_squares_generator(fake, real=None, *, mask=None, axis=None):
    del real, mask, axis
    return 0.5 * jnp.square(fake - 1.0)


def _hinge_discriminator(real, fake, smooth=0.0, *, mask=None, axis=None):
    del mask, axis
    _refuse_smooth(smooth, "hinge")
    return jax.nn.relu(1.0 - real), jax.nn.relu(1.0 + fake)


def _wasserstein_discriminator(real, fake, smooth=0.0, *, mask=None, axis=None):
    del mask, axis
    _refuse_smooth(smooth, "wasserstein")
    return -real, fake


def _linear_generator(fake, real=None, *, mask=None, axis=None):
    del real, mask, axis
    return -fake


def _relativistic_discriminator(real, fake, smooth=0.0, *, mask=None, axis=None):
    _check_smooth(smooth)
    above, below = real - _mean(fake, mask, axis), fake - _mean(real, mask, axis)
    return _cross_entropy(above, 1.0 - smooth), _cross_entropy(below, 0.0)


def _relativistic_generator(fake, real, *, mask=None, axis=None):
    above, below = real - _mean(fake, mask, axis), fake - _mean(real, mask, axis)
    return _cross_entropy(below, 1.0) + _cross_entropy(above, 0.0)


OBJECTIVES = {
    # -log of the probability of being right; the generator's is -log D(G(z)) (Goodfellow et al., 2014, sections 3 and 4).
    "non_saturating": Objective(_non_saturating_discriminator, _non_saturating_generator),
    # Half the squared distance to the targets 1 and 0 (Mao et al., 2017, eq. 9).
    "least_squares": Objective(_least_squares_discriminator, _least_squares_generator),
    # The discriminator wants a margin of 1, the generator -D(G(z)) (Lim & Ye, 2017; Miyato et al., 2018, eq. 16 and 17).
    "hinge": Objective(_hinge_discriminator, _linear_generator),
    # The critic's difference of means (Arjovsky et al., 2017, eq. 3). Its slope has to be bounded: `wasserstein_penalty`.
    "wasserstein": Objective(_wasserstein_discriminator, _linear_generator),
    # The non-saturating losses of a logit minus the other kind's average (Jolicoeur-Martineau, 2019, RaSGAN: section 4.2).
    "relativistic": Objective(_relativistic_discriminator, _relativistic_generator, relativistic=True),
}
SMOOTHABLE = ("non_saturating", "least_squares", "relativistic")


def _cross_entropy(logit: jax.Array, target: float) -> jax.Array:
    """-target log sigmoid(logit) - (1 - target) log(1 - sigmoid(logit)), which neither over- nor underflows."""
    if target == 1.0:
        return jax.nn.softplus(-logit)
    return jax.nn.softplus(logit) - target * logit


def _mean(x: jax.Array, mask: jax.Array | None, axis: Axis) -> jax.Array:
    """The mean over the batch where the mask is not 0, all devices' where there is an axis: a scalar, as [1]."""
    mask = jnp.ones_like(x) if mask is None else (mask > 0).astype(x.dtype)
    total, count = jnp.sum(jnp.where(mask > 0, x, 0.0)), jnp.sum(mask)
    if axis is not None:
        total, count = jax.lax.psum((total, count), axis)
    return (total / jnp.maximum(count, 1.0))[None]


def _check_smooth(smooth: float):
    if not 0.0 <= smooth < 1.0:
        raise ValueError(
            f"smooth = {smooth} must be at least 0 and less than 1: the target of real examples is 1 - smooth."
        )


def _refuse_smooth(smooth: float, name: str):
    if smooth:
        raise ValueError(
            f'smooth = {smooth} has no meaning for "{name}", which has no targets: set it to 0, or take one of '
            f"{', '.join(SMOOTHABLE)}."
        )


# Penalties. logit_fn must treat examples apart (no batch statistics of its own input), or an example's slope is not its own. --


def r1(logit_fn: Callable[[Images], jax.Array], images: Images) -> jax.Array:
    """The squared norm of the logit's gradient at real images, all stages' together (Mescheder et al., 2018, eq. 9).

    The paper's R1 is gamma / 2 times the mean; the factor is the caller's.

    Args:
      logit_fn: images -> float32 [B], the sum over stages where there are many.
      images: one [B, H, W, C] a stage.

    Returns:
      float32 [B].
    """
    return sum(_squares(slope) for slope in _slopes(logit_fn, tuple(images)))


def r1_estimate(logit_fn: Callable[[Images], jax.Array], images: Images, rng: jax.Array) -> jax.Array:
    """An unbiased estimate of `r1`: the squared slope in one random direction e, (gradient . e)^2 with e standard normal.

    Its mean over e is the gradient's squared norm (Hutchinson's estimator, 1989). It takes one derivative forwards instead of one
    backwards, so that training differentiates backwards only once: much cheaper, and the batch averages the noise.

    Args:
      logit_fn: images -> float32 [B], the sum over stages where there are many.
      images: one [B, H, W, C] a stage.
      rng: key of e; another one on each device where the batch is spread over a mapped axis.

    Returns:
      float32 [B].
    """
    keys = jax.random.split(rng, len(images))
    directions = tuple(jax.random.normal(key, x.shape, x.dtype) for key, x in zip(keys, images, strict=True))
    _, slope = jax.jvp(logit_fn, (tuple(images),), (directions,))
    return jnp.square(slope)


def wasserstein_penalty(
    logit_fn: Callable[[Images], jax.Array], real: Images, fake: Images, rng: jax.Array
) -> jax.Array:
    """(norm of the critic's gradient - 1)^2 at points between real and fake (Gulrajani et al., 2017, eq. 3, without lambda).

    The points are c real + (1 - c) fake, with one c an example, uniform in [0, 1], for all of its stages, whose penalties are
    added up: each stage has its own critic, and each of them is to have slope 1.

    Args:
      logit_fn: images -> float32 [B], the sum over stages where there are many.
      real, fake: one [B, H, W, C] a stage.
      rng: key of c; another one on each device where the batch is spread over a mapped axis.

    Returns:
      float32 [B].
    """
    c = jax.random.uniform(rng, (len(real[0]),), jnp.float32)

    def between(real, fake):
        share = jnp.expand_dims(c, range(1, real.ndim))
        return share * real.astype(jnp.float32) + (1.0 - share) * fake.astype(jnp.float32)

    points = tuple(between(*pair) for pair in zip(real, fake, strict=True))
    # The root's derivative would be infinite at 0; the maximum's is 0 there.
    norms = [jnp.sqrt(jnp.maximum(_squares(slope), 1e-24)) for slope in _slopes(logit_fn, points)]
    return sum(jnp.square(norm - 1.0) for norm in norms)


def matching_aware_penalty(
    logit_fn: Callable[[Images, jax.Array], jax.Array],
    images: Images,
    sentence: jax.Array,
    weight: float = 2.0,
    power: float = 6.0,
) -> jax.Array:
    """weight * norm^power of the logit's gradient at real images with their own text, which flattens the surface around them.

    MA-GP of DF-GAN (Tao et al., 2022, section 3.3). The norm is that of both gradients, for the image and for
    the sentence, joined, as the published training code has it; the paper's formula adds up two norms.

    Args:
      logit_fn: (images, sentence) -> float32 [B].
      images: one [B, H, W, C] a stage.
      sentence: [B, F], the right texts.
      weight, power: k and p, 2 and 6 in the paper; the power has to be at least 2 to be differentiable at slope 0.

    Returns:
      float32 [B].
    """
    squares = sum(_squares(slope) for slope in _slopes(logit_fn, tuple(images), sentence))
    return weight * squares ** (0.5 * power)


def _slopes(logit_fn: Callable, *inputs: jax.Array | Images) -> list[jax.Array]:
    """Each example's gradient of its own logit, for every array [B, ...] among the inputs."""
    return jax.tree.leaves(jax.grad(lambda inputs: jnp.sum(logit_fn(*inputs)))(inputs))


def _squares(x: jax.Array) -> jax.Array:
    """[B, ...] -> the sum of squares of each example, float32 [B]."""
    return jnp.sum(jnp.square(x.astype(jnp.float32)), axis=tuple(range(1, x.ndim)))


def kl(mean: jax.Array, log_variance: jax.Array) -> jax.Array:
    """The divergence of a diagonal Gaussian from the standard normal: conditioning augmentation (Zhang et al., 2017, eq. 2).

    The mean over features, as in the published StackGAN and AttnGAN code, so that their weights (2 and 1) are weights here, and
    fit any number of features; the formula as printed is the sum, D times as much.

    Args:
      mean, log_variance: [B, D].

    Returns:
      nats a feature, float32 [B].
    """
    mean, log_variance = mean.astype(jnp.float32), log_variance.astype(jnp.float32)
    return 0.5 * jnp.mean(jnp.square(mean) + jnp.expm1(log_variance) - log_variance, axis=-1)


def diversity(
    image: jax.Array, other: jax.Array, z: jax.Array, other_z: jax.Array, bound: float
) -> jax.Array:
    """How much two samples of one text differ for how much their noise does, up to a bound (DSGAN: Yang et al., 2019).

    A generator that maximises it cannot draw one picture for all noise (Mao et al., 2019, have the same without the bound).

    Args:
      image, other: float [B, ...], drawn from the noise z, other_z [B, Z].
      bound: tau; no more is asked than this, so that samples do not differ more than real images do.

    Returns:
      mean |image - other| / mean |z - other_z|, at most `bound`: float32 [B].
    """
    apart, noise = (
        jnp.mean(jnp.abs(a.astype(jnp.float32) - b.astype(jnp.float32)), axis=range(1, a.ndim))
        for a, b in ((image, other), (z, other_z))
    )
    return jnp.minimum(apart / noise, bound)
