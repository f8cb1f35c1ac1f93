"""Attention pictures: their size, their rows, and that the lamp shines where the model looked. Contact sheets."""

import numpy as np
import pytest
from PIL import Image

from mmgen_jax import figures
from mmgen_jax.scores.classification import Calibration

GREEN = np.full((32, 32, 3), (0, 200, 0), np.uint8)


def weights(words, place, positions=16):
    maps = np.zeros((words, positions), np.float32)
    maps[:, place] = 1
    return maps


def draw(path, captions, place=0, **options):
    maps = [weights(len(words) + 3, place) for words in captions]
    figures.attention(path, [GREEN] * len(captions), captions, maps, **options)
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"), np.float32)


def test_rows_and_size(tmp_path):
    one = draw(tmp_path / "new" / "one.png", [["a", "red", "star"]])
    three = draw(tmp_path / "three.png", [["a", "red", "star"]] * 3)
    assert three.shape[0] > 2 * one.shape[0]
    assert three.shape[1] == one.shape[1]
    wide = draw(tmp_path / "wide.png", [["word"] * 12])
    # A long caption takes a second line.
    long = draw(tmp_path / "long.png", [["word"] * 13])
    assert long.shape[1] == wide.shape[1] > one.shape[1]
    assert long.shape[0] > 1.5 * wide.shape[0]


def test_an_empty_caption_and_odd_characters(tmp_path):
    image = draw(tmp_path / "x.png", [[], ["$x_", "100%", "\\n", "a^b"]], titles=["", "$ _ ^ { 100% \\"])
    assert image.shape[0] > 150


@pytest.mark.parametrize("place", [0, 3, 12, 15])
def test_light_falls_where_the_model_looked(tmp_path, place):
    """The brightest quarter of the word's map is the one with all the weight."""
    image = draw(tmp_path / "x.png", [["word"]], place=place)
    # Only the picture and its map are green; the map is what comes after the last gap.
    green = np.flatnonzero((image[..., 1] - image[..., 0] > 20).any(axis=0))
    first = green[np.flatnonzero(np.diff(green) > 1)[-1] + 1]
    rows = np.flatnonzero((image[:, first:, 1] - image[:, first:, 0] > 20).any(axis=1))
    box = image[rows[0] : rows[-1] + 1, first : green[-1] + 1, 1]
    top, left = box.shape[0] // 2, box.shape[1] // 2
    means = [part.mean() for half in (box[:top], box[top:]) for part in (half[:, :left], half[:, left:])]
    assert int(np.argmax(means)) == {0: 0, 3: 1, 12: 2, 15: 3}[place]
    assert max(means) > 2 * min(means)


@pytest.mark.parametrize(
    ("positions", "ratio", "grid"),
    [(64, 1.0, (8, 8)), (96, 64 / 96, (8, 12)), (12, 4 / 3, (4, 3)), (49, 0.5, (7, 7))],
)
def test_grids_of_pictures_that_are_not_square(positions, ratio, grid):
    assert figures._grid(positions, ratio) == grid


def test_a_wide_picture(tmp_path):
    image = np.zeros((20, 40, 3), np.uint8)
    figures.attention(tmp_path / "x.png", [image], [["word"]], [np.ones((1, 8), np.float32)])
    assert (tmp_path / "x.png").stat().st_size > 1000


def test_a_clip_is_lit_in_the_frame_and_at_the_place_that_was_looked_at(tmp_path):
    """Rows of frames: the clip, then one a word; a map of the third frame's upper left quarter, then one of all alike."""
    clip, maps = np.stack([GREEN] * 5), np.zeros((4, 5, 4), np.float32)
    maps[0, 2, 0], maps[1] = 0.3, 0.01
    path = figures.film(tmp_path / "new" / "film.png", clip, ["one", "two"], maps, "the title")
    with Image.open(path) as image:
        green = np.asarray(image, np.float32)[:, 200:, 1] - np.asarray(image, np.float32)[:, 200:, 0]
    rows = green.reshape(green.shape[0], -1).max(axis=1) > 20
    tops = np.flatnonzero(np.diff(rows.astype(int)) == 1) + 1
    assert len(tops) == 3
    columns = np.flatnonzero(np.diff((green[tops[0]] > 20).astype(int)) == 1) + 1

    def brightness(row, frame, down=0, right=0):
        return green[tops[row] + 16 + 32 * down, columns[frame] + 16 + 32 * right]

    assert [brightness(0, frame) for frame in range(5)] == [200] * 5
    assert (
        brightness(1, 2) > 150 and brightness(1, 2, 1, 1) < 60 and brightness(1, 1) == brightness(1, 3) == 30
    )
    assert [brightness(2, frame, 1) for frame in range(5)] == [200] * 5


def sheet(path, rows, titles=None, captions=None, marks=None):
    titles = titles or [f"row {i}" for i in range(len(rows))]
    captions = captions or [["a text"] * len(row) for row in rows]
    figures.contact_sheet(path, rows, titles, captions, marks)
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"), np.float32)


def frames(image):
    """The columns of pixels that have much of the frame's colour."""
    colour = 255 * np.array(figures.FRAME)
    return (np.abs(image - colour).max(axis=2) < 2).sum(axis=0)


def test_rows_of_a_contact_sheet(tmp_path):
    one = sheet(tmp_path / "new" / "one.png", [[GREEN] * 4])
    three = sheet(tmp_path / "three.png", [[GREEN] * 4, [GREEN], []])
    wide = sheet(tmp_path / "wide.png", [[GREEN] * 8])
    assert three.shape[1] == one.shape[1] < wide.shape[1]
    assert 2 * one.shape[0] < three.shape[0] < 4 * one.shape[0]
    # Long captions are wrapped and cut, and get the room that they need.
    long = sheet(tmp_path / "long.png", [[GREEN] * 4], captions=[["word " * 99] * 4])
    assert one.shape[0] < long.shape[0] < 2 * one.shape[0]


def test_right_answers_are_framed(tmp_path):
    picture = np.full((20, 30, 3), 200, np.uint8)
    assert frames(sheet(tmp_path / "none.png", [[picture] * 4])).max() == 0
    found = frames(sheet(tmp_path / "last.png", [[picture] * 4], marks=[[False, False, False, True]]))
    first = np.flatnonzero(found)[0]
    assert 0.7 * len(found) < first < len(found)


def test_a_contact_sheet_of_odd_things(tmp_path):
    pictures = [np.zeros((4, 90, 3), np.uint8), np.zeros((90, 4, 3), np.uint8), np.zeros((1, 1, 3), np.uint8)]
    image = sheet(
        tmp_path / "x.png", [pictures, [GREEN]], ["$ _ ^ { 100% \\", ""], [["", "$x", "a" * 200], ["\\n"]]
    )
    assert image.shape[0] > 300
    sheet(tmp_path / "nothing.png", [[]])


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_a_grid_of_samples(tmp_path):
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (3, 4, 32, 32, 3), np.uint8)
    captions = ["a red circle", "word " * 99, "$x_ \\"]
    sheet = pixels(figures.sample_grid(tmp_path / "new" / "x.png", rows, captions))
    plain = pixels(figures.sample_grid(tmp_path / "y.png", rows))
    # The samples are there twice as large, each pixel as it is; the captions stand to their left.
    np.testing.assert_array_equal(sheet[:, -plain.shape[1] :], plain)
    for i, k in ((0, 0), (1, 2), (2, 3)):
        top, left = 3 + 67 * i, 3 + 67 * k
        np.testing.assert_array_equal(plain[top : top + 64 : 2, left : left + 64 : 2], rows[i, k])
    text = sheet[:, : -plain.shape[1]]
    assert all((text[67 * i : 67 * i + 60] < 100).any() for i in range(3))
    assert (text[:, -3:] == 255).all(), "long captions stay in their column"
    # Large samples are shrunk.
    large = pixels(figures.sample_grid(tmp_path / "z.png", np.zeros((1, 2, 256, 128, 3), np.uint8)))
    assert large.shape[:2] == (134, 137)


def test_an_animation(tmp_path):
    for k, grey in enumerate((0, 100, 200)):
        size = (40, 30) if k else (20, 15)
        Image.new("RGB", size, (grey, grey, 40)).save(tmp_path / f"{k}.png")
    files = [tmp_path / f"{k}.png" for k in range(3)]
    figures.animation(tmp_path / "new" / "x.gif", files, ["step 1", "step 2", "step 3"])
    with Image.open(tmp_path / "new" / "x.gif") as movie:
        assert (movie.n_frames, movie.size) == (3, (40, 54))
        seen, times = [], []
        for k in range(3):
            movie.seek(k)
            seen.append(movie.convert("RGB").getpixel((20, 40)))
            times.append(movie.info["duration"])
    np.testing.assert_allclose(seen, [(0, 0, 40), (100, 100, 40), (200, 200, 40)], atol=6)
    assert times == [400, 400, 2000]
    # One picture alone.
    figures.animation(tmp_path / "y.gif", files[:1], ["step 1"])


def test_points_and_their_modes(tmp_path):
    modes = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
    points = modes[np.arange(300) % 3] + 0.02 * np.random.default_rng(0).normal(size=(300, 2))
    found = pixels(figures.scatter(tmp_path / "new" / "x.png", points, modes, 0.05))
    lost = pixels(figures.scatter(tmp_path / "y.png", points, modes, 0.05, np.array([True, False, True])))

    def red(image):
        return (image[..., 0].astype(int) - image[..., 1] > 100).sum()

    assert red(found) == 0 < red(lost)
    # Points far away are told, and do not make the picture smaller.
    points[0], points[1], points[2] = 1e6, np.inf, np.nan
    far = pixels(figures.scatter(tmp_path / "z.png", points, modes, 0.05))
    assert far.shape == found.shape


def test_curves(tmp_path):
    """A panel for each score that was measured at two steps or more; null, text and single points do no harm."""
    rows = [
        {
            "step": k,
            "time": 1.0,
            "train/loss": 1 / k,
            "val/loss": None if k == 2 else 2.0,
            "val/$x$": k,
            "a": 1,
        }
        for k in range(1, 5)
    ]
    one = figures.curves(tmp_path / "figures" / "curves.png", [*rows, {"step": 9, "test/once": 1.0}])
    two = figures.curves(tmp_path / "few.png", [{"step": 1, "time": 1.0, "train/loss": 3.0}])
    panels = [np.asarray(Image.open(path).convert("L")) for path in (one, two)]
    assert panels[0].shape[1] == 2 * panels[1].shape[1], "two panels, and one that stays empty"
    dark = [(panel < 128).mean() for panel in panels]
    assert dark[0] > 0.01 > 0.002 > dark[1], (
        "nothing but the word under the axis where there is nothing to draw"
    )
    assert [path.name for path in one.parent.iterdir()] == ["curves.png"]


@pytest.mark.parametrize("classes", [3, 12, 60])
def test_confusion_and_calibration(tmp_path, classes):
    """The diagonal is dark, and larger matrices have larger pictures."""
    counts = np.eye(classes, dtype=int) * 5
    count = np.zeros(15, int)
    count[-1] = 5 * classes
    right = np.where(count > 0, 1.0, np.nan)
    names = [f"a $ name {k} that goes on for a long time" for k in range(classes)]
    figures.confusion(
        tmp_path / "new" / "x.png", counts, names, Calibration(0.01, 0.99 * right, right, count)
    )
    with Image.open(tmp_path / "new" / "x.png") as image:
        pixels = np.asarray(image.convert("RGB"), int)
    dark = (pixels[..., 2] - pixels[..., 0] > 60) & (pixels[..., 2] < 130)
    left = dark[:, : int(0.6 * dark.shape[1])]
    rows, columns = np.nonzero(left)
    assert np.corrcoef(rows, columns)[0, 1] > 0.8
    assert pixels.shape[0] > (900 if classes == 60 else 300)
