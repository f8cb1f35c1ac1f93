"""CLIP RN50 with the paper's hyperparameters: the modified ResNet-50 with attention pooling.

python scripts/train.py --config configs/clip_rn50.py:source=webdataset,path=DIR,vocab=FILE --workdir runs/clip_rn50

Data and everything else are as in configs/clip_vit_b32.py.
Paper: Radford et al., 2021, tables 18 and 19: learning rate 5e-4, embedding 1,024, Adam with b2 0.999 and epsilon 1e-8.
Reached here: not run; the data and the accelerators were not at hand.
"""

import ml_collections

from mmgen_jax.core.config import parse_arg, sibling


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
    given = ",".join(f"{name}={value}" for name, value in arg.items())
    config = sibling(__file__, "clip_vit_b32")(given)
    model = config.task.model
    size = model.image.image_size
    image = dict(name="resnet", variant="clip_rn50", image_size=size, remat=True, init_from="")
    if arg.tiny:
        image.update(stages=(1, 1), width=8, pool_features=16, pool_heads=2)
    with config.unlocked():
        model.image = image
        model.image_head = "none"  # the attention pool projects
        model.embed_dim = 16 if arg.tiny else 1024
        config.optimizer.options = dict(b1=0.9, b2=0.999, eps=1e-8)
    return config
