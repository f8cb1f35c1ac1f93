"""scripts/generate.py: noise, files of captions; on a tiny run pictures, interpolation, errors that a person can read."""

import itertools
import json

import jax
import numpy as np
import pytest
from PIL import Image

from mmgen_jax import generate
from mmgen_jax.data.scenes import Scenes
from mmgen_jax.experiment import Experiment, load

SIZE, MAX_LEN, Z = 32, 12, 10
GENERATORS = {
    "dcgan": {"generator": dict(image_size=SIZE, width=4), "discriminator": dict(width=4)},
    "attngan": {
        "generator": dict(image_sizes=(16, SIZE), width=4, blocks=1, augmented=4),
        "discriminator": dict(stages=2, width=4),
    },
}


def test_noise_is_a_function_of_seed_and_sample():
    z = generate.noise(0, 3, 100)
    assert (z.shape, z.dtype) == ((100,), np.float32)
    np.testing.assert_array_equal(z, generate.noise(0, 3, 100))
    for other in (generate.noise(1, 3, 100), generate.noise(3, 0, 100), generate.noise(0, 4, 100)):
        assert not np.isclose(z, other).any()


def test_noise_is_normal():
    from scipy import stats

    z = np.concatenate([generate.noise(0, k, 1000) for k in range(20)])
    assert stats.kstest(z, "norm").pvalue > 0.01
    assert np.abs(z).max() > 3


@pytest.mark.parametrize("truncation", [0.3, 0.8, 1.0])
def test_truncated_noise(truncation):
    from scipy import stats

    z = np.concatenate([generate.noise(0, k, 1000, truncation) for k in range(20)])
    assert 1.95 * truncation < np.abs(z).max() <= 2 * truncation
    assert stats.kstest(z / truncation, stats.truncnorm(-2, 2).cdf).pvalue > 0.01
    # What was inside of the bound is what it was, scaled.
    plain, cut = generate.noise(0, 5, 1000), generate.noise(0, 5, 1000, truncation)
    inside = np.abs(plain) <= 2
    np.testing.assert_allclose(cut[inside], truncation * plain[inside], rtol=1e-5)


def test_a_file_of_captions(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_bytes("\ufeffa red circle\r\n\n  a blue square \n".encode())
    assert generate.read_captions(path) == ["a red circle", "a blue square"]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\n \n", "holds no caption"), (b"a \xff circle", "no UTF-8"), (None, "No such file")],
)
def test_a_file_without_captions(tmp_path, content, message):
    path = tmp_path / "captions.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises((OSError, ValueError), match=message):
        generate.read_captions(path)


def test_names_of_files():
    stem = generate._stem(3, 'A "small" red circle, above/below $a large blue square and more words')
    assert stem == "003_a-small-red-circle-above-below-a-large-blue-squa_"
    assert generate._stem(0, "\u732b") == "000_\u732b_"
    assert generate._stem(7, None) == ""


@pytest.fixture(scope="module")
def make_run(load_config):
    """make_run(workdir, text, generator): the workdir of a run of random weights, whose average is not the parameters."""

    def make(workdir, text=True, generator="dcgan", spoil=1.0):
        scenes = dict(name="scenes", size=SIZE)
        transforms = f"text({MAX_LEN})" if text else "array"
        tower = dict(name="text_rnn", cell="gru", features=8, embed_features=8, max_len=MAX_LEN)
        fields = GENERATORS[generator]
        config = load_config("dcgan_scenes.py:tiny")
        config.task = dict(
            name="text_to_image",
            text=tower if text else None,
            generator=dict(name=generator, z_features=Z, **fields["generator"]),
            discriminator=dict(name=generator, **fields["discriminator"]),
            loss=dict(name="hinge"),
        )
        config.data.source = dict(scenes, split="train", length=64)
        config.data.transforms = transforms
        config.data.tokenizer = dict(name="words", min_count=1, examples=64)
        config.data.batch_size = 8
        config.evals = dict(
            test=dict(
                name="samples",
                source=dict(scenes, split="test", length=8),
                transforms=transforms,
                batch_size=8,
            )
        )
        config.optimizer.ema = 0.5
        experiment = Experiment(config, workdir)
        experiment.settle()
        state = experiment.init()
        bigger = jax.tree.map(lambda x: (3.0 * x * spoil).astype(x.dtype), state.params)
        checkpointer = experiment.checkpointer()
        checkpointer.save(2, state.replace(params=state.ema, ema=bigger))
        checkpointer.wait()
        checkpointer.close()
        return workdir

    return make


@pytest.fixture(scope="module")
def run(make_run, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "run")


def picture(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"), np.float32)


def lines(out):
    return [json.loads(line) for line in (out / "samples.jsonl").read_text(encoding="utf-8").splitlines()]


def test_samples_of_captions(script, run, tmp_path):
    out = tmp_path / "new" / "drawn"
    file = tmp_path / "captions.txt"
    file.write_text("a blue square\n")
    arguments = ("--workdir", run, "--out", out, "a red circle", "--n", 3, "--seed", 5)
    status, printed, err = script("generate", *arguments, "--captions", file, "--truncation", 0.8)
    assert (status, err) == (0, "")
    assert printed == f"6 pictures, samples.jsonl, a contact sheet in {out}\n"
    names = [
        f"{i:03d}_{words}_{k:03d}.png"
        for i, words in enumerate(("a-red-circle", "a-blue-square"))
        for k in range(3)
    ]
    assert sorted(path.name for path in out.iterdir()) == sorted([*names, "samples.jsonl", "sheet.png"])
    how = {"seed": 5, "truncation": 0.8, "step": 2, "average": True}
    assert lines(out)[4] == {"image": names[4], "caption": "a blue square", "sample": 1, **how}
    pictures = [picture(out / name) for name in names]
    assert pictures[0].shape == (SIZE, SIZE, 3)
    for one, other in itertools.combinations(pictures, 2):
        assert np.abs(one - other).max() > 0


def test_a_sample_does_not_depend_on_the_others(script, run, tmp_path):
    """Whatever number, batch and company: the same noise, and but for rounding the same picture."""
    out = {name: tmp_path / name for name in ("many", "few", "alone")}
    script("generate", "--workdir", run, "--out", out["many"], "a red circle", "a blue square", "--n", 5)
    script("generate", "--workdir", run, "--out", out["few"], "a blue square", "a red circle", "--n", 2)
    script("generate", "--workdir", run, "--out", out["alone"], "a red circle", "--n", 3, "--batch-size", 1)
    many = picture(out["many"] / "000_a-red-circle_001.png")
    for other in (out["few"] / "001_a-red-circle_001.png", out["alone"] / "000_a-red-circle_001.png"):
        assert np.abs(many - picture(other)).max() <= 1
    script("generate", "--workdir", run, "--out", tmp_path / "seed", "a red circle", "--n", 2, "--seed", 1)
    assert np.abs(many - picture(tmp_path / "seed" / "000_a-red-circle_001.png")).max() > 1


def test_samples_are_those_of_the_prediction(script, run, tmp_path):
    """The average by default; --no-ema takes the parameters themselves."""
    drawn = {}
    for name, options in (("average", []), ("raw", ["--no-ema"])):
        experiment, params, variables, _ = load(run, average=not options)
        ids = [1, *experiment.pipeline.tokenizer.encode("a red circle"), 2]
        tokens = np.zeros((8, 1, MAX_LEN), np.int32)
        tokens[:, 0, : len(ids)] = ids
        z = np.stack([generate.noise(0, k, Z) for k in range(8)])
        batch = {"tokens": tokens, "z": z, "mask": np.ones(8, np.float32)}
        expected = experiment.predictor(params, variables)("generate", batch)[0]["image"]
        script("generate", "--workdir", run, "--out", tmp_path / name, "a red circle", "--n", 2, *options)
        drawn[name] = picture(tmp_path / name / "000_a-red-circle_001.png")
        assert np.abs(drawn[name] - expected[1].astype(np.float32)).max() <= 1
        assert lines(tmp_path / name)[0]["average"] is (name == "average")
    assert np.abs(drawn["average"] - drawn["raw"]).max() > 5


def test_interpolation(script, run, tmp_path):
    captions = ("a red circle", "a blue square")
    script("generate", "--workdir", run, "--out", tmp_path / "ends", *captions, "--n", 2)
    options = ("--n", 2, "--interpolate", "--frames", 5)
    status, printed, _ = script("generate", "--workdir", run, "--out", tmp_path / "way", *captions, *options)
    assert status == 0 and printed.startswith(
        "10 pictures, samples.jsonl, interpolation.png and interpolation.gif in "
    )
    for k in range(2):
        way = [picture(tmp_path / "way" / f"000_a-red-circle_to_{k:03d}_{i:03d}.png") for i in range(5)]
        for end, name in ((way[0], "000_a-red-circle"), (way[-1], "001_a-blue-square")):
            assert np.abs(end - picture(tmp_path / "ends" / f"{name}_{k:03d}.png")).max() <= 1
        assert all(np.abs(one - other).max() > 0 for one, other in itertools.combinations(way, 2))
    assert (
        lines(tmp_path / "way")[1].items()
        >= {"caption": captions[0], "towards": captions[1], "mix": 0.25}.items()
    )
    with Image.open(tmp_path / "way" / "interpolation.gif") as image:
        assert image.n_frames == 8
        assert image.size == (2 * 128, 128)
    assert picture(tmp_path / "way" / "interpolation.png").shape[1] > 5 * SIZE


def test_without_a_caption_a_run_draws_its_own(script, run, tmp_path):
    status, _, err = script("generate", "--workdir", run, "--out", tmp_path / "x", "--n", 1)
    assert (status, err) == (0, "")
    captions = [line["caption"] for line in lines(tmp_path / "x")]
    assert len(captions) == len(set(captions)) == 8
    assert captions[0] in Scenes(split="test", length=8).captions(0)


def test_a_run_without_text(script, make_run, tmp_path):
    workdir = make_run(tmp_path / "run", text=False)
    out = tmp_path / "x"
    status, printed, _ = script("generate", "--workdir", workdir, "--out", out, "--n", 300)
    assert status == 0
    assert printed == f"300 pictures, samples.jsonl, a contact sheet of the first 256 in {out}\n"
    assert len(list(out.glob("[0-9]*.png"))) == len(lines(out)) == 300
    assert lines(out)[-1].items() >= {"image": "299.png", "sample": 299}.items()
    assert "caption" not in lines(out)[-1]
    for options, message in ((["a red circle"], "trained without text"), (["--interpolate"], "here are 0")):
        status, _, err = script("generate", "--workdir", workdir, "--out", out, *options)
        assert status == 1 and message in err


def test_words_of_a_model_that_attends(script, make_run, tmp_path):
    """The pictures of words are there, and a sample is the same in any company, though its sentence is drawn around too."""
    workdir = make_run(tmp_path / "run", generator="attngan")
    captions = ("a red circle", "a small blue square")
    status, printed, err = script(
        "generate", "--workdir", workdir, "--out", tmp_path / "x", *captions, "--n", 2
    )
    assert (status, err) == (0, "")
    assert (
        printed == f"4 pictures, samples.jsonl, a contact sheet and pictures of words in {tmp_path / 'x'}\n"
    )
    three, four = (
        picture(tmp_path / "x" / f"{name}_words.png")
        for name in ("000_a-red-circle", "001_a-small-blue-square")
    )
    # A picture beside a map for each word; a line a sample and attention.
    assert four.shape[1] > three.shape[1]
    assert three.shape[0] == four.shape[0]
    script("generate", "--workdir", workdir, "--out", tmp_path / "alone", captions[1], "--n", 1)
    one, other = (
        tmp_path / "x" / "001_a-small-blue-square_000.png",
        tmp_path / "alone" / "000_a-small-blue-square_000.png",
    )
    assert np.abs(picture(one) - picture(other)).max() <= 1


def test_places_of_words(run):
    sampler = generate.Sampler(run)
    (tokens,) = sampler.tokens(["a redd circle"])
    assert sampler.pieces(tokens) == ([1, 2, 3], ["a", "?", "circle"])


def test_words_that_the_run_does_not_know(script, run, tmp_path):
    status, _, err = script(
        "generate", "--workdir", run, "--out", tmp_path / "x", "a redd zeppelin", "--n", 1
    )
    assert status == 0
    assert '"a redd zeppelin": not in the vocabulary: redd (did you mean "red"?); zeppelin' in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["zeppelin"], "not in the vocabulary: zeppelin. No other word is left to draw"),
        ([""], 'The caption "" is empty'),
        (["a red circle " * 5], f"has 17 tokens with begin and end; this run's text tower takes {MAX_LEN}"),
        (["a circle", "--n", "0"], "n=0; it is at least 1"),
        (["a circle", "--seed", "-1"], "seed=-1; it is at least 0"),
        (["a circle", "--truncation", "0"], "truncation=0.0; it is above 0"),
        (["a circle", "--batch-size", "0"], "batch_size=0"),
        (["a circle", "--interpolate"], "from one caption to another; here are 1"),
        (["a circle", "a square", "--interpolate", "--frames", "1"], "frames=1; it is at least 2"),
        (["a circle", "--step", "3"], "No checkpoint 3 under"),
        (["--captions", "nowhere.txt"], "Cannot read --captions nowhere.txt"),
    ],
)
def test_errors_are_one_line(script, run, tmp_path, arguments, message):
    status, out, err = script("generate", "--workdir", run, "--out", tmp_path / "x", *arguments)
    assert (status, out) == (1, "")
    assert message in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("error: ")
    assert not list((tmp_path).glob("x/*.png"))


def test_a_folder_that_cannot_be(script, run, tmp_path):
    (tmp_path / "x").write_text("a file")
    status, _, err = script("generate", "--workdir", run, "--out", tmp_path / "x", "a circle")
    assert status == 1 and "Cannot write --out" in err


def test_runs_that_draw_nothing(script, make_run, tiny_run, tmp_path):
    status, _, err = script("generate", "--workdir", tiny_run[0], "--out", tmp_path / "x", "a circle")
    assert status == 1 and 'is of the task "captioning", which draws nothing' in err
    nan = make_run(tmp_path / "nan", spoil=float("nan"))
    status, _, err = script("generate", "--workdir", nan, "--out", tmp_path / "x", "a circle")
    assert status == 1 and "The generator's weights of step 2 are not finite" in err
    status, _, err = script(
        "generate", "--workdir", tmp_path / "nothing", "--out", tmp_path / "x", "a circle"
    )
    assert status == 1 and "scripts/train.py" in err
