"""The loader: a stateless stream that any number of processes cuts into the same batches."""

import itertools

import numpy as np
import pytest

from mmgen_jax.data.loader import Examples, loader, stack
from mmgen_jax.data.quarantine import BrokenExample, Quarantine, TooManyBroken


class Numbers:
    """Example i is {"x": i}."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if not 0 <= index < self.length:
            raise IndexError(index)
        return {"x": np.int64(index)}

    def name(self, index):
        return f"number {index}"


def noise(example, rng):
    return {**example, "noise": rng.normal(size=3).astype(np.float32)}


def take(count, *args, **kwargs):
    return list(itertools.islice(loader(*args, **kwargs), count))


def joined(batches):
    """The batches of several processes as the global ones."""
    return [
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in zip(*batches, strict=True)
    ]


def check(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


TRAIN = {"shuffle": True, "repeat": True, "seed": 3}


@pytest.mark.parametrize("kwargs", [TRAIN, {}], ids=["train", "evaluation"])
@pytest.mark.parametrize("processes", [2, 4])
def test_any_number_of_processes_gives_the_same_batches(kwargs, processes):
    args = (Numbers(21), [noise], 8)
    whole = take(7, *args, **kwargs)
    parts = [take(7, *args, process=(i, processes), **kwargs) for i in range(processes)]
    assert len(parts[0][0]["x"]) == 8 // processes
    check(joined(parts), whole)


@pytest.mark.parametrize("step", [1, 3, 5])
@pytest.mark.parametrize("threads", [0, 1, 4])
def test_a_step_is_a_position(step, threads):
    """Starting at a step equals throwing away the batches before it; threads change nothing."""
    args = (Numbers(20), [noise], 8)
    whole = take(8, *args, **TRAIN)
    check(take(8 - step, *args, step=step, threads=threads, **TRAIN), whole[step:])
    check(take(3 - 1, *args, step=1), take(3, *args)[1:])


def test_every_epoch_is_a_new_order_of_everything():
    seen = np.concatenate([batch["x"] for batch in take(6, Numbers(16), [noise], 8, **TRAIN)]).reshape(3, 16)
    for epoch in seen:
        assert sorted(epoch) == list(range(16))
    assert not np.array_equal(seen[0], seen[1]) and not np.array_equal(seen[1], seen[2])
    other = take(2, Numbers(16), [noise], 8, **{**TRAIN, "seed": 4})
    assert not np.array_equal(np.concatenate([batch["x"] for batch in other]), seen[0])


def test_augmentation_differs_between_epochs_and_examples():
    batches = take(4, Numbers(16), [noise], 8, **{**TRAIN, "shuffle": False})
    values = np.concatenate([batch["noise"][:, 0] for batch in batches])
    assert len(set(values)) == 32


def test_the_last_batch_is_padded_and_masked():
    batches = list(loader(Numbers(11), [noise], 4))
    assert [batch["x"].shape for batch in batches] == [(4,)] * 3
    np.testing.assert_array_equal(np.concatenate([batch["mask"] for batch in batches]), [1] * 11 + [0])
    np.testing.assert_array_equal(np.concatenate([batch["index"] for batch in batches]), [*range(11), -1])
    assert batches[-1]["x"][-1] == 0 and batches[-1]["noise"][-1].sum() == 0
    assert batches[0]["mask"].dtype == np.float32 and batches[0]["index"].dtype == np.int32


def test_training_drops_no_example_at_the_end_of_an_epoch():
    """Batches run across epochs, so there is no padding in training."""
    batches = take(3, Numbers(12), [noise], 8, shuffle=False, repeat=True)
    assert all(batch["mask"].all() for batch in batches)
    np.testing.assert_array_equal(np.concatenate([b["x"] for b in batches]), [*range(12)] * 2)


def fail_on(*bad):
    def transform(example, rng):
        if int(example["x"]) in bad:
            raise BrokenExample(f"zero bytes: {example['x']}")
        return example

    return transform


def test_a_broken_example_is_masked_and_listed(tmp_path):
    quarantine = Quarantine(tmp_path / "quarantine.jsonl", 12, max_share=0.5)
    batches = list(loader(Numbers(12), [fail_on(0, 5), noise], 4, quarantine=quarantine))
    whole = list(loader(Numbers(12), [noise], 4))
    for name in ("x", "noise", "index", "mask"):
        left, right = (np.concatenate([batch[name] for batch in b]) for b in (batches, whole))
        assert left.shape == right.shape and left.dtype == right.dtype
        good = np.delete(np.arange(12), [0, 5])
        np.testing.assert_array_equal(left[good], right[good])
    np.testing.assert_array_equal(np.concatenate([b["index"] for b in batches]), np.arange(12))
    np.testing.assert_array_equal(np.flatnonzero(np.concatenate([b["mask"] for b in batches]) == 0), [0, 5])
    text = quarantine.path.read_text()
    assert quarantine.count == 2 and "number 5" in text and "zero bytes: 5" in text


@pytest.mark.parametrize("threads", [0, 2])
def test_too_many_broken_reach_the_consumer(tmp_path, threads):
    quarantine = Quarantine(tmp_path / "quarantine.jsonl", 40, max_share=0.1)
    with pytest.raises(TooManyBroken, match=r"of 40 examples of 'train' are broken"):
        take(20, Numbers(40), [fail_on(*range(0, 40, 2))], 8, quarantine=quarantine, threads=threads, **TRAIN)


def test_without_a_quarantine_a_broken_example_is_an_error():
    with pytest.raises(BrokenExample, match="zero bytes: 5"):
        take(2, Numbers(8), [fail_on(5)], 8)


def test_other_errors_in_a_transform_reach_the_consumer():
    def transform(example, rng):
        raise KeyError("captions")

    with pytest.raises(KeyError, match="captions"):
        take(1, Numbers(8), [transform], 8)


def test_nothing_can_be_read():
    with pytest.raises(ValueError, match="Not one example"):
        _ = Examples(Numbers(3), [fail_on(0, 1, 2)]).empty


def test_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"batch_size=6 does not divide over 4 processes"):
        loader(Numbers(20), [], 6, process=(0, 4))
    with pytest.raises(ValueError, match=r"batch_size=32 is larger than the data set \(20 examples\)"):
        loader(Numbers(20), [], 32, repeat=True)


def test_stack():
    batch = stack([{"x": np.int32(1)}, {"x": np.int32(2)}])
    np.testing.assert_array_equal(batch["x"], [1, 2])
    np.testing.assert_array_equal(stack([{"x": np.int32(1)}, {"x": np.int32(2)}], 5)["x"], [1, 2, 1, 2, 1])
