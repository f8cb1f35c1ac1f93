"""AttnGAN on drawn scenes, small: 16, 32 and 64 px, each position looking at the caption's words, on a CPU.

python scripts/train.py --config configs/damsm_scenes.py --workdir runs/damsm_scenes
python scripts/train.py --config configs/classifier_scenes.py:size=64 --workdir runs/classifier_scenes_64
python scripts/train.py --config configs/attngan_scenes.py --workdir runs/attngan_scenes

The first run gives the text tower and the matcher, which both stay as they are; the second is the judge. Data, losses and
optimizer are those of configs/dcgan_scenes.py.
Paper: Xu et al., AttnGAN, 2018.
Reached (seed 0, a shared core of an AMD EPYC, 11.6 minutes; 2026-11-21): no score; shapes and colours that can be told
apart, more objects than were asked for. docs/results.md says more.
"""

import ml_collections

from mmgen_jax.core.config import parse_arg, sibling


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Arguments: tiny (a minute, for tests; without matcher and judge), matcher (a run of configs/damsm_scenes.py), reader (the
    run that judges, of 64 px), steps, batch_size."""
    arg = parse_arg(
        arg,
        tiny=False,
        matcher="runs/damsm_scenes",
        reader="runs/classifier_scenes_64",
        steps=7500,
        batch_size=32,
    )
    sizes, width = ((8, 16, 32), 4) if arg.tiny else ((16, 32, 64), 16)
    given = f"matcher={arg.matcher},reader={arg.reader},steps={arg.steps},batch_size={arg.batch_size}"
    config = sibling(__file__, "dcgan_scenes")(f"{'tiny,' if arg.tiny else ''}{given}")
    if not arg.tiny:
        text = sibling(__file__, "damsm_scenes")("").task.model.text
        config.task.text = dict(text, init_from=arg.matcher, train=False)
    config.task.generator = dict(
        name="attngan", image_sizes=sizes, width=width, blocks=1, augmented=4 * width
    )
    config.task.discriminator = dict(name="attngan", width=width, batch_norm=False)
    config.task.loss.kl = 0.1
    for part in (config.data, *config.evals.values()):
        part.source.size = sizes[-1]
    config.evals.samples.words = 2
    return config
