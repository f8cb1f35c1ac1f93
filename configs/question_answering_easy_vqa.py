"""easy-VQA: one shape of eight colours on 64 pixels, and questions with 13 answers.

python scripts/train.py --config configs/question_answering_easy_vqa.py:path=DIR/data.parquet --workdir runs/easy_vqa

The Parquet file has a row an image: "image" (bytes), "image_id", "questions" and "answers" (lists) and "split". A tenth of the
4,000 images is held out with all their questions, by a hash of their names, and never trained on.
Data: Victor Zhou, easy-VQA, 2019, github.com/vzhou842/easy-VQA. The towers are those of
configs/question_answering_scenes.py; with one thing to see, products of picture and question are enough (MUTAN, Ben-Younes et
al., 2017), and learn eight colours that are asked for sooner than memory, attention and composition do.
Reached: 99.7 % of the questions about held-out images (docs/results.md).
"""

import ml_collections

from mmgen_jax.core.config import parse_arg, sibling

MAX_LEN = 16  # begin and end among them; the longest question has nine words
BASELINES = {
    "question alone": "modalities=question",
    "image alone": "modalities=image",
    "concatenation": "fusion=concatenation",
}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Arguments: tiny (seconds, for tests), path (of the Parquet file), fusion, level, modalities (image, question or both with a
    plus), steps, batch_size."""
    arg = parse_arg(
        arg,
        tiny=False,
        path="../shared/data/easy_vqa/data.parquet",
        fusion="mutan",
        level="early",
        modalities="image+question",
        steps=1500,
        batch_size=128,
    )
    tiny = "tiny," if arg.tiny else ""
    config = sibling(__file__, "question_answering_scenes")(
        f"{tiny}fusion={arg.fusion},level={arg.level},modalities={arg.modalities},steps={arg.steps},batch_size={arg.batch_size}"
    )

    def questions(part):
        return dict(name="easy_vqa", path=arg.path, split="train", part=part)

    with config.unlocked():
        config.task.model.towers.question.max_len = MAX_LEN
        if (
            not arg.tiny
        ):  # there is one thing to see, of up to half the picture: it is seen whole, from 2 x 2 positions
            config.task.model.towers.image.widths = (16, 32, 64, 128, 256)
        config.data.source = questions("but 1/10")
        config.data.transforms = f"decode | flip | question({MAX_LEN}) | answers"
        config.data.tokenizer = dict(name="words", min_count=1)
        config.data.answers = dict(size=13)
        config.data.shuffle = True
        config.evals = dict(
            held_out=dict(
                name="answers",
                source=questions("held out 1/10"),
                transforms=f"decode | question({MAX_LEN}) | answers",
                batch_size=config.data.batch_size,
                every=max(config.steps // 4, 1),
            )
        )
    return config
