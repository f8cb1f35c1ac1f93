"""The attention captioner on Flickr8k at 96 px, from scratch, on a CPU.

python scripts/train.py --config configs/captioner_flickr8k.py:path=FILE --workdir runs/captioner_flickr8k

FILE is a Parquet file with the columns image, captions and split ("train", "dev").
Paper: Xu et al., Show, Attend and Tell, 2015; a small ResNet instead of a pre-trained VGG, dot-product attention, label
smoothing, and an average of the parameters.
Reached on the 1,000 dev images after 3,000 steps (seed 0, 37 minutes of training on one core of an AMD EPYC): BLEU-1..4
50.2, 31.3, 19.7, 13.0, ROUGE-L 37.8, CIDEr 26.5, beam 5. The best constant caption: BLEU-4 8.9, CIDEr 14.2.
docs/results.md says more.
"""

import ml_collections

from mmgen_jax.core.config import parse_arg


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Arguments: tiny (for tests), path (the Parquet file, with the splits train and dev), steps, batch_size,
    init_from (weights or a run that starts the image tower, such as that of configs/dual_encoder_flickr8k.py)."""
    arg = parse_arg(
        arg,
        tiny=False,
        path="../shared/data/flickr8k_96/data.parquet",
        steps=3000,
        batch_size=64,
        init_from="",
    )
    steps, batch_size, size, max_len = (4, 8, 32, 12) if arg.tiny else (arg.steps, arg.batch_size, 96, 20)
    encoder = dict(
        name="resnet", stages=(2, 2, 2), block="basic", width=8 if arg.tiny else 40, init_from=arg.init_from
    )
    features = 32 if arg.tiny else 320
    decoder = dict(
        name="rnn",
        features=features,
        embed_features=features // 2,
        attention_features=features // 2,
        attention="dot",
        word_query=True,
        dropout=0.4,
    )

    def parquet(split):
        return dict(name="parquet", path=arg.path, split=split)

    def evaluation(name, **more):
        transforms = f"decode | resize({size}) | caption(max_len={max_len}, per_image=5, which='first')"
        return dict(name=name, source=parquet("dev"), transforms=transforms, batch_size=batch_size, **more)

    augment = f"decode | random_resized_crop({size}, min_area=0.5) | flip | color_jitter(0.3)"
    return ml_collections.ConfigDict(
        dict(
            seed=0,
            steps=steps,
            task=dict(
                name="captioning",
                model=dict(encoder=encoder, decoder=decoder, dropout=0.2),
                decode=dict(max_len=max_len, beam=5, length_penalty=0.7),
                label_smoothing=0.1,
                doubly_stochastic=0.2,
            ),
            data=dict(
                source=parquet("train"),
                transforms=f"{augment} | caption(max_len={max_len}, per_image=2)",
                batch_size=batch_size,
                tokenizer=dict(name="words", min_count=5),
            ),
            optimizer=dict(
                name="adamw",
                learning_rate=1e-3,
                schedule="cosine",
                warmup=min(100, steps // 4),
                weight_decay=0.05,
                clip_norm=1.0,
                ema=0.999,
            ),
            mesh=dict(data=-1, fsdp=1, tensor=1),
            checkpoint=dict(every=500, keep=2),
            log_every=2 if arg.tiny else 50,
            evals=dict(
                dev_likelihood=evaluation("likelihood", every=500),
                dev=evaluation("captions", every=1000),
            ),
            writers=("jsonl",),
        )
    )
