"""Questions about drawn clips: what moved where, how fast, in which order, what changed, how often; open and multiple choice.

python scripts/train.py --config configs/question_answering_clips.py --workdir runs/clips
python scripts/train.py --config configs/question_answering_clips.py:init_from=runs/captioner_clips --workdir runs/clips

The tower is that of configs/captioner_clips.py, frames that also see what has changed (Wang et al., Temporal Segment Networks,
2016, section 3.2) and a Transformer over them; everything else is as in configs/question_answering_scenes.py.
Reached: not measured yet.
"""

import ml_collections

from mmgen_jax.core.config import parse_arg, sibling

BASELINES = {
    "question alone": "modalities=question",
    "video alone": "modalities=video",
    "concatenation": "fusion=concatenation",
}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Arguments: tiny (seconds, for tests), fusion, level, modalities (video, question or both with a plus), size (of a frame in
    pixels), init_from (a run of configs/captioner_clips.py, whose tower sees already), steps, batch_size."""
    arg = parse_arg(
        arg,
        tiny=False,
        fusion="mac",
        level="early",
        modalities="video+question",
        size=48,
        init_from="",
        steps=4000,
        batch_size=64,
    )
    tiny = "tiny," if arg.tiny else ""
    config = sibling(__file__, "question_answering_scenes")(
        f"{tiny}fusion={arg.fusion},level={arg.level},modalities={arg.modalities},steps={arg.steps},batch_size={arg.batch_size}"
    )
    video = dict(
        name="video_frames",
        tower=dict(
            name="convnet",
            widths=(8, 8) if arg.tiny else (16, 32, 64, 128),
            blocks=0,
            pool="none",
        ),
        over_time=dict(name="transformer", depth=1, heads=4, frames=12),
        width=16 if arg.tiny else 128,
        differences=True,
        init_from=arg.init_from,
    )
    size, length = (24, 16) if arg.tiny else (arg.size, 2000)

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
        config.data.source = questions("train")
        config.evals = dict(
            val=evaluation("val", every=max(config.steps // 4, 1)),
            test=evaluation("test"),
            choice=evaluation("test", multiple_choice=True),
        )
    return config
