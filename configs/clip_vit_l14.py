"""CLIP ViT-L/14 with the paper's hyperparameters.

python scripts/train.py --config configs/clip_vit_l14.py:source=webdataset,path=DIR,vocab=FILE --workdir runs/clip_vit_l14

Data is as in configs/clip_vit_b32.py.
Paper: Radford et al., 2021, tables 18, 19 and 20: as ViT-B/32, but learning rate 4e-4, a text tower of width 768 and 12 heads,
embedding 768.
`task.slices` embeds a batch in sixteen parts and `mesh.fsdp` cuts the parameters over four chips, so that 16 chips of 16 GiB
hold it: python scripts/plan.py --config configs/clip_vit_l14.py --topology v5e:4x4.
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
    tiny = "tiny," if arg.tiny else ""
    config = sibling(__file__, "clip_vit_b32")(
        f"{tiny}source={arg.source},path={arg.path},vocab={arg.vocab},steps={arg.steps},batch_size={arg.batch_size}"
    )
    if not arg.tiny:
        config.task.model.image.variant = "clip_vit_l14"
        config.task.model.text.variant = "clip_l"
        config.task.model.embed_dim = 768
        config.task.slices = 16
        config.mesh.fsdp = 4
        config.optimizer.learning_rate = 4e-4
    return config
