"""Does a GAN find every mode? Points on a ring of 8 Gaussians, or on a grid of 25.

python scripts/train.py --config configs/gan_gaussians.py --workdir runs/gan_ring
python scripts/train.py --config configs/gan_gaussians.py:layout=grid --workdir runs/gan_grid

Sets: Metz et al., Unrolled Generative Adversarial Networks, 2017; Srivastava et al., VEEGAN, 2017.
Reached (seeds 0 to 9, one to three minutes each on one core of an AMD EPYC that others used too; 2026-11-21): all modes in ten
of ten, 95.7 to 97.6 % of the samples within three standard deviations of one (ring), 96.5 to 97.6 % (grid).
"""

import ml_collections

from mmgen_jax.core.config import parse_arg


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Arguments: tiny (seconds, for tests), layout (ring or grid), steps, batch_size (0: the layout's), seed."""
    arg = parse_arg(arg, tiny=False, layout="ring", steps=14_000, batch_size=0, seed=0)
    steps, batch_size, width, waves, n = arg.steps, arg.batch_size, 128, 32, 10_000
    if arg.tiny:
        steps, batch_size, width, waves, n = 8, 16, 16, 4, 64
    # The more modes, the more points it takes to see them all, and the shorter is the way in the noise from one to the next.
    # With the grid's rate the ring's generator leaps late in training, and may come back without a mode.
    usual, finest, rate = (256, 0.03, 4e-3) if arg.layout == "grid" else (128, 0.05, 2e-3)
    batch_size = batch_size or usual
    points = dict(name="gaussians", layout=arg.layout)
    return ml_collections.ConfigDict(
        dict(
            seed=arg.seed,
            steps=steps,
            task=dict(
                name="text_to_image",
                text=None,
                # Neighbours in the noise go to different modes: without waves a generator is too smooth, and samples lie between.
                generator=dict(name="mlp_gan", width=width, z_features=2, waves=waves, finest=finest),
                # A mode is a hundredth of the whole: a discriminator without waves sees its direction and not its distance.
                discriminator=dict(name="mlp_gan", width=width, waves=waves, finest=0.25),
                loss=dict(name="non_saturating", penalty=dict(name="r1", weight=0.01)),
                # The whole first and the modes later, or the generator settles in some of them.
                noise=dict(std=1.0, half_life=steps / 24),
                update="simultaneous",
                values="points",
            ),
            data=dict(
                source=points,
                transforms="array",
                batch_size=batch_size,
                tokenizer=dict(name="words", min_count=1, examples=0),
                shuffle=False,  # the points are drawn at random and never come twice
            ),
            optimizer=dict(
                name="adamw",
                learning_rate=2e-3,
                schedule="cosine",
                options=dict(b1=0.0, b2=0.99),
                # The discriminator has to follow while the generator spreads over the modes; only sharpening them wants speed.
                networks=dict(generator=dict(learning_rate=rate, warmup=3 * steps // 10)),
            ),
            mesh=dict(data=-1, fsdp=1, tensor=1),
            checkpoint=dict(every=steps, keep=1),
            log_every=2 if arg.tiny else 500,
            evals=dict(
                modes=dict(
                    name="modes",
                    source=points,
                    transforms="array",
                    batch_size=min(1000, n),
                    n=n,
                    every=steps // 4,
                )
            ),
            writers=("jsonl",),
        )
    )
