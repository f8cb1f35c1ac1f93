"""A contrastive dual encoder on drawn scenes: minutes on a CPU, and the best reachable recall is known.

python scripts/train.py --config configs/dual_encoder_scenes.py --workdir runs/dual_encoder_scenes

Paper: Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021, with small towers from scratch.
"""

import ml_collections

from mmgen_jax.core.config import parse_arg

MAX_LEN = 24  # the grammar's longest caption has 22 words; begin and end are two more


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Arguments: tiny (seconds, for tests), steps, batch_size, size (of the drawn image in pixels)."""
    arg = parse_arg(
        arg,
        tiny=False,
        steps=1500,
        batch_size=128,
        size=64,
        lr=2e-3,
        c=2,
        text="rnn",
        pool="flatten",
        dim=256,
        width=256,
        conv="32:64:128",
        blocks=1,
    )
    steps, batch_size, size, length = arg.steps, arg.batch_size, arg.size, 1000
    image = dict(
        name="convnet", widths=tuple(map(int, str(arg.conv).split(":"))), blocks=arg.blocks, pool=arg.pool
    )
    if arg.text == "rnn":
        text = dict(
            name="text_rnn",
            cell="gru",
            features=arg.width,
            embed_features=64,
            bidirectional=True,
            pool="last",
            max_len=MAX_LEN,
        )
    else:
        text = dict(
            name="text_transformer",
            width=arg.width,
            depth=2,
            heads=4,
            causal=False,
            pool="mean",
            max_len=MAX_LEN,
        )

    def scenes(split, **more):
        return dict(name="scenes", split=split, size=size, **more)

    def evaluation(split, **more):
        transforms = f"text({MAX_LEN}, per_image=5, which='first')"
        source = scenes(split, length=length)
        return dict(name="retrieval", source=source, transforms=transforms, batch_size=batch_size, **more)

    return ml_collections.ConfigDict(
        dict(
            seed=0,
            steps=steps,
            task=dict(
                name="contrastive",
                model=dict(image=image, text=text, embed_dim=arg.dim),
                loss=dict(name="info_nce", equal="positive"),
                slices=1,
            ),
            data=dict(
                source=scenes("train"),
                transforms=f"text({MAX_LEN}, per_image={arg.c})",
                batch_size=batch_size,
                tokenizer=dict(name="words", min_count=1, examples=2000),
                shuffle=False,  # the scenes are drawn at random and never come twice
            ),
            optimizer=dict(
                name="adamw",
                learning_rate=arg.lr,
                schedule="cosine",
                warmup=min(100, steps // 4),
                weight_decay=1e-4,
                clip_norm=1.0,
            ),
            mesh=dict(data=-1, fsdp=1, tensor=1),
            checkpoint=dict(every=max(steps // 4, 1), keep=2),
            log_every=2 if arg.tiny else 50,
            evals=dict(
                val=evaluation("val", every=steps // 4),
                test=evaluation("test"),
                unseen=evaluation("compositional"),
            ),
            writers=("jsonl",),
        )
    )
