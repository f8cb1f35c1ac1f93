r"""Questions about drawn clips: what moved where, how fast, in which order, what changed, how often; open and multiple choice.

python scripts/train.py --config configs/question_answering_clips.py:init_from=runs/captioner_clips --workdir runs/clips
python scripts/train.py --override --config configs/question_answering_clips.py:init_from=runs/captioner_clips,steps=8000 \
  --workdir runs/clips

The second line goes on where the first ended, with a learning rate that falls once more. The tower of two speeds is that of
configs/captioner_clips.py, which says how runs/captioner_clips comes about. It looks once at a clip for several questions about
it, which differ in whose act they are about. Everything else but the fusion is as in configs/question_answering_scenes.py.
Reached: 99.4 % of unseen questions, from a captioner that was right in 94.1 %, after 65 and 90 minutes of training on one core;
the first line by itself 98.2 (docs/results.md).
"""

import ml_collections

from mmgen_jax.core.config import parse_arg, sibling

BASELINES = {
    "question alone": "modalities=question",
    "video alone": "modalities=video",
    "concatenation": "fusion=concatenation",
}
PER_CLIP = 4  # a question costs far less than its clip
# Training asks more often whose act it was: asked evenly, order and number are soon known, and this is the last to be learned.
ASKED = dict(direction=3, speed=2, first=1, last=1, colour=3, change=4, count=1)


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Arguments: tiny (seconds, for tests), fusion, level, modalities (video, question or both with a plus), size (of a frame in
    pixels), init_from (a run of configs/captioner_clips.py of the same size, as whose tower this one begins), steps, batch_size,
    learning_rate."""
    arg = parse_arg(
        arg,
        tiny=False,
        fusion="cross_attention",
        level="early",
        modalities="video+question",
        size=48,
        init_from="",
        steps=3500,
        batch_size=32,
        learning_rate=1e-3,
    )
    tiny = "tiny," if arg.tiny else ""
    config = sibling(__file__, "question_answering_scenes")(
        f"{tiny}fusion={arg.fusion},level={arg.level},modalities={arg.modalities},steps={arg.steps},batch_size={arg.batch_size},"
        f"learning_rate={arg.learning_rate}"
    )
    captioner = sibling(__file__, "captioner_clips")(tiny.rstrip(","))
    video = dict(captioner.task.model.encoder.to_dict(), init_from=arg.init_from)
    size, length = (24, 16) if arg.tiny else (arg.size, 2000)
    often = tuple(kind for kind, share in ASKED.items() for _ in range(share))

    def questions(split, **more):
        return dict(name="clip_questions", split=split, size=size, **more)

    def evaluation(split, **more):
        return dict(
            name="answers",
            source=questions(split, length=length),
            transforms=config.data.transforms,
            batch_size=config.data.batch_size,
            **more,
        )

    with config.unlocked():
        config.task.model.towers = dict(video=video, question=config.task.model.towers.question.to_dict())
        config.task.model.pixels = "imagenet"  # as the slow tower has learned
        if arg.init_from and "video" in arg.modalities:
            config.optimizer.rules = {"towers_video/slow": dict(learning_rate=0.0)}
        config.data.source = questions("train", kinds=often, per_clip=2 if arg.tiny else PER_CLIP)
        config.evals = dict(
            val=evaluation("val", every=max(config.steps // 4, 1)),
            test=evaluation("test"),
            choice=evaluation("test", multiple_choice=True),
        )
    return config
