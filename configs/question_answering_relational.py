"""Six objects on a picture, and questions that need one of them or several: relational and non-relational, scored apart.

python scripts/train.py --config configs/question_answering_relational.py --workdir runs/question_answering_relational \
    --config.task.model.towers.image.init_from=runs/question_answering_scenes

The second line is optional: an image tower that has learned shapes on scenes learns sooner here.
Paper: Santoro et al., A simple neural network module for relational reasoning, 2017, section 4.2 (Sort-of-CLEVR). The questions
are those of data/relational_scenes.py; model and training are those of configs/question_answering_scenes.py, with a grid of
6 x 6. Every evaluation says "question_type/relational" and "question_type/non-relational", on test at the end.
Reached: 96.8 % of the relational and 99.9 % of the other questions (docs/results.md).
"""

import ml_collections

from mmgen_jax.core.config import sibling

BASELINES = {
    "question alone": "modalities=question",
    "image alone": "modalities=image",
    "concatenation": "fusion=concatenation",
}
SHARED = ("split", "size", "length", "noise")  # what both sources of questions have


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Arguments: those of configs/question_answering_scenes.py."""
    config = sibling(__file__, "question_answering_scenes")(arg)
    image = config.task.model.towers.image
    with config.unlocked():
        # Objects are anywhere, ten pixels apart: a coarser grid than 6 x 6 would put several into one place.
        image.widths = image.widths[:3]
        for part in (config.data, *config.evals.values()):
            kept = {key: part.source[key] for key in SHARED if key in part.source}
            part.source = dict(name="relational_scenes", **kept)
    return config
