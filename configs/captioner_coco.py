"""Show, Attend and Tell on COCO: soft attention with the paper's hyperparameters.

python scripts/train.py --config configs/captioner_coco.py:path=DIR --workdir runs/captioner_coco

DIR holds Karpathy's dataset_coco.json and the image folders train2014/ and val2014/. For pods, convert once with
scripts/prepare_data.py and set data.source to the `tfds` source that it prints.

Paper: Xu et al., 2015, table 1, soft attention: BLEU-1..4 70.7, 49.2, 34.4, 24.3, METEOR 23.90 (its own test split; beam search).
Hidden state, word size, vocabulary, batch and optimizer as in the authors' published code (1800, 512, 10,000, 64, Adam at 2e-4);
lambda = 1 and dropout as in section 4.
Differs from the paper: a ResNet-101 instead of VGG-19, from scratch unless its parameters are loaded, and trained with the
decoder; its grid is resampled to the paper's 14 x 14 positions.
Reached here: not run; the data and the accelerator were not at hand.
"""

import ml_collections

from mmgen_jax.core.config import parse_arg


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Arguments: tiny (for tests), path (folder of the json and the images), name (of the json), steps, batch_size."""
    arg = parse_arg(arg, tiny=False, path="data/coco", name="coco", steps=90_000, batch_size=64)
    steps, batch_size, size, max_len = (4, 8, 32, 12) if arg.tiny else (arg.steps, arg.batch_size, 224, 24)
    encoder = dict(name="resnet", variant="resnet101")
    decoder = dict(
        name="rnn",
        features=1800,
        embed_features=512,
        attention_features=512,
        attention="additive",
        gate="scalar",
        deep_output=True,
        dropout=0.5,
    )
    if arg.tiny:
        encoder = dict(name="resnet", stages=(1, 1), block="bottleneck", width=8)
        decoder.update(features=32, embed_features=16, attention_features=16)

    def karpathy(split):
        return dict(name="karpathy", path=f"{arg.path}/dataset_{arg.name}.json", images=arg.path, split=split)

    def evaluation(name, split, **more):
        resize = f"decode | resize({size * 8 // 7}) | center_crop({size})"
        transforms = f"{resize} | caption(max_len={max_len}, per_image=5, which='first')"
        return dict(name=name, source=karpathy(split), transforms=transforms, batch_size=batch_size, **more)

    augment = f"decode | random_resized_crop({size}, min_area=0.5) | flip"
    return ml_collections.ConfigDict(
        dict(
            seed=0,
            steps=steps,
            task=dict(
                name="captioning",
                model=dict(encoder=encoder, decoder=decoder, grid=4 if arg.tiny else 14, position=False),
                decode=dict(max_len=max_len, beam=5),
                doubly_stochastic=1.0,
                dtype="float32" if arg.tiny else "bfloat16",
            ),
            data=dict(
                source=karpathy("train"),
                transforms=f"{augment} | caption(max_len={max_len})",
                batch_size=batch_size,
                tokenizer=dict(name="words", min_count=5),
                threads=16,
            ),
            optimizer=dict(
                name="adamw",
                learning_rate=2e-4,
                schedule="constant",
                warmup=min(1000, steps // 4),
                clip_norm=5.0,
            ),
            mesh=dict(data=-1, fsdp=1, tensor=1),
            checkpoint=dict(every=2 if arg.tiny else 2000, keep=3),
            log_every=2 if arg.tiny else 100,
            evals=dict(
                val=evaluation("captions", "val", every=steps // 2 if arg.tiny else 5000),
                test=evaluation("captions", "test"),
            ),
            writers=("jsonl",),
        )
    )
