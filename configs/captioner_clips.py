"""The attention captioner on drawn clips: its decoder looks at frames in place of an image's positions.

python scripts/train.py --config configs/captioner_clips.py --workdir runs/captioner_clips

Paper: Xu et al., Show, Attend and Tell, 2015 (soft attention), over a frame tower: a convolutional one that also sees what has
changed (Wang et al., Temporal Segment Networks, 2016, section 3.2), and a Transformer over frames. Not reached yet: shapes
are not learned (docs/results.md).
"""

import ml_collections

from mmgen_jax.core.config import parse_arg
from mmgen_jax.data.clips import MAX_WORDS

MAX_LEN = MAX_WORDS + 1  # the end is one more


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Arguments: tiny (seconds, for tests), size (of a frame in pixels), steps, batch_size."""
    arg = parse_arg(arg, tiny=False, size=48, steps=4000, batch_size=32)
    steps, batch_size, size, length = (
        (8, 8, 24, 16) if arg.tiny else (arg.steps, arg.batch_size, arg.size, 1000)
    )
    encoder = dict(
        name="video_frames",
        tower=dict(
            name="convnet",
            widths=(8, 8) if arg.tiny else (16, 32, 64, 128),
            blocks=0,
            pool="none",
        ),
        over_time=dict(name="transformer", depth=1, heads=4, frames=12),
        width=16 if arg.tiny else 128,
        differences=True,
    )
    decoder = dict(
        name="rnn",
        features=32 if arg.tiny else 256,
        embed_features=16 if arg.tiny else 64,
        attention_features=16 if arg.tiny else 128,
        attention="dot",
        heads=4,
        word_query=True,
    )

    def clips(split, **more):
        return dict(name="clips", split=split, size=size, **more)

    def evaluation(name, split, **more):
        if name == "captions":
            more.update(pictures=0, **(dict(floor_images=100) if arg.tiny else {}))
        return dict(
            name=name,
            source=clips(split, length=length),
            transforms=f"caption(max_len={MAX_LEN}, per_image=5, which='first')",
            batch_size=batch_size,
            **more,
        )

    return ml_collections.ConfigDict(
        dict(
            seed=0,
            steps=steps,
            task=dict(
                name="captioning",
                model=dict(encoder=encoder, decoder=decoder, pixels="half"),
                decode=dict(max_len=MAX_LEN, beam=5),
            ),
            data=dict(
                source=clips("train"),
                transforms=f"caption(max_len={MAX_LEN}, per_image=2)",
                batch_size=batch_size,
                tokenizer=dict(name="words", min_count=1, examples=2000),
                shuffle=False,  # the clips are drawn at random and never come twice
            ),
            optimizer=dict(
                name="adamw",
                learning_rate=1e-3,
                schedule="cosine",
                warmup=min(100, steps // 4),
                weight_decay=1e-4,
                clip_norm=1.0,
            ),
            mesh=dict(data=-1, fsdp=1, tensor=1),
            checkpoint=dict(every=max(steps // 4, 1), keep=2),
            log_every=2 if arg.tiny else 50,
            evals=dict(
                val=evaluation("captions", "val", every=steps // 2),
                test=evaluation("captions", "test"),
                test_likelihood=evaluation("likelihood", "test"),
            ),
            writers=("jsonl",),
        )
    )
