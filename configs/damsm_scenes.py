"""DAMSM on drawn scenes: the matcher of words and image regions that configs/attngan_scenes.py needs, in minutes on a CPU.

python scripts/train.py --config configs/damsm_scenes.py --workdir runs/damsm_scenes

Paper: Xu et al., AttnGAN: Fine-Grained Text to Image Generation with Attentional Generative Adversarial Networks, 2018, section
3.2, with small towers from scratch: a convolutional one with a region for each cell, and a GRU. Gammas are the paper's.
Reached (seed 0, 7 minutes of training on one core of an AMD EPYC that others used too): R@1 among 1,000 unseen scenes, of whole
images and sentences, 43.5 of the 61.5 that are possible from text to image, 56.9 of 73.3 from image to text; where a pair of
colour and shape was never seen, 39.0 of 60.9 and 53.6 of 78.7. R-precision of real images 78.9 (their caption before 99 others,
of which some are as true).
"""

import ml_collections

from mmgen_jax.core.config import parse_arg

MAX_LEN = 24  # the grammar's longest caption has 22 words; begin and end are two more


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Arguments: tiny (seconds, for tests), steps, batch_size."""
    arg = parse_arg(arg, tiny=False, steps=1600, batch_size=64)
    steps, batch_size, size, length = arg.steps, arg.batch_size, 64, 1000
    # Of 48 px nine regions are left, one for each cell of a scene.
    image = dict(name="convnet", widths=(32, 64, 128, 256), blocks=0, init_from="")
    text = dict(
        name="text_rnn",
        cell="gru",
        features=128,
        embed_features=64,
        bidirectional=True,
        # A phrase's state is at its end, wherever in the caption that is; the last state would have to carry all of them.
        pool="max",
        max_len=MAX_LEN,
        init_from="",
    )
    if arg.tiny:
        steps, batch_size, size, length = 8, 8, 32, 16
        image.update(widths=(8, 16))
        text.update(features=16, embed_features=16)

    def scenes(split, **more):
        return dict(name="scenes", split=split, size=size, **more)

    def evaluation(split, **more):
        return dict(
            name="retrieval",
            source=scenes(split, length=length),
            transforms=f"text({MAX_LEN}, per_image=5, which='first')",
            batch_size=batch_size,
            **more,
        )

    return ml_collections.ConfigDict(
        dict(
            seed=0,
            steps=steps,
            task=dict(
                name="damsm",
                model=dict(
                    image=image,
                    text=text,
                    embed_dim=2 * text["features"],
                    # The whole image must know which object is above which.
                    image_pool="flatten",
                    # Objects of three pixels can still be told apart, at half the cost of 64.
                    image_size=32 if arg.tiny else 48,
                    init_from="",
                ),
                loss=dict(gamma1=5.0, gamma2=5.0, gamma3=10.0),
            ),
            data=dict(
                # Without them both towers settle on bags of words: which colours, which shapes, not which of which.
                source=scenes("train", minimal_pairs=True),
                transforms=f"text({MAX_LEN})",
                batch_size=batch_size,
                tokenizer=dict(name="words", min_count=1, examples=2000),
                shuffle=False,  # the scenes are drawn at random and never come twice
            ),
            optimizer=dict(
                name="adamw",
                learning_rate=4e-3,
                schedule="cosine",
                warmup=min(100, steps // 4),
                weight_decay=1e-4,
                clip_norm=1.0,
                ema=0.99,
            ),
            mesh=dict(data=-1, fsdp=1, tensor=1),
            checkpoint=dict(every=max(steps // 4, 1), keep=2),
            log_every=2 if arg.tiny else 50,
            evals=dict(
                val=evaluation("val", every=steps // 2),
                test=evaluation("test"),
                unseen=evaluation("compositional"),
            ),
            writers=("jsonl",),
        )
    )
