"""Show, Attend and Tell on Flickr30k: soft attention with the paper's hyperparameters.

python scripts/train.py --config configs/captioner_flickr30k.py:path=DIR --workdir runs/captioner_flickr30k

DIR holds Karpathy's dataset_flickr30k.json and the images, all in it.

Paper: Xu et al., 2015, table 1, soft attention: BLEU-1..4 66.7, 43.4, 28.8, 19.1, METEOR 18.49 (beam search).
Everything else, and how it differs from the paper, is as in configs/captioner_coco.py; the data set is a quarter of COCO's.
Reached here: not run; the data and the accelerator were not at hand.
"""

import ml_collections

from mmgen_jax.core.config import parse_arg, sibling


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Arguments: tiny (for tests), path (folder of the json and the images), steps, batch_size."""
    arg = parse_arg(arg, tiny=False, path="data/flickr30k", steps=25_000, batch_size=64)
    tiny = "tiny," if arg.tiny else ""
    return sibling(__file__, "captioner_coco")(
        f"{tiny}path={arg.path},name=flickr30k,steps={arg.steps},batch_size={arg.batch_size}"
    )
