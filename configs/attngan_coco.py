"""AttnGAN on COCO with the paper's hyperparameters.

python scripts/train.py --config configs/damsm_coco.py:path=DIR,inception=FILE --workdir runs/damsm_coco
python scripts/train.py --config configs/attngan_coco.py:path=DIR,inception=FILE --workdir runs/attngan_coco

DIR has images/, text/ (five captions each) and the lists of train/ and test/, see data/cub.py; the runs and both FILEs are as
in configs/attngan_cub.py.
Paper: Xu et al., AttnGAN, 2018, as configs/attngan_cub.py, but the matcher's loss weighs 50. As in the authors' published
code: texts of at most 12 words, 120 epochs (620,900 steps of 16; theirs were of 14, which no 8 devices share), 48 features in
the generator, 96 in the discriminators, three residual blocks a stage.
Published: Inception score 25.89 (table 3), R-precision 85.47; FID 35.49 in later re-evaluations.
Reached here: not run; the data and the accelerator were not at hand.
"""

import ml_collections

from mmgen_jax.core.config import parse_arg, sibling


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Arguments: tiny (for tests; without a matcher), path, matcher (a run of configs/damsm_coco.py), inception (weights for the
    scores), steps, batch_size."""
    arg = parse_arg(
        arg,
        tiny=False,
        path="data/coco",
        matcher="runs/damsm_coco",
        inception="pt_inception-2015-12-05-6726825d.pth",
        steps=620_900,
        batch_size=16,
    )
    given = f"path={arg.path},matcher={arg.matcher},inception={arg.inception},steps={arg.steps},batch_size={arg.batch_size}"
    config = sibling(__file__, "attngan_cub")(
        f"{'tiny,' if arg.tiny else ''}{given},like=damsm_coco,damsm=50.0"
    )
    if not arg.tiny:
        config.task.generator.update(width=48, blocks=3)
        config.task.discriminator.width = 96
        config.evals.quality.n = 30_000
    return config
