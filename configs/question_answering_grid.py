"""GRID: which colour, letter, digit was said? From the silent clip of one speaker's face; 40 sentences only.

python scripts/train.py --config configs/question_answering_grid.py:path=DIR/data.jsonl,fold=3 --workdir runs/grid_3
python scripts/compare.py --config configs/question_answering_grid.py:path=DIR/data.jsonl --vary fusion=cross_attention \
    --over fold --seeds 5 --metric held_out/accuracy --workdir runs/grid

A sentence is command, colour, preposition, letter, digit, adverb ("bin blue by s four now"), and there is a question for each.
The first line holds out the fifth of the clips with the number `fold`, by a hash, with all their questions; the second trains
all five, and its table puts them together. Without looking the most frequent word of each question is the best answer.
DIR has data.jsonl and the sheets that it names: mouth/, 75 grey frames of 96 x 32 pixels, in 15 rows; video/, 25 of 90 x 72.
Paper: Cooke et al., An audio-visual corpus for speech perception and automatic speech recognition, 2006. The video's tower is the
fast one of configs/captioner_clips.py, a token a frame, among which the question looks for its word. Forty sentences are few to
learn to read lips from.
Reached: 19.4 % over three folds, where guessing evenly gives 19 (docs/results.md).
"""

import ml_collections

from mmgen_jax.core import registry
from mmgen_jax.core.config import parse_arg, sibling

FOLDS, FRAMES, MAX_LEN = 5, 25, 8  # the longest question has five words; begin and end come to it
QUESTIONS = 6  # about each clip, which is looked at once for all of them
# Rows and columns of a sheet, and what is looked at of a frame: the lips are in the middle.
VIEWS = {"mouth": ((15, 5), (24, 48)), "video": ((5, 5), (64, 80))}
BASELINES = {
    "question alone": "modalities=question",
    "video alone": "modalities=video",
    "concatenation": "fusion=concatenation",
}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Arguments: tiny (seconds, for tests), path (of the JSON lines), fold (0 to 4, which is held out), view (mouth or
    video), fusion (by default that of configs/question_answering_clips.py), level, modalities (video, question or both with a
    plus), steps, batch_size."""
    arg = parse_arg(
        arg,
        tiny=False,
        path="../shared/data/grid_s1/data.jsonl",
        fold=0,
        view="mouth",
        fusion="",
        level="early",
        modalities="video+question",
        steps=300,
        batch_size=16,
    )
    first = ("tiny," if arg.tiny else "") + (f"fusion={arg.fusion}," if arg.fusion else "")
    config = sibling(__file__, "question_answering_clips")(
        f"{first}level={arg.level},modalities={arg.modalities},steps={arg.steps},batch_size={arg.batch_size}"
    )
    sheet, size = registry.choose(VIEWS, arg.view, "view")

    def questions(part, **more):
        return dict(
            name="video_jsonl",
            path=arg.path,
            split="train",
            video_key=arg.view,
            questions_key="qa",
            sheet=sheet,
            part=f"{part} 1/{FOLDS}, fold {arg.fold}",
            **more,
        )

    with config.unlocked():
        model = config.task.model
        model.towers.question.max_len = MAX_LEN
        model.towers.video = model.towers.video.fast
        model.towers.video.over_time.frames = FRAMES
        model.update(dropout=0.5, modality_dropout=0.1)
        config.optimizer.weight_decay = 0.1
        config.data.source = questions("but", together=QUESTIONS)
        config.data.transforms = (
            f"frames({FRAMES}, jitter=True) | shift(2) | center_crop({size}) | flip | color_jitter(0.3) | "
            f"question({MAX_LEN}) | answers"
        )
        config.data.tokenizer = dict(name="words", min_count=1)
        config.data.answers = dict(size=60)
        config.data.shuffle = True
        config.evals = dict(
            held_out=dict(
                name="answers",
                source=questions("held out"),
                transforms=f"frames({FRAMES}) | center_crop({size}) | question({MAX_LEN}) | answers",
                batch_size=config.data.batch_size,
                every=max(config.steps // 4, 1),
            )
        )
    return config
