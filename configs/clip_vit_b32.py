"""CLIP ViT-B/32 with the paper's hyperparameters.

python scripts/train.py --config configs/clip_vit_b32.py:source=webdataset,path=DIR,vocab=FILE --workdir runs/clip_vit_b32

DIR holds tars of image-text pairs (webdataset), Parquet files (source=parquet), or data sets that scripts/prepare_data.py
wrote as ArrayRecord (source=tfds:NAME); FILE is CLIP's bpe_simple_vocab_16e6.txt.gz.

Paper: Radford et al., 2021, section 2.5, tables 18 and 19: batch 32,768, 32 epochs of 400 million pairs, learning rate
5e-4 after 2,000 steps of warm-up, cosine; Adam with b2 0.98 and epsilon 1e-6, decoupled weight decay 0.2 on matrices;
temperature from 0.07, its inverse at most 100; one square crop of the resized image and nothing else.
`task.slices` trains the same batch on devices that cannot hold its activations; the loss is blockwise and exact.
Reached here: not run; the data and the accelerators were not at hand.
"""

import ml_collections

from mmgen_jax.core.config import parse_arg


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Arguments: tiny (for tests), source (webdataset, parquet or tfds:NAME), path, vocab, steps, batch_size."""
    arg = parse_arg(
        arg,
        tiny=False,
        source="webdataset",
        path="data/pairs",
        vocab="../shared/data/clip_bpe_vocab/bpe_simple_vocab_16e6.txt.gz",
        steps=390_000,
        batch_size=32_768,
    )
    steps, batch_size, size, max_len = (4, 8, 32, 16) if arg.tiny else (arg.steps, arg.batch_size, 224, 77)
    image = dict(name="vit", variant="clip_vit_b32", image_size=size, remat=True, scan=True, init_from="")
    text = dict(
        name="text_transformer", variant="clip_b", max_len=max_len, remat=True, scan=True, init_from=""
    )
    tokenizer = dict(name="clip", path=arg.vocab)
    if arg.tiny:
        image.update(width=16, depth=2, heads=2, patch=8)
        text.update(width=16, depth=2, heads=2)
        tokenizer = dict(name="words", min_count=1)
    where = "data_dir" if arg.source.startswith("tfds") else "path"

    return ml_collections.ConfigDict(
        dict(
            seed=0,
            steps=steps,
            task=dict(
                name="contrastive",
                model=dict(
                    image=image, text=text, embed_dim=16 if arg.tiny else 512, pixels="clip", init_from=""
                ),
                loss=dict(name="info_nce", block_size=8 if arg.tiny else 2048, exchange="ring"),
                slices=1,
                dtype="float32" if arg.tiny else "bfloat16",
            ),
            data=dict(
                source={"name": arg.source, where: arg.path},
                transforms=f"decode | random_resized_crop({size}, min_area=0.9, ratio=1.0) | text({max_len})",
                batch_size=batch_size,
                tokenizer=tokenizer,
                threads=16,
            ),
            optimizer=dict(
                name="adamw",
                learning_rate=5e-4,
                schedule="cosine",
                warmup=min(2000, steps // 4),
                weight_decay=0.2,
                options=dict(b1=0.9, b2=0.98, eps=1e-6),
            ),
            mesh=dict(data=-1, fsdp=1, tensor=1),
            checkpoint=dict(every=2 if arg.tiny else 5000, keep=2),
            log_every=2 if arg.tiny else 100,
            evals={},
            writers=("jsonl",),
        )
    )
