"""The layout of StackGAN and AttnGAN: lists in pickles that run no code, texts, and the birds' boxes."""

import io
import os
import pickle

import numpy as np
import pytest
from PIL import Image

from mmgen_jax.data import sources
from mmgen_jax.data.quarantine import BrokenExample

NAMES = ["001.Albatross/Albatross_0001", "001.Albatross/Albatross_0002", "002.Auklet/Auklet_0001"]


@pytest.fixture
def birds(tmp_path):
    """Three birds, the third for the test; each pixel's red is its column, its green its row."""
    rows, columns = np.mgrid[:40, :60]
    image = np.stack([columns, rows, 0 * rows], axis=-1).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    for k, name in enumerate(NAMES):
        for folder, suffix, content in (
            ("images", ".jpg", buffer.getvalue()),
            ("text", ".txt", f"bird {k}\n\nthe same bird {k} \n".encode()),
        ):
            file = tmp_path / folder / f"{name}{suffix}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    for split, names in (("train", NAMES[:2]), ("test", NAMES[2:])):
        (tmp_path / split).mkdir()
        (tmp_path / split / "filenames.pickle").write_bytes(pickle.dumps(names, protocol=0))
    folder = tmp_path / "CUB_200_2011"
    folder.mkdir()
    (folder / "images.txt").write_text("".join(f"{k + 1} {name}.jpg\n" for k, name in enumerate(NAMES)))
    (folder / "bounding_boxes.txt").write_text(
        "1 20.0 12.0 8.0 16.0\n2 0.0 0.0 60.0 40.0\n3 50.0 30.0 10.0 10.0\n"
    )
    return tmp_path


def make(path, **more):
    return sources.make({"name": "cub", "path": str(path), **more})


def test_splits_captions_and_names(birds):
    train, test, both = make(birds), make(birds, split="test"), make(birds, split=None)
    assert [train.name(i) for i in range(len(train))] == [f"{name}.jpg" for name in NAMES[:2]]
    assert train.captions(1) == ["bird 1", "the same bird 1"]
    assert test.captions(0) == ["bird 2", "the same bird 2"] and len(test) == 1
    assert [both.name(i) for i in range(3)] == [f"{name}.jpg" for name in NAMES]
    assert train[0]["image"] == (birds / "images" / f"{NAMES[0]}.jpg").read_bytes()


@pytest.mark.parametrize("listing", ["python2", "text", "text_with_suffix"])
def test_other_lists_of_names(birds, listing):
    (birds / "train" / "filenames.pickle").unlink()
    if listing == "python2":  # as Python 2 wrote it: byte strings
        text = "(lp0\n" + "".join(f"S'{name}'\np{k + 1}\na" for k, name in enumerate(NAMES[:2])) + "."
        (birds / "train" / "filenames.pickle").write_text(text)
    else:
        suffix = ".jpg" if listing == "text_with_suffix" else ""
        (birds / "train" / "filenames.txt").write_text("".join(f"{name}{suffix}\n" for name in NAMES[:2]))
    assert [make(birds).name(i) for i in range(2)] == [f"{name}.jpg" for name in NAMES[:2]]


def test_images_of_the_official_archive(birds):
    (birds / "images").rename(birds / "CUB_200_2011" / "images")
    assert make(birds)[0]["image"]


def test_boxes(birds):
    """1.5 times the longer side around the middle, as far as the image reaches."""
    source = make(birds, split=None, boxes="crop")
    corners = []
    for i in range(3):
        image = source[i]["image"]
        assert image.dtype == np.uint8
        corners.append([*image[0, 0, :2].tolist(), *image[-1, -1, :2].tolist()])
    # The first: middle (24, 20), reach 12. The second is whole. The third: middle (55, 35), reach 7.5, cut at the edge.
    assert corners[0] == [12, 8, 35, 31]
    assert corners[1] == [0, 0, 59, 39]
    assert corners[2] == [48, 28, 59, 39]
    assert source.captions(2) == ["bird 2", "the same bird 2"]
    assert pickle.loads(pickle.dumps(source))[0]["image"].shape == (24, 24, 3)


class Attack:
    """What a malicious pickle does when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_runs_no_code(birds):
    file = birds / "train" / "filenames.pickle"
    file.write_bytes(pickle.dumps(Attack(str(birds / "harm"))))
    with pytest.raises(
        ValueError, match=r"no whole pickle of a plain list: it asks for \w+\.mkdir\. Write.*filenames\.txt"
    ):
        make(birds)
    assert not (birds / "harm").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(NAMES)[:-9], r"train.filenames\.pickle is no whole pickle"),
        (b"", "is no whole pickle"),
        (pickle.dumps({"a": 1}), "holds no list of strings but dict"),
        (pickle.dumps([1, 2]), "holds no list of strings but list"),
    ],
)
def test_bad_pickles(birds, content, message):
    (birds / "train" / "filenames.pickle").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        make(birds)


def test_what_is_missing_is_named(birds):
    with pytest.raises(FileNotFoundError, match=r'no folder tset with a list of names\. Did you mean "test"'):
        make(birds, split="tset")
    with pytest.raises(ValueError, match=r'Unknown value of boxes "cut"'):
        make(birds, boxes="cut")
    (birds / "text" / f"{NAMES[0]}.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"image without captions: 1 \(001\.Albatross/Albatross_0001"):
        make(birds)
    assert len(make(birds, on_missing="skip")) == 1
    (birds / "images" / f"{NAMES[2]}.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="None of the first images"):
        make(birds, split="test")
    with pytest.raises(BrokenExample, match="missing file"):
        make(birds, split=None, on_missing="skip", boxes="crop")[1]
    (birds / "train" / "filenames.pickle").unlink()
    with pytest.raises(FileNotFoundError, match=r"filenames\.txt, one a line, does too"):
        make(birds)


def test_bad_boxes(birds):
    file = birds / "CUB_200_2011" / "bounding_boxes.txt"
    file.write_text("1 20.0 12.0 8.0 16.0\n2 0.0 0.0\n")
    with pytest.raises(ValueError, match=r"bounding_boxes\.txt, line 2: expected"):
        make(birds, boxes="crop")
    file.write_text("1 20.0 12.0 8.0 16.0\n")
    with pytest.raises(ValueError, match='boxes="none"'):
        make(birds, boxes="crop")
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r'bounding_boxes\.txt; without it set boxes="none"'):
        make(birds, boxes="crop")
    assert len(make(birds)) == 2
