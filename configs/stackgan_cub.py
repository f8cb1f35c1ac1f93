"""StackGAN: birds of 64 px from sentences, then of 256 px from those, CUB, with the paper's hyperparameters.

python scripts/train.py --config configs/damsm_cub.py:path=DIR,inception=FILE --workdir runs/damsm_cub
python scripts/train.py --config configs/stackgan_cub.py:path=DIR,inception=FILE --workdir runs/cub_1
python scripts/train.py --config configs/stackgan_cub.py:path=DIR,inception=FILE,stage1=runs/cub_1 --workdir runs/stackgan_cub

DIR has images/, text/ (ten captions each) and the lists of train/ and test/, see data/cub.py. The first run gives the text
tower, the second stage I; both stay as they are afterwards. `joint` trains the stages of 64, 128 and 256 px together instead,
as StackGAN-v2 does, in one run.
Papers: Zhang et al., StackGAN, 2017, section 4.1; StackGAN++, 2018, section 5. 600 epochs a stage (83,000 steps of 64), Adam
at 2e-4 with b1 = 0.5, noise of 100, conditioning augmentation of 128; as in the authors' published code its divergence weighs
2, and there are 128 and 64 features. StackGAN-v2: batches of 24, 600 epochs (221,000 steps), 64 features each. Different
here: a bidirectional LSTM that was trained with DAMSM for Reed's character-level network; the rate falls evenly to a tenth,
theirs by a half every 100 epochs; an average of the generator.
Published: Inception score 3.70 at 256 px (StackGAN, table 1), by Inception fine-tuned on birds, so that the score here is
another one.
Reached here: not run; the data and the accelerator were not at hand.
"""

import ml_collections

from mmgen_jax.core.config import parse_arg, sibling


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Arguments: tiny (for tests), path, text (the run whose text tower is taken; "" trains one along), stage1 (the run of
    stage I, "" to train that), joint (StackGAN-v2), inception (weights for the scores), steps, batch_size."""
    arg = parse_arg(
        arg,
        tiny=False,
        path="data/cub",
        text="runs/damsm_cub",
        stage1="",
        joint=False,
        inception="pt_inception-2015-12-05-6726825d.pth",
        steps=0,
        batch_size=0,
    )
    steps, batch_size = (
        arg.steps or (221_000 if arg.joint else 83_000),
        arg.batch_size or (24 if arg.joint else 64),
    )
    sizes, width = (64, 128, 256) if arg.joint else (64, 256) if arg.stage1 else (64,), 128
    if arg.tiny:
        steps, batch_size, sizes, width, arg.text = 4, 8, tuple(size // 4 for size in sizes), 8, ""
    like = sibling(__file__, "damsm_cub")(f"{'tiny,' if arg.tiny else ''}path={arg.path}")
    max_len = like.task.model.text.max_len
    generator = dict(name="stackgan", joint=arg.joint, image_sizes=sizes, width=width, augmented=128)
    discriminator = dict(name="stackgan", joint=arg.joint, stages=1, width=width // 2)
    if arg.joint:
        generator.update(width=width // 2)
        discriminator.update(stages=3)
    else:
        generator.update(frozen=bool(arg.stage1), init_from=arg.stage1)
    larger = f"decode | resize({sizes[-1] * 76 // 64})"
    test = dict(
        source=like.evals.test.source,
        transforms=f"{larger} | center_crop({sizes[-1]}) | text({max_len})",
        batch_size=2 * batch_size,
    )
    evals = dict(samples=dict(name="samples", **test, every=max(steps // 50, 1)))
    if not arg.tiny:
        evals["quality"] = dict(
            name="images", **test, n=29_330, scores=("fid", "inception_score"), every=steps // 5
        )
    return ml_collections.ConfigDict(
        dict(
            seed=0,
            steps=steps,
            task=dict(
                name="text_to_image",
                text=dict(like.task.model.text, dropout=0.0, init_from=arg.text, train=not arg.text),
                generator=generator,
                discriminator=discriminator,
                loss=dict(name="non_saturating", matching=1.0, kl=1.0 if arg.joint else 2.0),
                dtype="float32" if arg.tiny else "bfloat16",
            ),
            data=dict(
                source=like.data.source,
                transforms=f"{larger} | random_resized_crop({sizes[-1]}, min_area=0.7, ratio=1.0) | flip | text({max_len})",
                batch_size=batch_size,
                tokenizer=like.data.tokenizer,
                threads=16,
            ),
            optimizer=dict(
                name="adamw",
                options=dict(b1=0.5),
                learning_rate=2e-4,
                schedule="exponential",
                networks=dict(generator=dict(ema=0.999)),
            ),
            judges={} if arg.tiny else dict(inception=dict(name="inception", weights=arg.inception)),
            mesh=dict(data=-1, fsdp=1, tensor=1),
            checkpoint=dict(every=2 if arg.tiny else 1000, keep=2),
            log_every=2 if arg.tiny else 50,
            evals=evals,
            writers=("jsonl",),
        )
    )
