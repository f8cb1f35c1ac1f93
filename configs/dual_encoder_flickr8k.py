"""A contrastive dual encoder on Flickr8k at 96 px, from scratch, on a CPU.

python scripts/train.py --config configs/dual_encoder_flickr8k.py:path=FILE --workdir runs/dual_encoder_flickr8k

FILE is a Parquet file with the columns image, captions and split ("train", "dev").
Paper: Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021, with the captioner's
small ResNet (so that it can start one) and a bidirectional GRU.
Reached on the 1,000 dev images (seed 0, 26 minutes of training on one core of an AMD EPYC): image to text R@1/5/10 4.4, 15.1,
22.9, text to image 4.6, 15.3, 22.6 (chance 0.1, 0.5, 1.0). Started from it, configs/captioner_flickr8k.py gains 1.2 BLEU-4
and 5.0 CIDEr. docs/results.md says more.
"""

import ml_collections

from mmgen_jax.core.config import parse_arg


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Arguments: tiny (for tests), path (the Parquet file, with the splits train and dev), steps, batch_size."""
    arg = parse_arg(
        arg, tiny=False, path="../shared/data/flickr8k_96/data.parquet", steps=2200, batch_size=128
    )
    steps, batch_size, size, max_len = (4, 8, 32, 12) if arg.tiny else (arg.steps, arg.batch_size, 96, 24)
    # Things look larger in a crop that is brought to full size: smaller crops show them as they will be seen, in half the time.
    crop = size * 3 // 4
    # The tower of configs/captioner_flickr8k.py, which can start from this one.
    image = dict(name="resnet", stages=(2, 2, 2), block="basic", width=8 if arg.tiny else 40, pool="mean")
    text = dict(
        name="text_rnn",
        cell="gru",
        features=16 if arg.tiny else 128,
        embed_features=16 if arg.tiny else 256,
        bidirectional=True,
        pool="max",
        dropout=0.3,
        max_len=max_len,
    )

    def parquet(split):
        return dict(name="parquet", path=arg.path, split=split)

    augment = f"decode | random_resized_crop({crop}, min_area=0.4) | flip | color_jitter(0.4)"
    return ml_collections.ConfigDict(
        dict(
            seed=0,
            steps=steps,
            task=dict(
                name="contrastive",
                model=dict(image=image, text=text, embed_dim=16 if arg.tiny else 256),
                loss=dict(name="info_nce", equal="positive"),
                slices=1,
            ),
            data=dict(
                source=parquet("train"),
                transforms=f"{augment} | text({max_len}, per_image=2)",
                batch_size=batch_size,
                tokenizer=dict(name="words", min_count=3),
            ),
            optimizer=dict(
                name="adamw",
                learning_rate=1e-3,
                schedule="cosine",
                warmup=min(200, steps // 4),
                weight_decay=0.1,
                clip_norm=1.0,
                ema=0.999,
            ),
            mesh=dict(data=-1, fsdp=1, tensor=1),
            checkpoint=dict(every=500, keep=2),
            log_every=2 if arg.tiny else 50,
            evals=dict(
                dev=dict(
                    name="retrieval",
                    source=parquet("dev"),
                    transforms=f"decode | resize({size}) | text({max_len}, per_image=5, which='first')",
                    batch_size=batch_size,
                    every=250,
                )
            ),
            writers=("jsonl",),
        )
    )
