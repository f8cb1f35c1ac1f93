"""Videos: every form gives the same frames, broken ones say why, sampling by count and by rate, sources, the real data sets."""

import io
import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmgen_jax.data import loader, sources, transforms, video
from mmgen_jax.data.quarantine import BrokenExample, Quarantine
from mmgen_jax.data.transforms import parse
from mmgen_jax.data.video import Sheet, open_video

COLOURS = [(250, 20, 20), (20, 200, 20), (20, 20, 240), (240, 240, 20), (20, 220, 220), (200, 20, 200)]


def flat(count=6, height=16, width=24):
    """Frames of one colour each."""
    return np.stack([np.full((height, width, 3), COLOURS[i % 6], np.uint8) for i in range(count)])


def gif(frames, duration=200):
    buffer = io.BytesIO()
    first, *others = map(Image.fromarray, frames)
    first.save(buffer, "GIF", save_all=True, append_images=others, duration=duration, loop=0)
    return buffer.getvalue()


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def mp4(frames, rate=10):
    av = pytest.importorskip("av")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def sheet(frames, rows, columns):
    height, width = frames.shape[1:3]
    return png(
        frames.reshape(rows, columns, height, width, 3)
        .swapaxes(1, 2)
        .reshape(rows * height, columns * width, 3)
    )


def run(pipeline, example, seed=0):
    rng = np.random.default_rng(seed)
    example = example if isinstance(example, dict) else {"video": example, "captions": ["a dog"], "name": "x"}
    for transform in parse(pipeline, {}):
        example = transform(example, rng)
    return example


@pytest.fixture
def forms(tmp_path):
    frames = flat()
    folder = tmp_path / "frames"
    folder.mkdir()
    for i, frame in enumerate(frames):
        (folder / f"frame{i + 7}.png").write_bytes(png(frame))  # 7 to 12: not in the order of the letters
    (folder / "notes.txt").write_text("no picture")
    (tmp_path / "a.gif").write_bytes(gif(frames))
    return {
        "array": (frames, None),
        "gif": (gif(frames), 5.0),
        "gif's path": (tmp_path / "a.gif", 5.0),
        "folder": (str(folder), None),
        "sheet": (Sheet(sheet(frames, 2, 3), 2, 3, 25 / 3), 25 / 3),
    }


@pytest.mark.parametrize("form", ["array", "gif", "gif's path", "folder", "sheet"])
def test_every_form_gives_the_same_frames(form, forms):
    value, rate = forms[form]
    opened = open_video(value)
    assert opened.count == 6 and opened.rate == (pytest.approx(rate) if rate else None)
    taken = opened.take([0, 2, 5])
    assert taken.dtype == np.uint8
    np.testing.assert_array_equal(taken, flat()[[0, 2, 5]])


def test_frames_of_a_gif_that_are_shown_longer_count_as_several():
    """Pillow writes equal frames as one that lasts; they come back, and a rate is meant in time."""
    frames = flat()[[0, 0, 0, 1, 2, 2]]
    data = gif(frames)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    opened = open_video(data)
    assert (opened.count, opened.rate) == (6, 5.0)
    np.testing.assert_array_equal(opened.take(range(6)), frames)
    np.testing.assert_array_equal(opened.take([0, 3, 5]), frames[[0, 3, 5]])
    uneven = open_video(gif(flat(3), duration=[300, 100, 200]))
    assert (uneven.count, uneven.rate) == (6, 10.0)
    np.testing.assert_array_equal(uneven.take(range(6)), frames)
    without = open_video(gif(flat(3), duration=0))
    assert (without.count, without.rate) == (3, None)


def test_mp4_through_pyav():
    opened = open_video(mp4(flat(12)))
    assert (opened.count, opened.rate) == (12, 10.0)
    taken = opened.take([1, 4, 11]).astype(int)
    assert np.abs(taken - flat(12)[[1, 4, 11]]).max() < 40, "the codec loses a little"


def test_without_pyav_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r'pip install "mmgen_jax\[video\]"'):
        open_video(b"\0\0\0\x18ftypisom" + bytes(40))
    assert open_video(gif(flat(2))).count == 2


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"", "zero bytes"),
        (b"no video at all", "not an image"),
        (lambda: gif(flat())[:300], "truncated"),
        (lambda: open_video(gif(flat()[:, :8, :8]), max_pixels=63), "decompression bomb"),
        (lambda: mp4(flat())[:200], "cut off|truncated"),
        (lambda: open_video(mp4(flat()), max_pixels=64), "decompression bomb"),
        (np.zeros((0, 8, 8, 3), np.uint8), "video without frames"),
        ("/no/such/file.gif", "missing file"),
        (Sheet(png(flat()[0]), 3, 5), "24 x 16 pixels do not divide into 5 x 3 frames"),
    ],
)
def test_broken_videos_say_why(value, message):
    with pytest.raises(BrokenExample, match=message):
        opened = open_video(value() if callable(value) else value)
        opened.take(range(opened.count))


def test_folders_that_are_no_videos(tmp_path):
    with pytest.raises(BrokenExample, match="video without frames"):
        open_video(tmp_path)
    (tmp_path / "1.png").write_bytes(png(flat()[0]))
    (tmp_path / "2.png").write_bytes(png(flat()[0][:8]))
    with pytest.raises(BrokenExample, match="frames of different sizes: 24 x 16, 24 x 8"):
        open_video(tmp_path).take([0, 1])


def test_sampling_by_count_takes_one_of_each_part():
    of = open_video(flat(10))
    assert video.sample(of, 10).tolist() == list(range(10))
    assert video.sample(of, 5).tolist() == [1, 3, 5, 7, 9]
    assert video.sample(of, 3).tolist() == [1, 5, 8]
    assert video.sample(of, 1).tolist() == [5]
    assert video.sample(of, 12).tolist() == list(range(10))  # too short: all there are
    drawn = np.stack([video.sample(of, 5, None, np.random.default_rng(i)) for i in range(200)])
    assert (drawn // 2 == np.arange(5)).all()
    assert {tuple(row) for row in (drawn % 2).T.tolist()} and 80 < (drawn % 2)[:, 2].sum() < 120


def test_sampling_by_rate():
    of = open_video(gif(np.concatenate([flat()] * 2)))  # 12 frames, 5 a second
    assert of.count == 12
    assert video.sample(of, 4, 5.0).tolist() == [4, 5, 6, 7]
    assert video.sample(of, 4, 2.5).tolist() == [2, 4, 6, 8]
    assert video.sample(of, 3, 2.0).tolist() == [3, 5, 8]
    assert video.sample(of, 6, 1.25).tolist() == [0, 4, 8]  # too short
    begins = {int(video.sample(of, 4, 2.5, np.random.default_rng(i))[0]) for i in range(100)}
    assert begins == set(range(6))
    with pytest.raises(ValueError, match="Ask for at most that"):
        video.sample(of, 2, 10.0)
    with pytest.raises(ValueError, match="does not say how many frames a second"):
        video.sample(open_video(flat()), 2, 1.0)


def test_the_transform_takes_key_frames_along():
    keys = np.array([0, 0, 0, 1, 0, 0], np.float32)
    example = run("frames(3)", {"video": flat(), "key_frames": keys, "name": "x"})
    np.testing.assert_array_equal(example["video"], flat()[[1, 3, 5]])
    assert example["key_frames"].tolist() == [0, 1, 0]
    assert "frame_mask" not in example


def test_short_videos_are_refused_or_padded():
    with pytest.raises(BrokenExample, match=r"6 frames, frames\(count=8\) needs more.*too_short"):
        run("frames(8)", flat())
    with pytest.raises(BrokenExample, match="at 5 a second"):
        run("frames(8, rate=5)", gif(flat()))
    example = run("frames(8, too_short='pad')", flat())
    np.testing.assert_array_equal(example["video"][:6], flat())
    assert not example["video"][6:].any()
    assert example["frame_mask"].tolist() == [True] * 6 + [False] * 2
    assert run("frames(4, too_short='pad')", flat())["frame_mask"].all()


def test_transforms_of_pictures_treat_all_frames_alike():
    frames = np.random.default_rng(0).integers(0, 256, (1, 16, 24, 3), np.uint8).repeat(3, axis=0)
    example = run("frames(3) | random_resized_crop(8) | flip(0.5) | color_jitter(0.3)", frames, seed=4)
    assert example["video"].shape == (3, 8, 8, 3) and example["video"].dtype == np.uint8
    assert (example["video"] == example["video"][:1]).all()
    other = run("frames(3) | random_resized_crop(8)", frames, seed=5)
    assert (other["video"] != run("frames(3) | random_resized_crop(8)", frames, seed=6)["video"]).any()
    np.testing.assert_array_equal(run("frames(2) | flip(1.0)", frames)["video"], frames[:2, :, ::-1])
    assert run("frames(2) | resize(8)", gif(flat()))["video"].shape == (2, 8, 12, 3)


@pytest.mark.parametrize(
    ("pipeline", "example", "message"),
    [
        ("array", gif(flat()), "begin the pipeline with frames"),
        ("resize(8) | frames(2)", gif(flat()), "begin the pipeline with frames"),
        ("frames(2)", {"image": flat()[0], "name": "x"}, "has no video"),
        ("frames(0)", flat(), "at least 1"),
        ("frames(2, rate=0)", flat(), "rate above 0"),
        ("frames(2, too_short='pda')", flat(), 'Did you mean "pad"'),
        ("array", flat()[:, :, :, :2], r"uint8 \[F, H, W, 3\]"),
    ],
)
def test_errors_name_the_remedy(pipeline, example, message):
    with pytest.raises(ValueError, match=message):
        run(pipeline, example)


def test_captions_keep_the_video():
    from mmgen_jax.data import text

    words = {"tokenizer": text.Words(["a", "dog"])}
    for pipeline in ("frames(2) | caption(max_len=4)", "frames(2) | text(max_len=4)"):
        example = {"video": flat(), "captions": ["a dog"], "name": "x"}
        for transform in parse(pipeline, words):
            example = transform(example, np.random.default_rng(0))
        assert example["video"].shape == (2, 16, 24, 3) and example["tokens"].shape[0] == 1
        assert "image" not in example


@pytest.fixture
def listing(tmp_path):
    """Two videos with a caption and two questions each, one file of which is cut, and one of another split."""
    (tmp_path / "a.gif").write_bytes(gif(flat()))
    (tmp_path / "b.gif").write_bytes(gif(flat())[:200])
    rows = [
        {
            "video": f"{name}.gif",
            "captions": [f"colours of {name}"],
            "qa": [
                {"question": "How many frames?", "answer": "6"},
                {"question": "Is it red?", "answer": "yes"},
            ],
            "split": split,
        }
        for name, split in (("a", "train"), ("b", "train"), ("c", "test"))
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_a_source_of_captions(listing, tmp_path):
    source = sources.make({"name": "video_jsonl", "path": str(listing), "split": "train"})
    assert len(source) == 2 and source.captions(1) == ["colours of b"] and source.name(0) == "a.gif"
    # Broken files are set aside as broken images are.
    quarantine = Quarantine(tmp_path / "quarantine.jsonl", 2, max_share=0.6)
    (batch,) = loader.loader(source, parse("frames(4)", {}), 2, quarantine=quarantine)
    assert batch["video"].shape == (2, 4, 16, 24, 3) and batch["mask"].tolist() == [1, 0]
    assert quarantine.count == 1 and "truncated" in quarantine.summary()


def test_a_source_of_questions(listing):
    source = sources.make(
        {"name": "video_jsonl", "path": str(listing), "questions_key": "qa", "split": "train"}
    )
    assert len(source) == 4 and source.captions(0) == []
    assert (source.question(2), source.answers(2)) == ("How many frames?", ["6"])
    example = source[1]
    assert example["question"] == "Is it red?" and example["answers"] == ["yes"]
    assert (example["question_type"], example["answer_type"]) == ("is it", "yes/no")
    assert source.answer_type(0) == "number" and source.group(0) == source.group(1) == "a.gif"
    assert source.name(1) == "a.gif, question 1"


@pytest.mark.parametrize(
    ("row", "more", "message"),
    [
        ({"captions": ["x"]}, {}, r"line without video.*video_key=\"video\""),
        ({"video": "a.gif"}, {}, "image without captions|captions"),
        ({"video": "a.gif"}, {"questions_key": "qa"}, "video without questions"),
        ({"video": "a.gif", "qa": [{"question": "why"}]}, {"questions_key": "qa"}, "question without answer"),
        ({"video": "a.gif", "captions": ["x"]}, {"sheet": [0, 2]}, r"\(rows, columns\)"),
        ({"video": "a.gif", "captions": ["x"]}, {"split": "val"}, 'no field "split"'),
        ({"video": "a.gif", "captions": ["x"], "split": "train"}, {"split": "val"}, 'no split "val"'),
    ],
)
def test_listings_that_are_not_whole(row, more, message, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(ValueError, match=f"(?s){message}"):
        video.video_jsonl(path=str(path), **more)


def test_parquet_with_questions(tmp_path):
    path = tmp_path / "data.parquet"

    def write(**columns):
        table = {
            "video": [gif(flat())] * 2,
            "video_id": [3, 4],
            "questions": [["a?", "b?"], ["c?"]],
            "answers": [["x", "y"], ["z"]],
            "split": ["train", "val"],
        }
        pq.write_table(pa.table({**table, **columns}), path)

    write()
    source = video.video_parquet(path=str(path), video="video")
    assert [source.question(i) for i in range(3)] == ["a?", "b?", "c?"] and source.answers(2) == ["z"]
    assert len(video.video_parquet(path=str(path), video="video", split="val")) == 1
    assert run("frames(6)", source[2])["video"].shape == (6, 16, 24, 3)
    with pytest.raises(ValueError, match='Did you mean "video"'):
        video.video_parquet(path=str(path), video="vidoe")
    with pytest.raises(ValueError, match='no split "test"'):
        video.video_parquet(path=str(path), video="video", split="test")
    write(answers=[["x"], ["z"]])
    with pytest.raises(ValueError, match=r"questions and answers that do not match.*2 and 1"):
        video.video_parquet(path=str(path), video="video")
    assert len(video.video_parquet(path=str(path), video="video", on_missing="skip")) == 1
    path.write_bytes(b"no parquet")
    with pytest.raises(ValueError, match="no whole Parquet file"):
        video.video_parquet(path=str(path), video="video")


def test_easy_vqa_video(shared_data):
    """All 2,000 GIFs have ten frames; their 7,066 questions keep their answers."""
    path = shared_data / "easy_vqa_video" / "data.parquet"
    source = sources.make({"name": "video_parquet", "path": str(path), "video": "video_gif"})
    assert len(source) == 7066
    assert source.question(0) == "what shape is in the image?" and source.answers(0) == ["circle"]
    known = set((path.parent / "answers.txt").read_text().split())
    assert {source.answers(i)[0] for i in range(len(source))} <= known
    frames = run("frames(10)", source[3])["video"]
    assert frames.shape == (10, 64, 64, 3)
    parts = [
        sources.make({"name": "video_parquet", "path": str(path), "video": "video_gif", "part": part})
        for part in ("held out 1/10", "but 1/10")
    ]
    held_out, others = ({part.group(i) for i in range(len(part))} for part in parts)
    assert not held_out & others and len(held_out | others) == 2000
    assert sum(map(len, parts)) == 7066 and parts[0].question(0).startswith("what")
    # "what direction does the shape move?": right.
    assert source.answers(3) == ["right"]
    left = [np.flatnonzero((frame != frame[0, 0]).any(axis=(0, 2))).mean() for frame in frames]
    assert (np.diff(left) > 0).all()


def test_grid_s1(shared_data):
    """Forty sheets of 25 frames; the mouth's of 75, three times as many a second."""
    path = str(shared_data / "grid_s1" / "data.jsonl")
    spec = {"name": "video_jsonl", "path": path, "sheet": [5, 5], "rate": 25 / 3}
    source = sources.make(spec)
    assert len(source) == 40 and source.captions(0) == ["bin blue by s four now"]
    frames = run("frames(8, rate=25/9)".replace("25/9", "2.7777777"), source[0])["video"]
    assert frames.shape == (8, 72, 90, 3)
    assert (frames[1:] != frames[:-1]).any(axis=(1, 2, 3)).all(), "somebody speaks"
    questions = sources.make({**spec, "questions_key": "qa"})
    assert len(questions) == 240 and questions.answers(4) == ["four"]
    mouth = sources.make({**spec, "video_key": "mouth", "sheet": [15, 5], "rate": 25.0})
    assert run("frames(75)", mouth[7])["video"].shape == (75, 32, 96, 3)


def test_transforms_of_pictures_are_known():
    assert set(transforms.OF_PICTURES) < set(transforms.FACTORIES)
