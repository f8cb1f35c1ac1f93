"""Does a GAN of images find every mode? Three digits as the colours of one picture: 1,000 modes, on a CPU.

python scripts/train.py --config configs/classifier_digits.py:folder=DIR --workdir runs/classifier_digits
python scripts/train.py --config configs/gan_stacked_digits.py:path=DIR --workdir runs/gan_stacked_digits

DIR holds MNIST's train-images-idx3-ubyte.gz and train-labels-idx1-ubyte.gz. The first run is the judge, which reads the digits
of a sample; as in the papers 25,600 samples are counted.
Papers: Metz et al., Unrolled Generative Adversarial Networks, 2017, section 3.3.1; Srivastava et al., VEEGAN, 2017 (the count);
Mescheder et al., Which Training Methods for GANs Do Actually Converge?, 2018 (the penalty).
Reached (seed 0, 9.3 minutes on one core of an AMD EPYC that others used too; 2026-11-21): 1,000 modes, KL 0.15.
"""

import ml_collections

from mmgen_jax.core.config import parse_arg, sibling


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Arguments: tiny (seconds, for tests), path (the folder of the idx files), reader (the run that judges), steps, batch_size,
    seed."""
    arg = parse_arg(
        arg,
        tiny=False,
        path="../shared/data/mnist_train",
        reader="runs/classifier_digits",
        steps=5000,
        batch_size=64,
        seed=0,
    )
    steps, batch_size, width = (4, 8, 8) if arg.tiny else (arg.steps, arg.batch_size, 48)
    # The judge's files, all of their digits.
    judged = sibling(__file__, "classifier_digits")(f"folder={arg.path}").data.source
    stacks = dict(judged, digits="all")
    evals = dict()
    if not arg.tiny:
        count = dict(name="modes", source=stacks, transforms="array", batch_size=512)
        evals = dict(
            found=dict(**count, n=2560, every=max(steps // 8, 1)),
            modes=dict(**count, n=25_600),
        )
    return ml_collections.ConfigDict(
        dict(
            seed=arg.seed,
            steps=steps,
            task=dict(
                name="text_to_image",
                text=None,
                generator=dict(name="dcgan", image_size=28, width=width, resize=True),
                # The penalty is of one image, so that the discriminator takes no statistics over the batch.
                discriminator=dict(name="dcgan", width=width, batch_norm=False),
                loss=dict(name="non_saturating", penalty=dict(name="r1_estimate", weight=0.5, every=4)),
            ),
            data=dict(
                source=stacks,
                transforms="array",
                batch_size=batch_size,
                tokenizer=dict(name="bytes"),  # there are no captions
                shuffle=False,  # the stacks are drawn at random and hardly come twice
            ),
            optimizer=dict(
                name="adamw",
                learning_rate=5e-4,
                schedule="linear",
                options=dict(b1=0.0, b2=0.99),
                networks=dict(generator=dict(ema=0.999)),
            ),
            judges={} if arg.tiny else dict(reader=dict(name="run", workdir=arg.reader)),
            mesh=dict(data=-1, fsdp=1, tensor=1),
            checkpoint=dict(every=max(steps // 4, 1), keep=2),
            log_every=2 if arg.tiny else 50,
            evals=evals,
            writers=("jsonl",),
        )
    )
