"""The source "tfds": prepared data sets of tensorflow-datasets, read and written without TensorFlow."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmgen_jax.core import registry
from mmgen_jax.data.pairs import Source

VERSION = "1.0.0"  # of the data sets that are written here


def tfds(
    *,
    dataset: str,
    split: str = "train",
    data_dir: str | None = None,
    image: str = "image",
    captions: str = "captions",
    image_name: str = "name",
) -> Source:
    """A TFDS data set with random access, written "tfds:<dataset>" in a config; TensorFlow is not needed.

    Args:
      dataset: name, with /config and :version where wanted. scripts/prepare_data.py makes such data sets.
      split: any of TFDS's split expressions, such as "train[:90%]".
      data_dir: the folder above the data set; by default TFDS's own.
      image, captions: features; "captions/text" goes one level down.
      image_name: feature for messages; examples are numbered where it does not exist.

    Raises:
      FileNotFoundError, ValueError: it is not prepared there, or not as ArrayRecord, or has no such split.
    """
    return _Tfds(dataset, split, data_dir, image, captions, image_name)


class _Tfds:
    """A TFDS data set as a source. Image bytes come as they were written, not decoded."""

    def __init__(self, dataset, split, data_dir, image, captions, image_name):
        builder = _tfds_builder(dataset, data_dir)
        from tensorflow_datasets import decode

        features = builder.info.features
        for key in (image, captions.split("/")[0]):
            if key not in features:
                raise ValueError(f'tfds:{dataset} has no feature "{key}".{registry.nearest(key, features)}')
        try:
            self._data = builder.as_data_source(split=split, decoders={image: decode.SkipDecoding()})
        except NotImplementedError:
            raise ValueError(
                f"{builder.data_dir} is not ArrayRecord, so examples cannot be read in any order. Prepare it "
                f'again with download_and_prepare(file_format="array_record").'
            ) from None
        except (ValueError, KeyError) as error:
            raise ValueError(
                f'tfds:{dataset} has no split "{split}" ({error}). It has: {", ".join(builder.info.splits)}.'
            ) from None
        self._image, self._captions, self._name = image, captions.split("/"), image_name
        self._dataset = f"{dataset}/{split}"

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self._read(index)
        name = example.get(self._name, f"{self._dataset}[{index}]")
        return {
            "image": example[self._image],
            "captions": self._texts(example),
            "name": name.decode() if isinstance(name, bytes) else str(name),
        }

    def captions(self, index: int) -> list[str]:
        """The captions of an image, which is not decoded."""
        return self._texts(self._read(index))

    def _read(self, index: int) -> dict[str, Any]:
        return self._data[range(len(self))[index]]  # raises IndexError past the end

    def _texts(self, example: Any) -> list[str]:
        for key in self._captions:
            example = example[key]
        texts = [example] if isinstance(example, (bytes, str)) else list(example)
        return [text.decode("utf-8") if isinstance(text, bytes) else str(text) for text in texts]


def _tfds_builder(dataset: str, data_dir: str | None):
    """The builder of a prepared data set, from its files alone: no code of the data set is run."""
    from tensorflow_datasets import core
    from tensorflow_datasets.core import read_only_builder

    place = data_dir or "TFDS's default folder (~/tensorflow_datasets)"
    try:
        return read_only_builder.builder_from_files(dataset, data_dir=data_dir)
    except core.DatasetNotFoundError:
        raise FileNotFoundError(
            f"No prepared data set {dataset} in {place}. "
            "Make your own with scripts/prepare_data.py, or one that TFDS knows with "
            f"tensorflow_datasets.builder({dataset!r}, data_dir={data_dir!r})"
            '.download_and_prepare(file_format="array_record"), for which some data sets need TensorFlow.'
        ) from None


def check_names(*names: str) -> None:
    """See that a data set and its split can be called so."""
    for name in names:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise ValueError(f'"{name}" is no good name: use small letters, digits and _, a letter first.')


def features() -> Any:
    """What is written of an example: {"image": bytes, "captions": [strings], "name": string}."""
    from tensorflow_datasets import features

    image = features.Image(shape=(None, None, 3))
    captions = features.Sequence(features.Text())
    return features.FeaturesDict({"image": image, "captions": captions, "name": features.Text()})


def encoder() -> Callable[[dict[str, Any]], bytes]:
    """A function of an example (see `features`) to the record that holds it."""
    return features().serialize_example


def info(folder: Path, name: str) -> Any:
    """The description of a data set that is written to `folder`; a tfds DatasetInfo, still without splits."""
    from tensorflow_datasets import core

    identity = core.DatasetIdentity(
        name=name, version=core.Version(VERSION), data_dir=str(folder), module_name="mmgen_jax"
    )
    description = f"{name}: images with captions, written by mmgen_jax's scripts/prepare_data.py"
    return core.DatasetInfo(builder=identity, description=description, features=features())


def describe(folder: Path, name: str, split: str, lengths: Sequence[int], size: int) -> None:
    """Write features.json and dataset_info.json of a split, whose ArrayRecord files have `lengths` records, `size` bytes in all.

    The files are <name>-<split>.array_record-00000-of-00002 and so on.
    """
    from tensorflow_datasets.core import naming, splits

    described = info(folder, name)
    described.set_file_format("array_record")
    template = naming.ShardedFileTemplate(
        data_dir=folder, dataset_name=name, split=split, filetype_suffix="array_record"
    )
    of_split = splits.SplitInfo(
        name=split, shard_lengths=list(lengths), num_bytes=size, filename_template=template
    )
    described.set_splits(splits.SplitDict([of_split]))
    described.write_to_directory(folder)
