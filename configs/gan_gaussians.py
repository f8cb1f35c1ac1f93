"""Does a GAN find every mode? Points on a ring of 8 Gaussians, or on a grid of 25.

python scripts/train.py --config configs/gan_gaussians.py --workdir runs/gan_ring
python scripts/train.py --config configs/gan_gaussians.py:layout=grid --workdir runs/gan_grid

Sets: Metz et al., Unrolled Generative Adversarial Networks, 2017; Srivastava et al., VEEGAN, 2017.
"""

import ml_collections

from mmgen_jax.core.config import parse_arg


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Arguments: tiny (seconds, for tests), layout (ring or grid), steps, batch_size, seed."""
    arg = parse_arg(arg, tiny=False, layout="ring", steps=4000, batch_size=256, seed=0)
    steps, batch_size, width, n = arg.steps, arg.batch_size, 128, 10_000
    if arg.tiny:
        steps, batch_size, width, n = 8, 16, 16, 64
    points = dict(name="gaussians", layout=arg.layout)
    return ml_collections.ConfigDict(
        dict(
            seed=arg.seed,
            steps=steps,
            task=dict(
                name="text_to_image",
                text=None,
                generator=dict(name="mlp_gan", width=width, z_features=16),
                discriminator=dict(name="mlp_gan", width=width),
                loss=dict(name="non_saturating", penalty=dict(name="r1", weight=0.05)),
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
                learning_rate=1e-3,
                schedule="cosine",
                options=dict(b1=0.0, b2=0.99),
                networks=dict(generator=dict(ema=0.99)),
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
