r"""easy-VQA-video: one shape that moves, ten frames of 64 pixels, questions with 15 answers.

python scripts/train.py --config configs/question_answering_easy_vqa.py:path=DIR/data.parquet --workdir runs/easy_vqa
python scripts/train.py --config configs/question_answering_easy_vqa_video.py:path=DIR/data.parquet,init_from=runs/easy_vqa \
  --workdir runs/easy_vqa_video

The Parquet file has a row a clip: "video_gif" (bytes), "video_id", "questions" and "answers" (lists) and "split". A tenth of the
2,000 clips is held out with all their questions, by a hash of their names, and never trained on. In training clips are
mirrored, with "left" and "right" exchanged in what is said of them.
Data: uvulab, easy-VQA-video (single object), github.com/uvulab/easy-VQA-video. The tower is that of two speeds of
configs/captioner_clips.py: the slow one looks at four frames as configs/question_answering_easy_vqa.py looks at a picture, and
begins as that has learned to; the fast one sees which way it goes. The fusion is that config's too.
Reached: all 639 questions about held-out clips (docs/results.md).
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
    plus), init_from (a run of configs/question_answering_easy_vqa.py, as whose image tower the slow one begins), steps,
    batch_size."""
    arg = parse_arg(
        arg,
        tiny=False,
        path="../shared/data/easy_vqa_video/data.parquet",
        fusion="mutan",
        level="early",
        modalities="video+question",
        init_from="",
        steps=1000,
        batch_size=64,
    )
    tiny = "tiny," if arg.tiny else ""
    config = sibling(__file__, "question_answering_clips")(
        f"{tiny}fusion={arg.fusion},level={arg.level},modalities={arg.modalities},steps={arg.steps},batch_size={arg.batch_size}"
    )

    still = sibling(__file__, "question_answering_easy_vqa")(tiny.rstrip(","))

    def questions(part):
        return dict(name="video_parquet", path=arg.path, video="video_gif", split="train", part=part)

    with config.unlocked():
        video = config.task.model.towers.video
        video.update(frames=FRAMES, grid=(2, 2))
        video.slow = dict(still.task.model.towers.image.to_dict(), init_from=arg.init_from)
        video.fast.over_time.frames = FRAMES
        config.task.model.towers.question.max_len = MAX_LEN
        config.task.model.pixels = "half"
        config.data.source = questions("but 1/10")
        config.data.transforms = f"frames({FRAMES}) | flip(swap=True) | question({MAX_LEN}) | answers"
        config.data.tokenizer = dict(name="words", min_count=1)
        config.data.answers = dict(size=15)
        config.data.shuffle = True
        config.evals = dict(
            held_out=dict(
                name="answers",
                source=questions("held out 1/10"),
                transforms=f"frames({FRAMES}) | question({MAX_LEN}) | answers",
                batch_size=config.data.batch_size,
                every=max(config.steps // 4, 1),
            )
        )
    return config
