"""Key frames of drawn clips: the frames in which something begins.

python scripts/train.py --config configs/key_frames_clips.py --workdir runs/key_frames_clips

A small convolutional tower sees each frame and what has changed since the one before (Wang et al., Temporal Segment Networks,
2016, section 3.2), and a Transformer of two layers reads the frames. Reached: F1 0.9995 (docs/results.md).
"""

import ml_collections

from mmgen_jax.core.config import parse_arg


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Arguments: tiny (seconds, for tests), size (of a frame in pixels), steps, batch_size."""
    arg = parse_arg(arg, tiny=False, size=48, steps=3000, batch_size=32)
    steps, batch_size, size, length = (
        (4, 8, 24, 16) if arg.tiny else (arg.steps, arg.batch_size, arg.size, 1000)
    )
    tower = dict(
        name="video_frames",
        tower=dict(
            name="convnet",
            widths=(8, 8) if arg.tiny else (16, 32, 64, 128),
            blocks=0,
            pool="flatten",
        ),
        over_time=dict(name="transformer", depth=1 if arg.tiny else 2, heads=4, frames=12),
        width=16 if arg.tiny else 128,
        differences=True,
    )

    def clips(split, **more):
        return dict(name="clips", split=split, size=size, **more)

    def evaluation(split, **more):
        return dict(
            name="key_frames",
            source=clips(split, length=length),
            transforms="array",
            batch_size=batch_size,
            apart=2,  # something lasts two frames
            **more,
        )

    return ml_collections.ConfigDict(
        dict(
            seed=0,
            steps=steps,
            task=dict(name="key_frames", model=dict(tower=tower, init_from="")),
            data=dict(
                source=clips("train"),
                transforms="array",
                batch_size=batch_size,
                tokenizer=dict(name="bytes"),  # the captions are not read
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
            evals=dict(val=evaluation("val", every=max(steps // 4, 1)), test=evaluation("test")),
            writers=("jsonl",),
        )
    )
