"""SigLIP ViT-B/16: the sigmoid loss, bidirectional text, attention pooling.

python scripts/train.py --config configs/siglip_b16.py:source=webdataset,path=DIR --workdir runs/siglip_b16

Data is as in configs/clip_vit_b32.py.
Paper: Zhai et al., Sigmoid Loss for Language Image Pre-Training, 2023, section 4 and table 1: batch 32,768, learning
rate 1e-3, weight decay 1e-4, b2 0.95, images of 224 px, 64 tokens of a vocabulary of 32,000, temperature from 1/10 and
bias from -10.
Differs from the paper: AdamW instead of ScalingViT-Adafactor; a byte-pair vocabulary of 32,000 trained on the captions
instead of C4's.
`task.slices` embeds a batch in four parts, for its activations: in one part 16 chips of 16 GiB do not hold it, says
python scripts/plan.py --config configs/siglip_b16.py --topology v5e:4x4 --config.task.slices=1.
Reached here: not run; the data and the accelerators were not at hand.
"""

import ml_collections

from mmgen_jax.core.config import parse_arg, sibling


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Arguments: tiny (for tests), source (webdataset, parquet or tfds:NAME), path, steps, batch_size."""
    arg = parse_arg(arg, tiny=False, source="webdataset", path="data/pairs", steps=275_000, batch_size=32_768)
    tiny = "tiny," if arg.tiny else ""
    config = sibling(__file__, "clip_vit_b32")(
        f"{tiny}source={arg.source},path={arg.path},steps={arg.steps},batch_size={arg.batch_size}"
    )
    size, max_len = (32, 16) if arg.tiny else (224, 64)
    image = dict(name="vit", variant="siglip_vit_b16", image_size=size, remat=True, scan=True, init_from="")
    text = dict(
        name="text_transformer", variant="siglip_b", max_len=max_len, remat=True, scan=True, init_from=""
    )
    if arg.tiny:
        image.update(width=16, depth=2, heads=2, patch=8)
        text.update(width=16, depth=2, heads=2)
    model = dict(
        image=image,
        text=text,
        embed_dim=16 if arg.tiny else 768,
        image_head="none",
        text_head="affine",
        temperature=0.1,
        bias=-10.0,
        pixels="half",
        init_from="",
    )
    with config.unlocked():
        config.task.model = model
        config.task.slices = 1 if arg.tiny else 4
        config.task.loss = dict(name="sigmoid", block_size=8 if arg.tiny else 2048, exchange="ring")
        config.data.transforms = f"decode | resize(({size}, {size})) | text({max_len})"
        config.data.tokenizer = (
            dict(name="words", min_count=1)
            if arg.tiny
            else dict(name="byte_pair", vocab_size=32_000, examples=1_000_000)
        )
        config.optimizer.update(
            learning_rate=1e-3, weight_decay=1e-4, options=dict(b1=0.9, b2=0.95, eps=1e-8)
        )
    return config
