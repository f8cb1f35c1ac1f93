"""loader(source, transforms, batch_size, step): a stateless stream of batches."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from mmgen_jax.data.quarantine import BrokenExample, Quarantine

Transform = Callable[[dict, np.random.Generator], dict]
Batch = dict[str, np.ndarray]


class Examples:
    """Turns an index into a finished example; a broken one, and padding, into an empty one with mask 0.

    Args:
      source: random access to raw examples.
      transforms: applied in order.
      quarantine: takes the broken ones.
    """

    def __init__(self, source: Any, transforms: Sequence[Transform], quarantine: Quarantine | None = None):
        self.source, self.transforms, self.quarantine = source, transforms, quarantine
        self._empty: dict | None = None
        self._lock = threading.Lock()

    def __call__(self, index: int, rng: np.random.Generator) -> dict:
        if index >= len(self.source):
            return self.empty
        try:
            example = self._transform(self.source[index], rng)
        except BrokenExample as broken:
            if self.quarantine is None:
                raise
            name = self.source.name(index) if hasattr(self.source, "name") else f"example {index}"
            self.quarantine.add(index, name, str(broken))
            return {**self.empty, "index": np.int32(index)}
        return {**example, "mask": np.float32(1.0), "index": np.int32(index)}

    def _transform(self, example: dict, rng: np.random.Generator) -> dict:
        for transform in self.transforms:
            example = transform(example, rng)
        return example

    @property
    def empty(self) -> dict:
        """Zeros in the shapes of a real example, so that a batch's shape never changes."""
        with self._lock:
            if self._empty is None:
                self._empty = self._make_empty()
            return self._empty

    def _make_empty(self) -> dict:
        for index in range(len(self.source)):
            try:
                example = self._transform(self.source[index], np.random.default_rng(0))
            except BrokenExample:
                continue
            zeros = {name: np.zeros_like(value) for name, value in example.items()}
            return {**zeros, "mask": np.float32(0.0), "index": np.int32(-1)}
        raise ValueError("Not one example of the data set can be read.")


class _Slice(grain.MapDataset):
    """One process's rows of every global batch: its contiguous part, so that the whole batch has one order."""

    def __init__(self, parent: grain.MapDataset, batch_size: int, index: int, count: int):
        super().__init__(parent)
        self._batch, self._local, self._index = batch_size, batch_size // count, index

    def __len__(self) -> int:
        return len(self._parent) // self._batch * self._local

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        batch, row = divmod(index, self._local)
        return self._parent[batch * self._batch + self._index * self._local + row]


def loader(
    source: Any,
    transforms: Sequence[Transform],
    batch_size: int,
    *,
    step: int = 0,
    seed: int = 0,
    shuffle: bool = False,
    repeat: bool = False,
    process: tuple[int, int] = (0, 1),
    threads: int = 2,
    prefetch: int = 3,
    quarantine: Quarantine | None = None,
) -> Iterator[Batch]:
    """Batches from `step` on. The position is `step` alone: order, epochs and augmentation are functions of an index.

    Args:
      source, transforms, quarantine: see `Examples`.
      batch_size: N, over all processes.
      step: the first batch.
      seed: of the order and the augmentation.
      shuffle: a new order each epoch.
      repeat: go on for ever; otherwise one pass, whose last batch is padded with examples of mask 0.
      process: (index, count). Each gets its rows of the same global batches, whatever the count.
      threads: decode so many batches side by side, off the main thread.
      prefetch: batches to hold ready.

    Yields:
      {name: [N / count, ...]}, with "mask" float32 and "index" int32 beside what the transforms made.

    Raises:
      ValueError: batch_size does not divide over the processes, or an epoch is smaller than one batch.
    """
    index, count = process
    if batch_size % count:
        raise ValueError(f"batch_size={batch_size} does not divide over {count} processes.")
    length = len(source)
    if repeat and length < batch_size:
        raise ValueError(f"batch_size={batch_size} is larger than the data set ({length} examples).")
    padded = length if repeat else -(-length // batch_size) * batch_size
    data = grain.MapDataset.range(padded).seed(seed)
    if shuffle:
        data = data.shuffle()
    if repeat:
        data = data.repeat()
    data = data.random_map(Examples(source, transforms, quarantine))
    data = _Slice(data, batch_size, index, count)
    data = data.batch(batch_size // count)[step:]
    return iter(data.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)))


def stack(examples: Sequence[Mapping[str, Any]], size: int = 0) -> Batch:
    """Examples as one batch, for a handful that need no loader; repeated up to `size`, so that a batch's shape never changes."""
    rows = [examples[i % len(examples)] for i in range(max(size, len(examples)))]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
