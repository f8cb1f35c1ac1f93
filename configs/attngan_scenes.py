"""AttnGAN on drawn scenes, small: 16, 32 and 64 px, each position looking at the caption's words, on a CPU.

python scripts/train.py --config configs/damsm_scenes.py --workdir runs/damsm_scenes
python scripts/train.py --config configs/attngan_scenes.py --workdir runs/attngan_scenes

The first run gives the text tower and the matcher, which both stay as they are. `reader=DIR` names a judge, a run of
configs/classifier_scenes.py:size=64, which reads the samples.
Paper: Xu et al., AttnGAN, 2018.
Reached (seed 0, one core of an AMD EPYC, 8.6 minutes; 2026-11-21): the judge of 64 px reads 53.9 % of the samples for captions
of one object as the caption says, 47.0 % with a pair of colour and shape never seen, and more with every step. docs/results.md
says more.
"""

import ml_collections

from mmgen_jax.core.config import parse_arg, sibling


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Arguments: tiny (seconds, for tests; without a matcher), matcher (a run of configs/damsm_scenes.py), reader (the judge's
    run, "" for none), steps, batch_size, seed."""
    arg = parse_arg(
        arg, tiny=False, matcher="runs/damsm_scenes", reader="", steps=1600, batch_size=32, seed=0
    )
    steps, batch_size, sizes, width, length = arg.steps, arg.batch_size, (16, 32, 64), 16, 1000
    if arg.tiny:
        steps, batch_size, sizes, width, length, arg.matcher = 4, 8, (8, 16, 32), 4, 16, ""
    like = sibling(__file__, "damsm_scenes")("tiny" if arg.tiny else "")
    max_len = like.task.model.text.max_len

    def scenes(split, **more):
        return dict(like.data.source, split=split, size=sizes[-1], **more)

    def evaluation(name, split, **more):
        source, transforms = scenes(split, length=length, minimal_pairs=False), f"text({max_len})"
        return dict(name=name, source=source, transforms=transforms, batch_size=2 * batch_size, **more)

    evals = dict(samples=evaluation("samples", "val", words=2, every=max(steps // 16, 1)))
    if arg.reader:
        evals |= dict(
            val=evaluation("reading", "val", every=steps // 4),
            test=evaluation("reading", "test"),
            unseen=evaluation("reading", "compositional"),
        )
    damsm = dict(like.task.model, weight=5.0, init_from=arg.matcher, loss=like.task.loss)
    return ml_collections.ConfigDict(
        dict(
            seed=arg.seed,
            steps=steps,
            task=dict(
                name="text_to_image",
                text=dict(like.task.model.text, init_from=arg.matcher, train=arg.tiny),
                generator=dict(name="attngan", image_sizes=sizes, width=width, blocks=1, augmented=4 * width),
                # Without batch statistics and with R1, as configs/dcgan_scenes.py says why.
                discriminator=dict(name="attngan", width=width, batch_norm=False),
                matchers={} if arg.tiny else dict(damsm=damsm),
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
                transforms=f"text({max_len})",
                batch_size=batch_size,
                tokenizer=like.data.tokenizer,
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
