"""The attention captioner on drawn scenes: minutes on a CPU, and the best reachable score is known.

python scripts/train.py --config configs/captioner_scenes.py --workdir runs/captioner_scenes

Paper: Xu et al., Show, Attend and Tell, 2015 (soft attention), with a small tower trained from scratch.
"""

import ml_collections

from mmgen_jax.core.config import parse_arg


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Arguments: tiny (seconds, for tests), steps, batch_size."""
    arg = parse_arg(arg, tiny=False, steps=2000, batch_size=64)
    steps, batch = (8, 8) if arg.tiny else (arg.steps, arg.batch_size)
    tokens = "caption(max_len=24, per_image=5)"
    val = dict(name="scenes", split="val", length=16 if arg.tiny else 1000)
    test = {**val, "split": "test"}
    unseen = {**val, "split": "compositional"}
    size = 32 if arg.tiny else 64
    widths = (16, 16) if arg.tiny else (64, 128)
    features = 32 if arg.tiny else 256
    every = dict(batch_size=batch)

    def scenes(split):
        return dict(name="scenes", split=split, size=size)

    def held(split):
        return dict(**scenes(split), length=16 if arg.tiny else 1000)

    first = "caption(max_len=24, per_image=5, which='first')"
    return ml_collections.ConfigDict(
        dict(
            seed=0,
            steps=steps,
            task=dict(
                name="captioning",
                model=dict(
                    encoder=dict(name="convnet", widths=widths, blocks=(1,) * len(widths)),
                    decoder=dict(
                        name="rnn",
                        features=features,
                        embed_features=features // 2,
                        attention_features=features // 2,
                    ),
                ),
                decode=dict(max_len=24, beam=1),
            ),
            data=dict(
                source=scenes("train"),
                transforms=tokens,
                batch_size=batch,
                tokenizer=dict(name="words", min_count=1, examples=2000),
                shuffle=False,
            ),
            optimizer=dict(
                name="adamw",
                learning_rate=2e-3,
                schedule="cosine",
                warmup=min(100, steps // 4),
                weight_decay=1e-4,
                clip_norm=1.0,
            ),
            mesh=dict(data=-1, fsdp=1, tensor=1),
            checkpoint=dict(every=4 if arg.tiny else 500, keep=2),
            log_every=2 if arg.tiny else 50,
            evals=dict(
                val=dict(name="captions", source=held("val"), transforms=first, every=steps // 2, **every),
                test=dict(name="captions", source=held("test"), transforms=first, **every),
                test_likelihood=dict(name="likelihood", source=held("test"), transforms=first, **every),
                unseen=dict(name="captions", source=held("compositional"), transforms=first, **every),
            ),
            writers=("jsonl",),
        )
    )
