"""Toy sets: the same point for the same index, the modes as published, and no captions."""

import gzip
import itertools
import pickle

import numpy as np
import pytest

from mmgen_jax.data import sources
from mmgen_jax.data.idx import idx_bytes
from mmgen_jax.data.pipeline import Pipeline


@pytest.mark.parametrize(("layout", "count", "std"), [("ring", 8, 0.02), ("grid", 25, 0.05)])
def test_gaussians(layout, count, std):
    source = sources.make({"name": "gaussians", "layout": layout, "length": 4000})
    assert source.modes.shape == (count, 2) and source.std == std
    points = np.array([source[i]["image"][0, 0] for i in range(4000)])
    away = points[:, None] - source.modes[None]
    nearest = np.square(away).sum(axis=-1).argmin(axis=1)
    share = np.bincount(nearest, minlength=count) / 4000
    assert (abs(share - 1 / count) < 5 * np.sqrt(1 / count / 4000)).all()
    offset = away[np.arange(4000), nearest] / std
    assert abs(offset.mean()) < 0.05 and abs(offset.std() - 1) < 0.05


def test_ring_and_grid_are_where_they_should_be():
    ring, grid = (sources.make({"name": "gaussians", "layout": name}).modes for name in ("ring", "grid"))
    np.testing.assert_allclose(np.linalg.norm(ring, axis=1), 2)
    apart = np.linalg.norm(ring[:, None] - ring[None], axis=-1) + 9 * np.eye(8)
    np.testing.assert_allclose(apart.min(axis=1), 4 * np.sin(np.pi / 8))
    assert {tuple(mode) for mode in grid} == set(itertools.product((-4, -2, 0, 2, 4), repeat=2))


def test_a_point_depends_on_seed_and_index_only():
    def make(**more):
        return sources.make({"name": "gaussians", **more})

    source, again = make(), pickle.loads(pickle.dumps(make(length=20)))
    example = source[17]
    assert example["image"].shape == (1, 1, 2) and example["image"].dtype == np.float32
    assert example["name"] == source.name(17) == "gaussians/ring/17"
    np.testing.assert_array_equal(example["image"], again[17]["image"])
    assert (example["image"] != source[18]["image"]).all()
    assert (example["image"] != make(seed=1)[17]["image"]).all()
    np.testing.assert_allclose(example["image"], GOLDEN, rtol=1e-6)
    assert source.captions(17) == []
    wide = make(std=0.5)
    np.testing.assert_allclose(
        wide[17]["image"] - example["image"], (example["image"] - _mode(source, example)) * 24, atol=1e-5
    )


GOLDEN = [[[0.0012346376, 1.9831903]]]


def _mode(source, example):
    return source.modes[np.square(source.modes - example["image"][0, 0]).sum(axis=1).argmin()]


@pytest.mark.parametrize("seed", [0, 1])
def test_gaussians_through_the_pipeline(seed):
    """No captions: the tokenizer is trained on nothing, endless as the source is; points stay floats."""
    pipeline = Pipeline(
        source={"name": "gaussians", "layout": "grid"},
        transforms="array",
        batch_size=8,
        tokenizer={"name": "words"},
        seed=seed,
        shuffle=False,
    )
    batch = next(pipeline.train(0))
    assert batch.keys() == {"image", "mask", "index"}
    assert batch["image"].dtype == np.float32 and batch["image"].shape == (8, 1, 1, 2)
    np.testing.assert_array_equal(batch["image"][3], pipeline.source[3]["image"])
    assert pipeline.tokenizer.encode("a word") == [3, 3]


def digits(tmp_path, count=20, **more):
    """Digit k is an image of brightness 10 k + its number."""
    kinds = np.arange(count, dtype=np.uint8) % 10
    pixels = np.broadcast_to(
        (10 * kinds + np.arange(count, dtype=np.uint8) // 10)[:, None, None], (count, 28, 28)
    )
    (tmp_path / "images.gz").write_bytes(gzip.compress(idx_bytes(pixels)))
    (tmp_path / "labels").write_bytes(idx_bytes(kinds))
    files = {"images": str(tmp_path / "images.gz"), "labels": str(tmp_path / "labels"), **more}
    return sources.make({"name": "stacked_digits", **files})


def test_stacked_digits(tmp_path):
    source = digits(tmp_path)
    seen = set()
    for i in range(300):
        example = source[i]
        assert example["image"].shape == (28, 28, 3) and example["image"].dtype == np.uint8
        assert example["label"].shape == (3,) and example["label"].dtype == np.int32
        np.testing.assert_array_equal(example["image"][5, 7] // 10, example["label"])
        np.testing.assert_array_equal(source.label(i), example["label"])
        seen.add(tuple(example["label"]))
    assert len(seen) > 200
    assert source.captions(0) == [] and source[3]["name"] == source.name(3) == "stacked_digits/3"
    np.testing.assert_array_equal(digits(tmp_path, length=5)[4]["image"], source[4]["image"])
    assert (source[4]["image"] != digits(tmp_path, seed=2)[4]["image"]).any()


def test_stacked_digits_held_out(tmp_path):
    """The last tenth of the digits is in no stack of the others."""
    train, held_out = (digits(tmp_path, 40, digits=name) for name in ("train", "held_out"))
    levels = [np.unique([source[i]["image"][0, 0] for i in range(300)]) for source in (train, held_out)]
    assert not set(levels[0]) & set(levels[1])
    assert len(levels[0]) == 36 and len(levels[1]) == 4


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"layout": "rng"}, r'Unknown layout of gaussians "rng"\. Did you mean "ring"'),
        ({"std": 0.0}, "a standard deviation is positive"),
        ({"layuot": "ring"}, r'Unknown key "layuot" in data source "gaussians"\. Did you mean "layout"'),
    ],
)
def test_mistakes_are_named(spec, message):
    with pytest.raises(ValueError, match=message):
        sources.make({"name": "gaussians", **spec})


def test_no_such_example(tmp_path):
    for source in (sources.make({"name": "gaussians", "length": 3}), digits(tmp_path, length=3)):
        assert len(source) == 3
        for index in (-1, 3):
            with pytest.raises(IndexError, match=f"no example {index}; the source has 3"):
                source[index]
    with pytest.raises(ValueError, match='Unknown choice of digits "test"'):
        digits(tmp_path, digits="test")
    (tmp_path / "other").write_bytes(idx_bytes(np.array([0, 1], np.uint8)))
    with pytest.raises(ValueError, match=r"has 20 images, .*other has 2 labels"):
        digits(tmp_path, labels=str(tmp_path / "other"))
