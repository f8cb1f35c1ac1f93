"""StackGAN on drawn scenes, small: 32 px from the caption, then 64 px from those, on a CPU.

python scripts/train.py --config configs/stackgan_scenes.py --workdir runs/stackgan_scenes_1
python scripts/train.py --config configs/classifier_scenes.py:size=64 --workdir runs/classifier_scenes_64
python scripts/train.py --config configs/stackgan_scenes.py:stage1=runs/stackgan_scenes_1,steps=2000 \
  --workdir runs/stackgan_scenes
python scripts/train.py --config configs/stackgan_scenes.py:joint --workdir runs/stackgan_v2_scenes

The first run is stage I, led by the two matchers of configs/dcgan_scenes.py, which that one's first commands train, as they do
its judge. The third takes stage I with its text tower and leaves both as they are; the second is its judge, of 64 px. `joint`
trains 16, 32 and 64 px together (StackGAN-v2), without matchers: they read 32 px. Data, losses and optimizer are those of
configs/dcgan_scenes.py.
Papers: Zhang et al., StackGAN, 2017; StackGAN++, 2018.
Reached (seed 0, one core of an AMD EPYC; 2026-11-21): stage I, 23 minutes: of its samples for captions of one object the judge
reads 83.7 % as the caption says; 27.0 % after 7,500 steps without the matchers. Stage II, 33 minutes: 42.1 % after 2,000 steps
and still rising. `joint` was not run. docs/results.md says more.
"""

import ml_collections

from mmgen_jax.core.config import parse_arg, sibling


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Arguments: tiny (a minute, for tests; without a judge), stage1 (the run of stage I, "" to train that), joint
    (StackGAN-v2), reader (the run that judges, of images of the same size), steps, batch_size."""
    arg = parse_arg(arg, tiny=False, stage1="", joint=False, reader="", steps=4200, batch_size=64)
    sizes = (16, 32, 64) if arg.joint else (32, 64) if arg.stage1 else (32,)
    width, augmented = (8, 16) if arg.tiny else (32, 64)
    reader = arg.reader or ("runs/classifier_scenes" if sizes[-1] == 32 else "runs/classifier_scenes_64")
    # The matchers read 32 px: they lead stage I alone, whose text tower is then DAMSM's.
    led = "" if sizes == (32,) and not arg.tiny else "matcher=,captioner=,"
    given = f"{led}reader={reader},steps={arg.steps},batch_size={arg.batch_size}"
    config = sibling(__file__, "dcgan_scenes")(f"{'tiny,' if arg.tiny else ''}{given}")
    if led:
        config.task.text.update(init_from=arg.stage1, train=not arg.stage1)
    generator = dict(name="stackgan", image_sizes=sizes, width=width, blocks=1, augmented=augmented)
    discriminator = dict(name="stackgan", width=width, unconditional=True, batch_norm=False)
    if arg.joint:
        generator.update(joint=True)
        discriminator.update(joint=True, stages=len(sizes))
    else:
        generator.update(frozen=bool(arg.stage1), init_from=arg.stage1)
        discriminator.update(stages=1)
    config.task.generator, config.task.discriminator = generator, discriminator
    config.task.loss.kl = 0.1
    for part in (config.data, *config.evals.values()):
        part.source.size = sizes[-1]
    return config
