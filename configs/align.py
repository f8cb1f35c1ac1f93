"""ALIGN: InfoNCE on a very large, noisy set of image-text pairs, with a bidirectional text tower.

python scripts/train.py --config configs/align.py:source=webdataset,path=DIR --workdir runs/align

Data is as in configs/clip_vit_b32.py.
Paper: Jia et al., Scaling Up Visual and Vision-Language Representation Learning With Noisy Text Supervision, 2021,
section 4.2: batch 16,384, learning rate 1e-3 after 10,000 steps of warm-up, linear to zero at 1.2 million, weight decay
1e-5, images of 289 px, 64 tokens, embedding 640, temperature from 1.
Differs from the paper: a ResNet-152 instead of EfficientNet-L7, BERT-base's shape instead of BERT-large's
(task.model.text.width and depth change it), AdamW instead of LAMB, no label smoothing, and a byte-pair vocabulary
trained on the captions.
Reached here: not run; the data and the accelerators were not at hand.
"""

import ml_collections

from mmgen_jax.core.config import parse_arg, sibling


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Arguments: tiny (for tests), source (webdataset, parquet or tfds:NAME), path, steps, batch_size."""
    arg = parse_arg(
        arg, tiny=False, source="webdataset", path="data/pairs", steps=1_200_000, batch_size=16_384
    )
    tiny = "tiny," if arg.tiny else ""
    config = sibling(__file__, "clip_vit_b32")(
        f"{tiny}source={arg.source},path={arg.path},steps={arg.steps},batch_size={arg.batch_size}"
    )
    size, max_len = (32, 16) if arg.tiny else (289, 64)
    image = dict(name="resnet", variant="resnet152", pool="mean", remat=True, init_from="")
    text = dict(
        name="text_transformer", variant="bert_base", max_len=max_len, remat=True, scan=True, init_from=""
    )
    if arg.tiny:
        image.update(stages=(1, 1), width=8)
        text.update(width=16, depth=2, heads=2)
    model = dict(
        image=image,
        text=text,
        embed_dim=16 if arg.tiny else 640,
        temperature=1.0,
        pixels="imagenet",
        init_from="",
    )
    with config.unlocked():
        config.task.model = model
        config.data.transforms = (
            f"decode | random_resized_crop({size}, min_area=0.7, ratio=1.0) | flip | text({max_len})"
        )
        config.data.tokenizer = (
            dict(name="words", min_count=1)
            if arg.tiny
            else dict(name="byte_pair", vocab_size=32_000, examples=1_000_000)
        )
        config.optimizer.update(
            schedule="linear",
            learning_rate=1e-3,
            warmup=min(10_000, config.steps // 4),
            weight_decay=1e-5,
            options=dict(b1=0.9, b2=0.999, eps=1e-6),
        )
    return config
