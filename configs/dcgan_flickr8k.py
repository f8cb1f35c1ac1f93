"""Photographs from captions at 64 px, of Flickr8k's 6,000 training images: what so little data allows, on a CPU.

python scripts/train.py --config configs/dcgan_flickr8k.py:path=FILE --workdir runs/dcgan_flickr8k

FILE is a Parquet file with the columns image, captions and split ("train", "dev"). The samples are drawn for the captions of
dev. `judge=runs/dual_encoder_64` adds FID, by the features of a run that reads images of 64 px, and R-precision; such a run is

python scripts/train.py --config configs/dual_encoder_flickr8k.py:path=FILE --workdir runs/dual_encoder_64 \
  --config.data.transforms="decode | random_resized_crop(64, min_area=0.4) | flip | text(24, per_image=2)"

Papers: Reed et al., Generative Adversarial Text to Image Synthesis, 2016; Zhao et al., Differentiable Augmentation for
Data-Efficient GAN Training, 2020; Mescheder et al., 2018 (R1); Yang et al., Diversity-Sensitive Conditional GANs, 2019.
Reached after 3,000 of the steps (seed 0, 47 minutes of steps on a part of one core of an AMD EPYC, 2026-11-23): backgrounds and
colours follow the caption (a blue sky for a bird, a dirt track, dark red for children who dance), eight samples of a caption
differ; no dog or child can be recognised. The whole run has not been made.
"""

import ml_collections

from mmgen_jax.core.config import parse_arg


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Arguments: tiny (seconds, for tests), path (the Parquet file), judge (a dual encoder's run at 64 px, "" for none), steps,
    batch_size, seed."""
    arg = parse_arg(
        arg,
        tiny=False,
        path="../shared/data/flickr8k_96/data.parquet",
        judge="",
        steps=20_000,
        batch_size=32,
        seed=0,
    )
    steps, batch_size, width, features, size, max_len = arg.steps, arg.batch_size, 32, 128, 64, 24
    if arg.tiny:
        steps, batch_size, width, features = 4, 8, 8, 16

    def parquet(split):
        return dict(name="parquet", path=arg.path, split=split)

    read = f"decode | resize({size})"
    dev = dict(
        source=parquet("dev"),
        transforms=f"{read} | text({max_len}, which='first')",
        batch_size=4 * batch_size,
    )
    evals = dict(samples=dict(name="samples", **dev, every=max(steps // 20, 1)))
    if arg.judge:
        evals["quality"] = dict(
            name="images",
            **dev,
            scores=("fid", "kid", "precision_recall", "r_precision", "memorisation"),
            features="judge.features",
            matcher="judge",
            others=parquet("train"),
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
                    embed_features=features,
                    bidirectional=True,
                    pool="max",
                    max_len=max_len,
                    init_from="",
                    train=True,
                ),
                generator=dict(name="dcgan", image_size=size, width=width, resize=True),
                discriminator=dict(name="dcgan", width=width, condition="replicate", batch_norm=False),
                # Without them all samples of a caption, and nearly those of all captions, are one grey pattern after 900 steps.
                loss=dict(
                    name="non_saturating",
                    matching=1.0,
                    penalty=dict(name="r1_estimate", weight=0.02, every=4),
                    diversity=dict(weight=5.0, bound=0.25),
                ),
                augment=("colour", "translation", "cutout"),
            ),
            data=dict(
                source=parquet("train"),
                transforms=f"decode | random_resized_crop({size}, min_area=0.7, ratio=1.1) | flip | text({max_len})",
                batch_size=batch_size,
                tokenizer=dict(name="words", min_count=5),
            ),
            optimizer=dict(
                name="adamw",
                learning_rate=4e-4,
                schedule="constant",
                options=dict(b1=0.5),
                networks=dict(generator=dict(ema=0.999)),
            ),
            judges=dict(judge=dict(name="run", workdir=arg.judge)) if arg.judge else {},
            mesh=dict(data=-1, fsdp=1, tensor=1),
            checkpoint=dict(every=max(steps // 4, 1), keep=2),
            log_every=2 if arg.tiny else 50,
            evals=evals,
            writers=("jsonl",),
        )
    )
