"""scripts/caption.py on the tiny run: images of all kinds, every option, errors that a person can read."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmgen_jax.caption import search_options
from mmgen_jax.data.scenes import Scenes
from mmgen_jax.image_files import find_images

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of pictures, one of them broken and one file none, and a folder in it."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name, shape in (("a.png", (50, 70, 3)), ("b.jpg", (31, 20, 3)), ("below/c.PNG", (32, 32, 3))):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(folder / name)
    (folder / "broken.jpg").write_bytes((folder / "b.jpg").read_bytes()[:300])
    (folder / "notes.txt").write_text("no image")
    return folder


def lines(text):
    return [json.loads(line) for line in text.splitlines()]


def test_a_folder(script, tiny_run, photos):
    status, out, err = script("caption", "--workdir", tiny_run[0], photos)
    assert (status, err) == (0, "")
    records = lines(out)
    assert [record["image"] for record in records] == [
        str(photos / name) for name in ("a.png", "b.jpg", "below/c.PNG", "broken.jpg")
    ]
    for record in records[:3]:
        (best,) = record["captions"]
        assert set(best) == {"caption", "log_prob", "finished"}
        assert best["log_prob"] < 0
        assert isinstance(best["caption"], str)
    assert set(records[3]) == {"image", "error"}
    assert "truncated" in records[3]["error"]


def test_a_drawn_scene_gets_the_caption_of_its_evaluation(script, tiny_run, tmp_path):
    """A file with the pixels of a test scene takes the same way through the model."""
    workdir, _ = tiny_run
    config = json.loads((workdir / "config.json").read_text())
    source = {key: value for key, value in config["evals"]["test"]["source"].items() if key != "name"}
    records = lines((workdir / "predictions" / "test_000008.jsonl").read_text())
    scenes = Scenes(**source)
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for i, path in enumerate(paths):
        Image.fromarray(scenes[i]["image"]).save(path)
    _, out, _ = script("caption", "--workdir", workdir, *paths)
    for record, expected in zip(lines(out), records, strict=False):
        assert record["captions"][0]["caption"] == expected["caption"]
        assert record["captions"][0]["log_prob"] == pytest.approx(expected["log_prob"], abs=1e-3)


def test_beam_out_and_figures(script, tiny_run, photos, tmp_path):
    out, figures = tmp_path / "new" / "captions.jsonl", tmp_path / "figures"
    status, printed, err = script(
        "caption", "--workdir", tiny_run[0], "--beam", 3, "--n-best", 2, "--out", out, "--figures", figures,
        "--batch-size", 2, photos / "a.png", photos / "broken.jpg", photos / "below",
    )  # fmt: skip
    assert (status, printed) == (0, "")
    assert str(figures) in err
    records = lines(out.read_text(encoding="utf-8"))
    assert ["error" in record for record in records] == [False, True, False]
    for record in (records[0], records[2]):
        first, second = record["captions"]
        assert first["log_prob"] >= second["log_prob"]
        assert first["caption"] != second["caption"] or first["finished"] != second["finished"]
    pictures = sorted(figures.iterdir())
    assert len(pictures) == 2
    for picture in pictures:
        with Image.open(picture) as image:
            assert image.format == "PNG"
            assert image.width > 200
            assert image.height > 100


def test_sampling(script, tiny_run, photos):
    options = ("--temperature", 0.9, "--top-p", 0.9, "--top-k", 20, "--n-best", 4, "--max-len", 9)

    def run(seed):
        return script("caption", "--workdir", tiny_run[0], *options, "--seed", seed, photos / "a.png")[1]

    first = run(1)
    captions = lines(first)[0]["captions"]
    assert len(captions) == 4
    assert len({caption["caption"] for caption in captions}) > 1
    assert captions == sorted(captions, key=lambda caption: -caption["log_prob"])
    assert all(len(caption["caption"].split()) <= 9 for caption in captions)
    assert run(1) == first != run(2)


def test_every_kind_of_image(script, tiny_run, tmp_path):
    """Grey, palette, alpha, CMYK, 16 bit, turned: a picture gets the same caption in each lossless form."""
    picture = Image.fromarray(Scenes(split="test", size=64)[0]["image"])
    grey = picture.convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    turned = Image.Exif()
    turned[0x0112] = 6
    palette = picture.quantize(256)
    files = {
        "rgb.png": (picture, {}),
        "rgba.png": (picture.convert("RGBA"), {}),
        "bmp.bmp": (picture, {}),
        "tiff.tif": (picture, {}),
        "webp.webp": (picture, {"lossless": True}),
        "turned.png": (picture.transpose(Image.Transpose.ROTATE_90), {"exif": turned}),
        "wrong_extension.jpg": (picture, {"format": "PNG"}),
        "grey.png": (grey, {}),
        "grey_as_rgb.png": (grey.convert("RGB"), {}),
        "deep.png": (deep, {}),
        "palette.png": (palette, {}),
        "palette.gif": (palette, {}),
        "palette_as_rgb.png": (palette.convert("RGB"), {}),
        "cmyk.jpg": (picture.convert("CMYK"), {"quality": 100}),
        "alpha_grey.png": (grey.convert("LA"), {}),
        "bit.png": (picture.convert("1"), {}),
    }
    for name, (image, options) in files.items():
        image.save(tmp_path / name, **options)
    status, out, _ = script("caption", "--workdir", tiny_run[0], *(tmp_path / name for name in files))
    assert status == 0
    found = {name: record["captions"][0] for name, record in zip(files, lines(out), strict=True)}
    same = [
        ("rgb.png", "rgba.png", "bmp.bmp", "tiff.tif", "webp.webp", "turned.png", "wrong_extension.jpg"),
        ("grey.png", "grey_as_rgb.png", "deep.png", "alpha_grey.png"),
        ("palette.png", "palette.gif", "palette_as_rgb.png"),
    ]
    for names in same:
        for name in names[1:]:
            assert found[name] == found[names[0]], name
    # The barely trained model does tell colours from grey.
    assert found["rgb.png"]["log_prob"] != found["grey.png"]["log_prob"]


@pytest.mark.parametrize("make", [lambda path: path.write_bytes(b""), lambda path: path.write_text("text")])
def test_nothing_but_a_broken_image(script, tiny_run, tmp_path, make):
    make(tmp_path / "x.jpg")
    status, out, _ = script("caption", "--workdir", tiny_run[0], tmp_path / "x.jpg")
    assert status == 0
    assert set(lines(out)[0]) == {"image", "error"}


@pytest.mark.parametrize(
    ("given", "chosen"),
    [
        ({}, {}),
        ({"beam": 2}, {"beam": 2, "temperature": 0.0}),
        # The run was made with a beam of five.
        ({"n_best": 3}, {"n_best": 3, "beam": 5}),
        ({"n_best": 7}, {"n_best": 7, "beam": 7}),
        ({"temperature": 0.8, "n_best": 7}, {"temperature": 0.8, "n_best": 7, "beam": 1}),
    ],
)
def test_what_the_options_imply(tmp_path, given, chosen):
    (tmp_path / "config.json").write_text(json.dumps({"task": {"decode": {"beam": 5}}}))
    assert search_options(tmp_path, {"beam": None, "n_best": None, "temperature": None, **given}) == chosen


def test_find_images(photos):
    assert find_images([photos / "notes.txt"]) == [photos / "notes.txt"]
    assert [path.name for path in find_images([photos / "below", photos / "a.png"])] == ["c.PNG", "a.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.jpg"], "No file or folder nowhere.jpg"),
        (["{empty}"], "No image in"),
        (["--beam", "0", "{photo}"], "beam=0"),
        (["--beam", "2", "--n-best", "3", "{photo}"], "n_best=3 of beam=2"),
        (["--beam", "2", "--temperature", "1", "{photo}"], "take a beam or samples"),
        (["--step", "3", "{photo}"], "No checkpoint 3 under"),
        (["--batch-size", "0", "{photo}"], "batch_size=0"),
        (["--out", "{empty}", "{photo}"], "Is a directory"),
        (["--out", "{photo}/x.jsonl", "{photo}"], "Cannot write --out"),
    ],
)
def test_errors_are_one_line(script, tiny_run, photos, tmp_path, arguments, message):
    arguments = [argument.format(empty=tmp_path, photo=photos / "a.png") for argument in arguments]
    status, out, err = script("caption", "--workdir", tiny_run[0], *arguments)
    assert (status, out) == (1, "")
    assert err.startswith("\nerror: ")
    assert message in err
    assert "Traceback" not in err


def test_no_run(script, photos, tmp_path):
    status, _, err = script("caption", "--workdir", tmp_path / "nothing", photos / "a.png")
    assert status == 1
    assert "config.json" in err
    assert "scripts/train.py" in err


def test_another_vocabulary(script, tiny_run, photos, tmp_path):
    """A tokenizer.json that is not the run's own: the words would be wrong, so nothing is written."""
    workdir = tmp_path / "run"
    shutil.copytree(tiny_run[0], workdir)
    path = workdir / "tokenizer.json"
    content = json.loads(path.read_text())
    content["words"] = content["words"][::-1]
    path.write_text(json.dumps(content))
    status, out, err = script("caption", "--workdir", workdir, photos / "a.png")
    assert (status, out) == (1, "")
    assert "another tokenizer" in err


def test_the_command_itself(photos):
    """--help, and an error's exit status, as a shell sees them."""

    def run(*args):
        return subprocess.run(
            [sys.executable, "scripts/caption.py", *args], cwd=ROOT, capture_output=True, text=True
        )

    done = run("--help")
    assert done.returncode == 0
    assert "--n-best" in done.stdout
    done = run("--workdir", "nowhere", str(photos / "a.png"))
    assert done.returncode == 1
    assert done.stderr.strip().startswith("error: No nowhere/config.json")
    assert done.stdout == ""
