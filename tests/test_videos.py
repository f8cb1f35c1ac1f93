"""scripts/caption.py and scripts/answer.py on videos: every form is read alike, and a short one says why it is refused."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from mmgen_jax import image_files
from mmgen_jax.experiment import Experiment, load

CLIPS = {"name": "clips", "split": "test", "size": 24, "length": 4}
QUESTIONS = {"name": "clip_questions", "split": "test", "size": 24, "length": 4}


@pytest.fixture(scope="module")
def untrained(load_config, tmp_path_factory):
    """untrained("captioner_clips.py:tiny", evaluation) -> the workdir of a run that has not learnt anything yet."""

    def make(name, evaluation):
        config = load_config(name, evals={"test": {"batch_size": 8, **evaluation}})
        experiment = Experiment(config, tmp_path_factory.mktemp("runs") / "untrained")
        experiment.settle()
        state, checkpointer = experiment.init(), experiment.checkpointer()
        checkpointer.save(1, state.replace(step=state.step + 1), wait=True)
        checkpointer.close()
        return experiment.workdir

    return make


@pytest.fixture(scope="module")
def captioner(untrained):
    return untrained(
        "captioner_clips.py:tiny",
        {"name": "likelihood", "source": CLIPS, "transforms": "caption(27, per_image=5, which='first')"},
    )


@pytest.fixture(scope="module")
def answerer(untrained):
    return untrained(
        "question_answering_clips.py:tiny",
        {"name": "answers", "source": QUESTIONS, "transforms": "question(16) | answers"},
    )


@pytest.fixture(scope="module")
def files(captioner, tmp_path_factory):
    """(frames of two clips, a folder with them in every form)."""
    folder = tmp_path_factory.mktemp("videos")
    source = load(captioner)[0].evaluators["test"].source
    first, second = (source[i]["video"] for i in (0, 1))
    for name, clip in (("a", first), ("b", second)):
        (folder / name).mkdir()
        for i, frame in enumerate(clip):
            Image.fromarray(frame).save(folder / name / f"frame{i}.png")  # frame10 comes after frame9
    marked = first.copy()
    marked[np.arange(12), 0, np.arange(12)] = 255  # Pillow writes no frame that is as the one before
    pictures = [Image.fromarray(frame) for frame in marked]
    for name, count in (("c.gif", 12), ("short.gif", 3)):
        pictures[0].save(folder / name, save_all=True, append_images=pictures[1:count], duration=100)
    sheet = first.reshape(3, 4, 24, 24, 3).swapaxes(1, 2).reshape(72, 96, 3)
    (folder.parent / "sheets").mkdir(exist_ok=True)
    Image.fromarray(sheet).save(folder.parent / "sheets" / "a.png")
    return first, folder


def lines(text):
    return [json.loads(line) for line in text.splitlines()]


def mp4(frames):
    av = pytest.importorskip("av")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def test_every_form_is_read_alike(captioner, files):
    """Frames are taken as they lie; larger ones are cut to the run's size; which videos a folder holds."""
    first, folder = files
    experiment = load(captioner)[0]
    prepare = image_files.preparation(experiment)
    assert image_files.seen_by(experiment) == "video"
    np.testing.assert_array_equal(image_files.read(folder / "a", prepare, "video"), first)
    sheet = folder.parent / "sheets" / "a.png"
    np.testing.assert_array_equal(image_files.read(sheet, prepare, "video", (3, 4)), first)
    found = image_files.find_videos([folder])
    assert [path.name for path in found] == ["a", "b", "c.gif", "short.gif"]
    assert image_files.find_videos([folder / "b", sheet.parent], sheets=True)[-1] == sheet
    large = np.zeros((20, 40, 60, 3), np.uint8)
    example = image_files.prepared({"video": large, "captions": [""]}, prepare)
    assert example["video"].shape == (12, 24, 24, 3)


def test_captions_of_videos(script, captioner, files, tmp_path):
    first, folder = files
    (tmp_path / "d.mp4").write_bytes(mp4(first))
    figures = tmp_path / "figures"
    status, out, err = script(
        "caption", "--workdir", captioner, folder, tmp_path / "d.mp4", "--max-len", 4, "--figures", figures
    )
    assert (status, err) == (0, f"attention pictures: {figures}/\n")
    a, b, gif, short, streamed = lines(out)
    assert a["video"] == str(folder / "a") and len(a["captions"]) == 1
    assert a["captions"][0]["log_prob"] != b["captions"][0]["log_prob"]
    assert gif["captions"] and streamed["video"].endswith("d.mp4") and streamed["captions"]
    assert short["error"].startswith("shorter than the sampling: 3 frames, frames(count=12) needs more")
    words = a["captions"][0]["caption"].split()
    with Image.open(figures / f"{folder.name}_a.png") as picture:
        # A row of twelve frames for the clip, then one a word.
        assert picture.width > 12 * 64 and picture.height > (len(words) + 1) * 64
    assert len(list(figures.iterdir())) == 4
    sheets = ("--sheet", "3x4", folder.parent / "sheets")
    _, out, _ = script("caption", "--workdir", captioner, *sheets, "--max-len", 4)
    (line,) = lines(out)
    assert line["captions"][0]["log_prob"] == pytest.approx(a["captions"][0]["log_prob"], abs=1e-3)


def test_answers_about_a_video(script, answerer, files, tmp_path):
    _, folder = files
    status, out, err = script(
        "answer", "--workdir", answerer, folder / "a", "what moves?", "how often?", "--n-best", 2
    )
    assert (status, err) == (0, "")
    one, two = lines(out)
    assert one["video"] == str(folder / "a") and two["question"] == "how often?"
    assert len(one["answers"]) == 2 and one["answers"][0]["probability"] >= one["answers"][1]["probability"]
    figure = tmp_path / "looked.png"
    script("answer", "--workdir", answerer, folder / "a", "what moves?", "how often?", "--figure", figure)
    with Image.open(figure) as picture:
        assert picture.width > 12 * 64 and 3 * 64 < picture.height < 4 * 72  # the clip, and a row a question
    sheet = folder.parent / "sheets" / "a.png"
    _, out, _ = script(
        "answer", "--workdir", answerer, "--sheet", "3x4", sheet, "what moves?", "how often?", "--n-best", 2
    )
    assert [line["answers"] for line in lines(out)] == [one["answers"], two["answers"]]
    status, out, err = script("answer", "--workdir", answerer, "--blind", "what moves?", "how often?")
    assert lines(out)[0]["without"] == ["video"] and "answered without the video" in err
    status, _, err = script("answer", "--workdir", answerer, folder / "short.gif", "what moves?")
    assert status == 1 and "short.gif: shorter than the sampling: 3 frames" in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{empty}"], "No video in {empty}: looked for .gif"),
        (["nowhere.gif"], "No file or folder nowhere.gif"),
        (["--sheet", "3", "{videos}/a"], '"3" is not ROWSxCOLUMNS, such as 3x4'),
    ],
)
def test_mistakes_are_named(script, captioner, files, tmp_path, arguments, message):
    given = [argument.format(empty=tmp_path, videos=files[1]) for argument in arguments]
    status, out, err = script("caption", "--workdir", captioner, *given)
    assert status != 0 and out == "" and message.format(empty=tmp_path) in err and "Traceback" not in err
