"""StackGAN on drawn scenes, small: 32 px from the caption, then 64 px from those, on a CPU.

python scripts/train.py --config configs/stackgan_scenes.py --workdir runs/stackgan_scenes_1
python scripts/train.py --config configs/stackgan_scenes.py:stage1=runs/stackgan_scenes_1 --workdir runs/stackgan_scenes
python scripts/train.py --config configs/stackgan_scenes.py:joint --workdir runs/stackgan_v2_scenes

The first run is stage I, which the second takes, with its text tower, and leaves as it is; `joint` trains 16, 32 and 64 px
together (StackGAN-v2). `reader=DIR` names a judge, a run of configs/classifier_scenes.py (with size=64 for the 64 px), which
reads the samples.
Papers: Zhang et al., StackGAN, 2017; StackGAN++, 2018.
Reached: TODO
"""

import ml_collections

from mmgen_jax.core.config import parse_arg

MAX_LEN = 24  # the grammar's longest caption has 22 words; begin and end are two more


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Arguments: tiny (seconds, for tests), stage1 (the run of stage I, "" to train that), joint (StackGAN-v2), reader (the
    judge's run, "" for none), steps, batch_size, seed."""
    arg = parse_arg(arg, tiny=False, stage1="", joint=False, reader="", steps=4000, batch_size=64, seed=0)
    steps, batch_size, sizes, width, features, length = arg.steps, arg.batch_size, (32, 64), 32, 128, 1000
    if arg.joint:
        sizes, width = (16, 32, 64), 24
    elif not arg.stage1:
        sizes = sizes[:1]
    if arg.tiny:
        steps, batch_size, width, features, length = 4, 8, 8, 16, 16
    generator = dict(
        name="stackgan", joint=arg.joint, image_sizes=sizes, width=width, blocks=1, augmented=features
    )
    # Without batch statistics and with R1, as configs/dcgan_scenes.py says why.
    discriminator = dict(
        name="stackgan",
        joint=arg.joint,
        stages=len(sizes) if arg.joint else 1,
        unconditional=True,
        batch_norm=False,
        width=width,
    )
    if not arg.joint:
        generator.update(frozen=bool(arg.stage1), init_from=arg.stage1)

    def scenes(split, **more):
        return dict(name="scenes", split=split, size=sizes[-1], **more)

    def evaluation(name, split, **more):
        source, transforms = scenes(split, length=length), f"text({MAX_LEN})"
        return dict(name=name, source=source, transforms=transforms, batch_size=2 * batch_size, **more)

    evals = dict(samples=evaluation("samples", "val", every=max(steps // 16, 1)))
    if arg.reader:
        evals |= dict(
            val=evaluation("reading", "val", every=steps // 4),
            test=evaluation("reading", "test"),
            unseen=evaluation("reading", "compositional"),
        )
    return ml_collections.ConfigDict(
        dict(
            seed=arg.seed,
            steps=steps,
            task=dict(
                name="text_to_image",
                text=dict(
                    name="text_rnn",
                    cell="gru",
                    features=features,
                    embed_features=features // 2,
                    bidirectional=True,
                    pool="max",
                    max_len=MAX_LEN,
                    init_from=arg.stage1,
                    train=not arg.stage1,
                ),
                generator=generator,
                discriminator=discriminator,
                loss=dict(
                    name="non_saturating",
                    matching=2.0,
                    mismatches=7,
                    kl=0.1,
                    penalty=dict(name="r1_estimate", weight=0.01, every=4),
                ),
            ),
            data=dict(
                source=scenes("train"),
                transforms=f"text({MAX_LEN})",
                batch_size=batch_size,
                tokenizer=dict(name="words", min_count=1, examples=2000),
                shuffle=False,  # the scenes are drawn at random and never come twice
            ),
            optimizer=dict(
                name="adamw",
                learning_rate=5e-4,
                schedule="constant",
                options=dict(b1=0.0, b2=0.99),
                networks=dict(generator=dict(learning_rate=3e-4, ema=0.999)),
            ),
            judges=dict(reader=dict(name="run", workdir=arg.reader)) if arg.reader else {},
            mesh=dict(data=-1, fsdp=1, tensor=1),
            checkpoint=dict(every=max(steps // 4, 1), keep=2),
            log_every=2 if arg.tiny else 50,
            evals=evals,
            writers=("jsonl",),
        )
    )
