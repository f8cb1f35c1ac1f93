"""DAMSM on CUB's birds with the paper's hyperparameters: the matcher that configs/attngan_cub.py needs.

python scripts/train.py --config configs/damsm_cub.py:path=DIR,inception=FILE --workdir runs/damsm_cub

DIR has images/, text/ (ten captions each) and the lists of train/ and test/, see data/cub.py; FILE is torchvision's Inception-v3
trained on ImageNet (.pth or .safetensors).
Paper: Xu et al., AttnGAN, 2018, sections 3.2 and 4: Inception-v3, frozen, 289 regions of its block mixed_6e, a bidirectional
LSTM, F = 256, gammas 5, 5, 10, texts of at most 18 words. As in the authors' published code: batches of 48, Adam at 2e-4 with
b1 = 0.5, falling by 0.98 an epoch to a tenth (here at the end, after 114 epochs), words of 300 with dropout 0.5, clipping at 0.25
(there of the text tower's gradient alone).
Published: R-precision of AttnGAN's samples by this matcher 67.82 (table 2).
Reached here: not run; the data and the accelerator were not at hand.
"""

import ml_collections

from mmgen_jax.core.config import parse_arg


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Arguments: tiny (for tests), path, inception (weights; "" starts from scratch), steps, batch_size.

    For other data sets in this layout: words (of a text), captions (of an image), boxes ("crop" or "none").
    """
    arg = parse_arg(
        arg,
        tiny=False,
        path="data/cub",
        inception="",
        steps=21_000,
        batch_size=48,
        words=18,
        captions=10,
        boxes="crop",
    )
    steps, batch_size, size = arg.steps, arg.batch_size, 299
    max_len = arg.words + 2  # begin and end
    image = dict(name="inception", variant="torchvision", init_from=arg.inception)
    text = dict(
        name="text_rnn",
        cell="lstm",
        features=128,
        embed_features=300,
        bidirectional=True,
        pool="last",
        dropout=0.5,
        max_len=max_len,
        init_from="",
    )
    if arg.tiny:
        steps, batch_size, size = 4, 8, 32
        image = dict(name="resnet", stages=(1, 1), block="basic", width=8, init_from="")
        text.update(features=16, embed_features=16)

    def cub(split):
        return dict(name="cub", path=arg.path, split=split, boxes=arg.boxes)

    larger = f"decode | resize({size * 76 // 64})"
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
                    # A GAN's images are smaller than the tower wants them.
                    image_size=size,
                    image_frozen=bool(arg.inception),
                    init_from="",
                ),
                loss=dict(gamma1=5.0, gamma2=5.0, gamma3=10.0, block_size=1 if arg.tiny else 16),
                dtype="float32" if arg.tiny else "bfloat16",
            ),
            data=dict(
                source=cub("train"),
                transforms=f"{larger} | random_resized_crop({size}, min_area=0.7, ratio=1.0) | flip | text({max_len})",
                batch_size=batch_size,
                tokenizer=dict(name="words", min_count=1),
                threads=16,
            ),
            optimizer=dict(
                name="adamw",
                options=dict(b1=0.5),
                learning_rate=2e-4,
                schedule="exponential",
                clip_norm=0.25,
                # No moments for a tower that stays as it is.
                rules={"^image/": dict(learning_rate=0.0)} if arg.inception else {},
            ),
            mesh=dict(data=-1, fsdp=1, tensor=1),
            checkpoint=dict(every=2 if arg.tiny else 1000, keep=2),
            log_every=2 if arg.tiny else 50,
            evals=dict(
                test=dict(
                    name="retrieval",
                    source=cub("test"),
                    transforms=f"{larger} | center_crop({size}) | text({max_len}, per_image={arg.captions}, which='first')",
                    batch_size=batch_size,
                    every=0 if arg.tiny else 1000,
                )
            ),
            writers=("jsonl",),
        )
    )
