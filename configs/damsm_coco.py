"""DAMSM on COCO with the paper's hyperparameters: the matcher that configs/attngan_coco.py needs.

python scripts/train.py --config configs/damsm_coco.py:path=DIR,inception=FILE --workdir runs/damsm_coco

DIR has images/, text/ (five captions each) and the lists of train/ and test/, see data/cub.py; FILE is torchvision's Inception-v3
trained on ImageNet.
Paper: Xu et al., AttnGAN, 2018, as configs/damsm_cub.py, but for texts of at most 12 words and 82,783 images, of which 114 epochs
are 196,600 steps. Published: R-precision of AttnGAN's samples by this matcher 85.47 (table 2).
Reached here: not run; the data and the accelerator were not at hand.
"""

import ml_collections

from mmgen_jax.core.config import parse_arg, sibling


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Arguments: tiny (for tests), path, inception (weights; "" starts from scratch), steps, batch_size."""
    arg = parse_arg(arg, tiny=False, path="data/coco", inception="", steps=196_600, batch_size=48)
    given = f"path={arg.path},inception={arg.inception},steps={arg.steps},batch_size={arg.batch_size}"
    same = "words=12,captions=5,boxes=none"
    return sibling(__file__, "damsm_cub")(f"{'tiny,' if arg.tiny else ''}{given},{same}")
