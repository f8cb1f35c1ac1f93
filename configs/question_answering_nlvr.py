"""NLVR: is a statement about three boxes of shapes true? From 989 statements only, so by cross-validation.

python scripts/train.py --config configs/question_answering_nlvr.py:path=DIR/data.parquet,fold=3 --workdir runs/nlvr_3
python scripts/compare.py --config configs/question_answering_nlvr.py:path=DIR/data.parquet --vary fusion=cross_attention \
    --over fold --seeds 10 --metric held_out/accuracy --workdir runs/nlvr

The first line holds out the tenth with the number `fold`, by a hash, and never trains on it; no two parts share a statement or a
picture, whatever the order of its boxes (see `data.questions.nlvr`). The second trains all ten, and its table puts them together:
the mean of held_out/accuracy over the folds with its interval, for the baselines too. The interval of their difference says
whether looking helps. Whoever always says "true" has 55.3 %.
The Parquet file has "image" (bytes of 400 x 100 pixels), "name", "sentence", "label" and "split": the development part, two
orders of boxes for each statement.
Paper: Suhr et al., A Corpus of Natural Language for Visual Reasoning, 2017. The model is that of
configs/question_answering_scenes.py, with dropout, on pictures of a third of the size.
Reached: not above chance, 55.2 % over five folds of 400 steps (docs/results.md).
"""

import ml_collections

from mmgen_jax.core.config import parse_arg, sibling

FOLDS, MAX_LEN = 10, 24  # the longest statement has 22 words; begin and end come to it
BASELINES = {
    "question alone": "modalities=question",
    "image alone": "modalities=image",
    "concatenation": "fusion=concatenation",
}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Arguments: tiny (seconds, for tests), path (of the Parquet file), fold (0 to 9, which is held out), fusion (by default
    that of configs/question_answering_scenes.py), level, modalities (image, question or both with a plus), steps, batch_size."""
    arg = parse_arg(
        arg,
        tiny=False,
        path="../shared/data/nlvr_dev/data.parquet",
        fold=0,
        fusion="",
        level="early",
        modalities="image+question",
        steps=800,
        batch_size=64,
    )
    first = ("tiny," if arg.tiny else "") + (f"fusion={arg.fusion}," if arg.fusion else "")
    config = sibling(__file__, "question_answering_scenes")(
        f"{first}level={arg.level},modalities={arg.modalities},steps={arg.steps},batch_size={arg.batch_size}"
    )
    size = (16, 64) if arg.tiny else (32, 128)

    def statements(part):
        return dict(name="nlvr", path=arg.path, split="train", part=f"{part} 1/{FOLDS}, fold {arg.fold}")

    with config.unlocked():
        model = config.task.model
        model.towers.question.max_len = MAX_LEN
        # The smallest shapes have three pixels: no coarser grid than 4 x 16.
        model.towers.image.widths = model.towers.image.widths[:3]
        model.dropout, model.modality_dropout = 0.5, 0.1
        config.optimizer.weight_decay = 0.05
        config.data.source = statements("but")
        config.data.transforms = f"decode | flip(swap=True) | resize({size}) | question({MAX_LEN}) | answers"
        config.data.tokenizer = dict(name="words", min_count=2)
        config.data.answers = dict(size=2)
        config.data.shuffle = True
        config.evals = dict(
            held_out=dict(
                name="answers",
                source=statements("held out"),
                transforms=f"decode | resize({size}) | question({MAX_LEN}) | answers",
                batch_size=config.data.batch_size,
                every=max(config.steps // 4, 1),
            )
        )
    return config
