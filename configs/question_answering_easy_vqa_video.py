"""easy-VQA-video: one shape that moves, ten frames of 64 pixels (read at 48), questions with 15 answers.

python scripts/train.py --config configs/question_answering_easy_vqa_video.py:path=DIR/data.parquet --workdir runs/easy_vqa_video

The Parquet file has a row a clip: "video_gif" (bytes), "video_id", "questions" and "answers" (lists) and "split". A tenth of the
2,000 clips is held out with all their questions, by a hash of their names, and never trained on. In training clips are
mirrored, with "left" and "right" exchanged in what is said of them.
Data: uvulab, easy-VQA-video (single object), github.com/uvulab/easy-VQA-video. The tower sees each frame
and what has changed since the one before (Wang et al., Temporal Segment Networks, 2016, section 3.2), with a Transformer over
them; the fusion is that of configs/question_answering_easy_vqa.py.
Reached: 96.6 % of the questions about held-out clips; colours and directions 100, shapes 91.1 (docs/results.md).
"""

import ml_collections

from mmgen_jax.core.config import parse_arg, sibling

FRAMES, MAX_LEN = 10, 16  # the longest question has eight words; begin and end come to it
BASELINES = {
    "question alone": "modalities=question",
    "video alone": "modalities=video",
    "concatenation": "fusion=concatenation",
}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Arguments: tiny (seconds, for tests), path (of the Parquet file), fusion, level, modalities (video, question or both with a
    plus), steps, batch_size."""
    arg = parse_arg(
        arg,
        tiny=False,
        path="../shared/data/easy_vqa_video/data.parquet",
        fusion="mutan",
        level="early",
        modalities="video+question",
        steps=1000,
        batch_size=64,
    )
    tiny = "tiny," if arg.tiny else ""
    config = sibling(__file__, "question_answering_clips")(
        f"{tiny}fusion={arg.fusion},level={arg.level},modalities={arg.modalities},steps={arg.steps},batch_size={arg.batch_size}"
    )

    video = dict(
        name="video_frames",
        tower=dict(name="convnet", widths=(8, 8) if arg.tiny else (16, 32, 64, 128), blocks=0, pool="none"),
        over_time=dict(name="transformer", depth=1, heads=4, frames=FRAMES),
        width=16 if arg.tiny else 128,
        differences=True,
        init_from="",
    )

    def questions(part):
        return dict(name="video_parquet", path=arg.path, video="video_gif", split="train", part=part)

    with config.unlocked():
        config.task.model.towers.video = video
        config.task.model.towers.question.max_len = MAX_LEN
        config.task.model.pixels = "half"
        config.data.source = questions("but 1/10")
        config.data.transforms = (
            f"frames({FRAMES}) | flip(swap=True) | resize(48) | question({MAX_LEN}) | answers"
        )
        config.data.tokenizer = dict(name="words", min_count=1)
        config.data.answers = dict(size=15)
        config.data.shuffle = True
        config.evals = dict(
            held_out=dict(
                name="answers",
                source=questions("held out 1/10"),
                transforms=f"frames({FRAMES}) | resize(48) | question({MAX_LEN}) | answers",
                batch_size=config.data.batch_size,
                every=max(config.steps // 4, 1),
            )
        )
    return config
