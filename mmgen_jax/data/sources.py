"""Sources: name -> random-access examples {"image": bytes or uint8 array, "captions": list[str], "name"}.

A config says `source = {"name": "jsonl", "path": ..., "split": "train"}`; `make` calls that function.
"""

import glob
import gzip
import itertools
import json
import re
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mmgen_jax.core import registry
from mmgen_jax.data.quarantine import read_bytes

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


class Source(Protocol):
    """What a source offers. `captions` neither reads nor decodes the image where the format allows that."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    def captions(self, index: int) -> list[str]: ...


class Pairs:
    """Images with their captions.

    Args:
      images: images[i] is the encoded image (bytes) or a uint8 array [H, W, 3]; read when it is asked for.
      captions: a list of strings for each image.
      names: what messages call each image.
    """

    def __init__(self, images: Sequence, captions: Sequence[list[str]], names: Sequence[str]):
        self._images, self._captions, self._names = images, captions, names

    def __len__(self) -> int:
        return len(self._captions)

    def __getitem__(self, index: int) -> dict[str, Any]:
        name = self._names[index]  # raises IndexError past the end
        return {"image": self._images[index], "captions": self._captions[index], "name": name}

    def captions(self, index: int) -> list[str]:
        """The captions of an image, without reading it."""
        return self._captions[index]

    def name(self, index: int) -> str:
        """What messages call the image, without reading it."""
        return self._names[index]


class Labelled(Pairs):
    """Pairs that each belong to a class; an example has "label" too, int32.

    Args:
      images, captions, names: see `Pairs`.
      labels: the class of each image, as its position in `classes`.
      classes: the names of the classes.
    """

    def __init__(self, images, captions, names, labels: Sequence[int], classes: Sequence[str]):
        super().__init__(images, captions, names)
        self._labels, self.classes = np.asarray(labels, np.int32), list(classes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**super().__getitem__(index), "label": self._labels[index]}

    def label(self, index: int) -> int:
        """The class of an image, without reading it."""
        return int(self._labels[index])


class Part:
    """A part of a source, chosen by a hash of its examples' names: the same on every machine, and when others are added.

    Args:
      source: it has `name(i)`.
      part: "held out 1/10" is about a tenth of the examples, "but 1/10" are the others.

    Raises:
      ValueError: another text, or a source without names.
    """

    def __init__(self, source: Source, part: str):
        match = re.fullmatch(r"(held out|but) 1/(\d+)", part)
        if not match or int(match[2]) < 2:
            raise ValueError(
                f'part is {part!r}; it is "held out 1/10" or "but 1/10", or with another number.'
            )
        if not hasattr(source, "name"):
            raise ValueError("part goes by the names of the examples, which this source does not have.")
        self._source, held_out, every = source, match[1] == "held out", int(match[2])
        chosen = (zlib.crc32(source.name(i).encode()) % every == 0 for i in range(len(source)))
        self._index = [i for i, held in enumerate(chosen) if held == held_out]
        if hasattr(source, "classes"):
            self.classes = source.classes

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._source[self._index[index]]

    def captions(self, index: int) -> list[str]:
        """The captions of an image, without reading it."""
        return self._source.captions(self._index[index])

    def name(self, index: int) -> str:
        """What messages call the image."""
        return self._source.name(self._index[index])

    def label(self, index: int) -> int:
        """The class of an image, where the source has classes."""
        return self._source.label(self._index[index])


def make(spec: Mapping) -> Source:
    """The source that a config asks for, such as {"name": "jsonl", "path": "a.jsonl", "split": "train"}.

    With "part" any source gives a part of itself, see `Part`, where the data comes without a split of its own.

    Raises:
      ValueError: unknown name or key; the message names the nearest one.
    """
    spec = dict(spec)
    if "name" not in spec:
        raise ValueError(f'A data source needs a "name": {", ".join(SOURCES)}, or tfds:<name>.')
    name, _, dataset = spec.pop("name").partition(":")
    if dataset:
        spec["dataset"] = dataset
    function = registry.choose(SOURCES, name, "data source")
    part = spec.pop("part", None)
    source = scenes(**spec) if function is scenes else registry.call(function, spec, f'data source "{name}"')
    return source if part is None else Part(source, part)


def jsonl(
    *,
    path: str,
    images: str | None = None,
    split: str | None = None,
    image_key: str = "image",
    captions_key: str = "captions",
    split_key: str = "split",
    on_missing: str = "error",
) -> Source:
    """One JSON object a line: {"image": "a.jpg", "captions": ["...", ...], "split": "train"}.

    Args:
      path: the file of JSON lines.
      images: folder that the image paths are relative to; by default the folder of `path`.
      split: take the lines of this split only; None takes all.
      image_key, captions_key, split_key: names of the fields. The captions may also be one string.
      on_missing: what a line without image or without captions gets: "error" or "skip".
    """
    file = _need_file(path, "a file of JSON lines with image, captions and split")
    problems = _Problems(file, on_missing)
    paths, captions, splits = [], [], set()
    for number, line in _lines(file):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{file}, line {number}: broken JSON ({error.msg} at column {error.colno}). "
                "Repair or delete the line; if it is the last one, the file was cut: copy it again."
            ) from None
        if not isinstance(row, dict):
            raise ValueError(f"{file}, line {number}: expected a JSON object {{...}}, found {line[:40]!r}.")
        if split is not None:
            if split_key not in row:
                raise ValueError(
                    f'{file}, line {number}: no field "{split_key}", so split="{split}" cannot be chosen.'
                    f"{registry.nearest(split_key, row)} Set split_key, or leave split out."
                )
            splits.add(row[split_key])
            if row[split_key] != split:
                continue
        where = f"line {number}"
        image = row.get(image_key)
        if not isinstance(image, str) or not image:
            problems.add("captions without image", f'{where}: no "{image_key}"')
            continue
        texts = problems.captions(row.get(captions_key), f"{where} ({image})")
        if texts:
            paths.append(image)
            captions.append(texts)
    problems.report(f'Its fields are called image_key="{image_key}" and captions_key="{captions_key}" here.')
    _check_split(file, split, splits)
    return _pairs(images or file.parent, paths, captions, file)


def parquet(
    *,
    path: str,
    split: str | None = None,
    image: str = "image",
    captions: str | Sequence[str] = "captions",
    image_name: str | None = "name",
    split_column: str = "split",
    label: str | None = None,
    on_missing: str = "error",
) -> Source:
    """A Parquet file, or a folder of them, with the encoded image in each row; the bytes stay in memory.

    Args:
      path: the file or folder. For what does not fit into memory, convert it with scripts/prepare_data.py.
      split: take the rows of this split only; None takes all.
      image: column of image bytes (or of structs with a field "bytes", as the Hugging Face hub has them).
      captions: column of lists of strings, or of strings; several columns are joined.
      image_name: column of names for messages; rows are numbered where it does not exist.
      split_column: column of the split.
      label: column of the class, strings or whole numbers; its sorted values, over all splits, are the classes.
      on_missing: what a row without image, captions or label gets: "error" or "skip".
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    captions = [captions] if isinstance(captions, str) else list(captions)
    file = _need(path, "a Parquet file, or a folder of them, with images and captions")
    parts = sorted(file.glob("*.parquet")) if file.is_dir() else [file]
    if not parts:
        raise FileNotFoundError(f"The folder {file} holds no *.parquet file.")
    try:
        schema = pq.ParquetDataset(parts).schema
        labelled = [label] if label is not None else []
        needed = [image, *captions, *labelled] + ([split_column] if split is not None else [])
        for column in needed:
            if column not in schema.names:
                raise ValueError(f'{file} has no column "{column}".{registry.nearest(column, schema.names)}')
        rows = None
        if split is not None:
            found = pq.read_table(parts, columns=[split_column]).column(split_column)
            _check_split(file, split, found.unique().to_pylist())
            rows = pc.field(split_column) == split
        named = [image_name] if image_name in schema.names else []
        columns = list(dict.fromkeys([image, *captions, *named, *labelled]))
        table = pq.read_table(parts, columns=columns, filters=rows)
        values = pq.read_table(parts, columns=labelled)  # of all splits, so that they agree on the classes
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(
            f"{file} is no whole Parquet file ({error}). If it was cut while copying, copy it again."
        ) from error
    data = table.column(image)
    if pa.types.is_struct(data.type):
        data = pc.struct_field(data, "bytes")
    if not (pa.types.is_binary(data.type) or pa.types.is_large_binary(data.type)):
        raise ValueError(f'{file}: the column "{image}" holds {data.type}, not the bytes of images.')
    texts = [
        list(itertools.chain.from_iterable([part] if isinstance(part, str) else part or () for part in row))
        for row in zip(*(_strings(table.column(column), file) for column in captions), strict=True)
    ]
    names = _strings(table.column(image_name), file) if named else [f"row {i}" for i in range(len(texts))]
    classes = _classes(values.column(label).unique(), file, label) if labelled else {}
    labels = _strings(table.column(label), file) if labelled else [None] * len(texts)
    problems = _Problems(file, on_missing)
    empty = set(np.flatnonzero(data.is_null().to_numpy()).tolist())
    kept, kept_captions = [], []
    for i, (text, name) in enumerate(zip(texts, names, strict=True)):
        if i in empty:
            problems.add("captions without image", f"row {i} ({name})")
            continue
        if labelled and labels[i] is None:
            problems.add("image without label", f"row {i} ({name})")
            continue
        checked = problems.captions(text, f"row {i} ({name})")
        if checked:
            kept.append(i)
            kept_captions.append(checked)
    problems.report()
    pairs = _Column(data, kept), kept_captions, [str(names[i]) for i in kept]
    if not labelled:
        return Pairs(*pairs)
    return Labelled(*pairs, [classes[labels[i]] for i in kept], list(map(str, classes)))


def folder(*, path: str, split: str | None = None, on_missing: str = "error") -> Source:
    """Images with a text file of the same name beside each (a.jpg, a.txt), one caption a line; any depth.

    Args:
      path: the folder.
      split: take this subfolder only.
      on_missing: what an image without text, or a text without image, gets: "error" or "skip".
    """
    root = _need_folder(path, "a folder of images with a .txt of captions beside each")
    if split is not None:
        splits = [child.name for child in root.iterdir() if child.is_dir()]
        _check_split(root, split, splits)
        root = root / split
    files = sorted(file for file in root.rglob("*") if file.is_file())
    texts = {file.with_suffix(""): file for file in files if file.suffix.lower() == ".txt"}
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    problems = _Problems(root, on_missing)
    paired = {file.with_suffix("") for file in images}
    for stem, file in texts.items():
        # README.txt and its like describe the folder, not a picture.
        if stem not in paired and stem.name.lower() not in ("readme", "license", "licence"):
            problems.add("captions without image", str(file.relative_to(root)))
    paths, captions = [], []
    for file in images:
        text = texts.get(file.with_suffix(""))
        if text is None:
            problems.add("image without captions", str(file.relative_to(root)))
            continue
        lines = [line for _, line in _lines(text)]
        checked = problems.captions(lines, str(text.relative_to(root)))
        if checked:
            paths.append(str(file.relative_to(root)))
            captions.append(checked)
    problems.report()
    if not paths:
        raise ValueError(f"{root} holds no image with a .txt beside it ({', '.join(IMAGE_SUFFIXES)}).")
    return _pairs(root, paths, captions, root)


def webdataset(*, path: str, captions_key: str = "caption", on_missing: str = "error") -> Source:
    """Tar files of image-text pairs as WebDataset has them: 17.jpg with 17.txt, or with 17.json, in any order.

    At the start the headers and texts of all files are read. The captions stay in memory, images are read when
    they are asked for, at their place in the tar.

    Args:
      path: a tar file, a folder of *.tar, or a pattern: "pairs/{000..331}.tar", "pairs/*.tar". Not compressed:
        what is in a .tar.gz cannot be read in any order.
      captions_key: field of the .json, a string or a list, for pairs without .txt (which has one caption a line).
      on_missing: what an image without caption, or a caption without image, gets: "error" or "skip".
    """
    files = _tar_files(path)
    problems = _Problems(Path(path), on_missing)
    places, captions, names = [], [], []
    for number, file in enumerate(files):
        for key, parts in _tar_parts(file, problems).items():
            name = f"{file.name}/{key}"
            image = next((parts[suffix] for suffix in IMAGE_SUFFIXES if suffix in parts), None)
            if image is None:
                problems.add("captions without image", name)
                continue
            texts = problems.captions(_tar_captions(parts, captions_key, f"{file}, {key}"), name)
            if texts:
                places.append((number, *image))
                captions.append(texts)
                names.append(name)
    problems.report(f'In a .json the field captions_key="{captions_key}" is read.')
    if not places:
        raise ValueError(f"{path} holds no image with a .txt or .json of the same name.")
    return Pairs(_Members(files, np.array(places, np.int64)), captions, names)


def coco(*, captions: str, images: str, on_missing: str = "error") -> Source:
    """The COCO captions format: captions_train2014.json and the folder train2014.

    Args:
      captions: the annotation file (cocodataset.org, "annotations_trainval").
      images: the folder of the images.
      on_missing: what an image without captions, or captions without an image, get: "error" or "skip".
    """
    file = _need_file(captions, "COCO's captions_<split>.json; cocodataset.org has it")
    content = _read_json(file)
    _need_keys(file, content, {"images": ("id", "file_name"), "annotations": ("image_id", "caption")})
    problems = _Problems(file, on_missing)
    texts: dict[Any, list[str]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        if annotation["image_id"] in texts:
            texts[annotation["image_id"]].append(annotation["caption"])
        else:
            problems.add("captions without image", f"image_id {annotation['image_id']}")
    paths, kept = [], []
    for image in content["images"]:
        checked = problems.captions(texts[image["id"]], image["file_name"])
        if checked:
            paths.append(image["file_name"])
            kept.append(checked)
    problems.report()
    return _pairs(images, paths, kept, file)


def karpathy(
    *, path: str, images: str, split: str | None = None, restval: bool = True, on_missing: str = "error"
) -> Source:
    """The splits of Karpathy & Fei-Fei (2015, arXiv:1412.2306): dataset_{coco,flickr8k,flickr30k}.json.

    Args:
      path: the JSON file.
      images: the folder of the images, or the one above COCO's train2014 and val2014.
      split: "train", "val", "test" (COCO: also "restval"); None takes all.
      restval: count COCO's "restval" with "train", as published results do.
      on_missing: what an image without captions gets: "error" or "skip".
    """
    file = _need_file(path, "Karpathy's dataset_<name>.json")
    content = _read_json(file)
    _need_keys(file, content, {"images": ("filename", "split", "sentences")})
    problems = _Problems(file, on_missing)
    splits = {image["split"] for image in content["images"]}
    _check_split(file, split, splits)
    wanted = {"train", "restval"} if split == "train" and restval else {split}
    paths, captions = [], []
    for image in content["images"]:
        if split is not None and image["split"] not in wanted:
            continue
        checked = problems.captions([s.get("raw") for s in image["sentences"]], image["filename"])
        if checked:
            paths.append(str(Path(image.get("filepath", ""), image["filename"])))
            captions.append(checked)
    problems.report()
    return _pairs(images, paths, captions, file)


def flickr8k(*, tokens: str, images: str, split_list: str | None = None, on_missing: str = "error") -> Source:
    """Flickr8k as its authors gave it out: Flickr8k.token.txt, Flickr_8k.trainImages.txt, the image folder.

    Flickr30k's results_20130124.token has the same form.

    Args:
      tokens: lines "name.jpg#k<tab>caption".
      images: the folder of the images.
      split_list: lines "name.jpg", the images of the split; None takes all.
      on_missing: what an image of the list without captions gets: "error" or "skip".
    """
    file = _need_file(tokens, "Flickr8k.token.txt, with lines name.jpg#0<tab>caption")
    texts: dict[str, list[str]] = {}
    problems = _Problems(file, on_missing)
    for number, line in _lines(file):
        key, tab, text = line.partition("\t")
        name, sign, _ = key.rpartition("#")
        if not tab or not sign:
            raise ValueError(
                f"{file}, line {number}: expected name.jpg#0<tab>caption, found {line[:60]!r}. "
                "If it is the last line, the file was cut: copy it again."
            )
        if problems.captions([text], f"line {number} ({name})"):
            texts.setdefault(name, []).append(text.strip())
    names = list(texts)
    if split_list is not None:
        names = [line.strip() for _, line in _lines(_need_file(split_list, "a list of image names"))]
        names = [name for name in names if name]
        for name in names:
            if name not in texts:
                problems.add("image without captions", f"{name} (in {split_list})")
        names = [name for name in names if name in texts]
    problems.report()
    return _pairs(images, names, [texts[name] for name in names], file)


def idx(
    *,
    images: str,
    labels: str,
    classes: Sequence[str],
    templates: Sequence[str] = ("a picture of {name}",),
) -> Source:
    """The MNIST family: idx files, plain or .gz; each class name is put into every template to make captions.

    Args:
      images: the idx3 file, uint8 [N, H, W].
      labels: the idx1 file, uint8 [N].
      classes: names of the labels 0, 1, ...
      templates: captions with {name} in the place of the class's name.
    """
    for template in templates:
        if "{name}" not in template:
            raise ValueError(
                f"The caption template {template!r} lacks {{name}}, the place of the class name."
            )
    pixels, kinds = _read_idx(images, 3), _read_idx(labels, 1)
    if len(pixels) != len(kinds):
        what = "images without captions" if len(pixels) > len(kinds) else "captions without images"
        raise ValueError(f"{images} has {len(pixels)} images, {labels} has {len(kinds)} labels: {what}.")
    if len(kinds) and kinds.max() >= len(classes):
        raise ValueError(
            f"{labels} has the label {kinds.max()} at index {kinds.argmax()}, but `classes` has only "
            f"{len(classes)} names."
        )
    texts = [[template.format(name=name) for template in templates] for name in classes]
    names = [f"{Path(images).name}[{i}]" for i in range(len(pixels))]
    return Labelled(_Grey(pixels), [texts[kind] for kind in kinds], names, kinds, classes)


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


def scenes(**kwargs: Any) -> Source:
    """The embedded world of drawn scenes: see mmgen_jax.data.scenes.Scenes for the arguments."""
    from mmgen_jax.data.scenes import Scenes

    return registry.call(Scenes, kwargs, 'data source "scenes"')


SOURCES: dict[str, Callable[..., Source]] = {
    f.__name__: f for f in (jsonl, parquet, folder, webdataset, coco, karpathy, flickr8k, idx, tfds, scenes)
}


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


class _Files:
    """Paths below a folder, read when they are asked for."""

    def __init__(self, root: Path, paths: Sequence[str]):
        self._root, self._paths = root, paths

    def __getitem__(self, index: int) -> bytes:
        return read_bytes(self._root / self._paths[index])


class _Members:
    """Parts of files, read when they are asked for. places: int64 [N, 3], the file's number, offset and size."""

    def __init__(self, files: Sequence[Path], places: np.ndarray):
        self._files, self._places = files, places

    def __getitem__(self, index: int) -> bytes:
        number, offset, size = self._places[index].tolist()
        with self._files[number].open("rb") as file:
            file.seek(offset)
            return file.read(size)


def _tar_files(path: str) -> list[Path]:
    """The tar files that a path, a folder or a pattern means, in order."""
    what = "a tar file of image-text pairs, a folder of them, or a pattern such as pairs/{000..331}.tar"
    files = []
    for one in [path] if Path(path).expanduser().exists() else _braces(path):
        found = Path(one).expanduser()
        if re.search(r"[*?[]", one) and not found.exists():
            matches = sorted(map(Path, glob.glob(str(found))))
            if not matches:
                raise FileNotFoundError(
                    f"No file matches {one} (seen from {Path.cwd()}). Expected there: {what}."
                )
            files += matches
        elif _need(one, what).is_dir():
            matches = sorted(found.glob("*.tar"))
            if not matches:
                raise FileNotFoundError(
                    f"The folder {found} holds no *.tar file (compressed ones do not count)."
                )
            files += matches
        else:
            files.append(found)
    return files


def _braces(pattern: str) -> list[str]:
    """As the shell does it: x{08..10} -> x08, x09, x10; x{a,b} -> xa, xb."""
    braces = re.search(r"\{([^{}]*)\}", pattern)
    if not braces:
        return [pattern]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", braces[1])
    options = braces[1].split(",")
    if span:
        options = [str(k).zfill(len(span[1])) for k in range(int(span[1]), int(span[2]) + 1)]
    start, end = pattern[: braces.start()], pattern[braces.end() :]
    return [one for option in options for one in _braces(start + option + end)]


def _tar_parts(file: Path, problems: "_Problems") -> dict[str, dict[str, Any]]:
    """{key: {suffix: (offset, size) of an image, or the bytes of a text}}, in the order of the tar."""
    parts: dict[str, dict[str, Any]] = {}
    length = file.stat().st_size
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                if member.offset_data + member.size > length:
                    raise ValueError(
                        f"{file} is cut: {member.name} begins at byte {member.offset_data} and has {member.size} "
                        f"bytes, the file ends at byte {length}. Copy it again."
                    )
                folder, slash, base = member.name.rpartition("/")
                stem, dot, suffix = base.partition(".")
                suffix = dot + suffix.lower()
                image = suffix in IMAGE_SUFFIXES
                if not (member.isfile() and stem and (image or suffix in (".txt", ".json"))):
                    continue
                own = parts.setdefault(folder + slash + stem, {})
                if suffix in own:
                    problems.add("file written twice", f"{file.name}/{member.name}")
                own[suffix] = (member.offset_data, member.size) if image else tar.extractfile(member).read()
            # tarfile takes anything that is no header for the end; the true end is a block of zeros.
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise ValueError(
                    f"{file} is cut or damaged: at byte {tar.offset} of {length} is neither a file nor the end "
                    "mark of a tar. Copy it again."
                )
    except tarfile.TarError as error:
        raise ValueError(
            f"{file} is no plain tar file ({error}). If it is compressed (.tar.gz), unpack it with gunzip; if it "
            "was cut while copying, copy it again."
        ) from None
    return parts


def _tar_captions(parts: Mapping[str, Any], key: str, where: str) -> Any:
    """The lines of the .txt, or else the field of the .json, or None."""
    if ".txt" in parts:
        return [line for _, line in _split_lines(parts[".txt"], f"{where}.txt")]
    try:
        return json.loads(parts.get(".json", b"{}")).get(key)
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{where}.json is no JSON object ({error}). Repair it, or leave it out.") from None


class _Column:
    """Chosen rows of an Arrow column of bytes."""

    def __init__(self, column, rows: Sequence[int]):
        self._column, self._rows = column, np.asarray(rows, np.int64)

    def __getitem__(self, index: int) -> bytes:
        return self._column[int(self._rows[index])].as_py()


def _strings(column, file: Path) -> list:
    """The values of an Arrow column; text that is not UTF-8 is an error that names its row."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        for row in range(len(column)):
            try:
                column[row].as_py()
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{file}, row {row}: not UTF-8 ({error.object[:40]!r}). Write the column again as UTF-8."
                ) from None
        raise


def _classes(values, file: Path, column: str) -> dict[str | int, int]:
    """The values of an Arrow column of labels, sorted -> {value: its place}."""
    import pyarrow as pa

    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise ValueError(
            f'{file}: the column "{column}" holds {kind}, not labels (strings or whole numbers).'
        )
    found = sorted(value for value in _strings(values, file) if value is not None)
    return {value: k for k, value in enumerate(found)}


class _Grey:
    """Grey images [N, H, W], given out as [H, W, 3]."""

    def __init__(self, pixels: np.ndarray):
        self._pixels = pixels

    def __getitem__(self, index: int) -> np.ndarray:
        return np.repeat(self._pixels[index][:, :, None], 3, axis=-1)


class _Problems:
    """Entries that lack their image or their captions: collected, so that one error tells of all of them."""

    def __init__(self, file: Path, on_missing: str):
        self._skip = registry.choose({"error": False, "skip": True}, on_missing, "value of on_missing")
        self._file, self._found = file, {}

    def add(self, kind: str, where: str) -> None:
        self._found.setdefault(kind, []).append(where)

    def captions(self, value: Any, where: str) -> list[str]:
        """A string or a list of strings -> the captions that are not empty; what is wrong is noted."""
        texts = [value] if isinstance(value, str) else list(value or ())
        if not texts:
            self.add("image without captions", where)
        kept = []
        for k, text in enumerate(texts):
            if not isinstance(text, str):
                self.add("caption that is no text", f"{where}, caption {k + 1}: {text!r}")
            elif not text.strip():
                self.add("empty caption", f"{where}, caption {k + 1}")
            else:
                kept.append(text.strip())
        return kept

    def report(self, hint: str = "") -> None:
        """Raise the error, if there is one, and if they are not to be skipped."""
        if not self._found or self._skip:
            return
        lines = []
        for kind, places in self._found.items():
            more = f", and {len(places) - 5} more" if len(places) > 5 else ""
            lines.append(f"  {kind}: {len(places)} ({'; '.join(places[:5])}{more})")
        remedy = 'Repair these entries, or set on_missing="skip" to leave them out.'
        raise ValueError(
            "\n".join([f"{self._file} has unusable entries:", *lines, f"{remedy} {hint}".strip()])
        )


def _need(path: str | Path, what: str) -> Path:
    found = Path(path).expanduser()
    if not found.exists():
        raise FileNotFoundError(
            f"{path} does not exist (seen from {Path.cwd()}). Expected there: {what}. "
            "Put it there, or set the path in the config."
        )
    return found


def _need_file(path: str | Path, what: str) -> Path:
    found = _need(path, what)
    if not found.is_file():
        raise ValueError(f"{path} is a folder. Expected there: {what}.")
    return found


def _need_folder(path: str | Path, what: str) -> Path:
    found = _need(path, what)
    if not found.is_dir():
        raise ValueError(f"{path} is a file. Expected there: {what}.")
    return found


def _lines(file: Path) -> Iterable[tuple[int, str]]:
    """(line number from 1, text) of each line of a UTF-8 file that is not blank at its end."""
    return _split_lines(file.read_bytes(), file)


def _split_lines(data: bytes, where: str | Path) -> Iterable[tuple[int, str]]:
    """See `_lines`; `where` is what errors call the file."""
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    while lines and not lines[-1].strip():
        lines.pop()
    for number, line in enumerate(lines, 1):
        try:
            yield number, line.decode("utf-8").rstrip("\r")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{where}, line {number}: not UTF-8 (byte {error.object[error.start]:#04x} at column "
                f"{error.start + 1}). Save the file as UTF-8, for example with iconv -f latin1 -t utf-8."
            ) from None


def _read_json(file: Path) -> Any:
    text = "\n".join(line for _, line in _lines(file))
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        cut = error.pos >= len(text.rstrip()) or not text.rstrip().endswith(("}", "]"))
        why = "the file ends in the middle: it was cut, copy it again" if cut else "repair it there"
        raise ValueError(
            f"{file}, line {error.lineno}, column {error.colno} (character {error.pos} of {len(text)}): "
            f"broken JSON, {error.msg}; {why}."
        ) from None


def _need_keys(file: Path, content: Any, keys: Mapping[str, Sequence[str]]) -> None:
    """`content` is an object that has lists of objects with these fields."""
    for key, fields in keys.items():
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise ValueError(f'{file} has no list "{key}": is it the right kind of file?')
        for number, entry in enumerate(content[key]):
            for field in fields:
                if not isinstance(entry, dict) or field not in entry:
                    raise ValueError(f'{file}: entry {number} of "{key}" has no "{field}".')


def _check_split(file: Path, split: str | None, splits: Iterable) -> None:
    names = sorted(map(str, splits))
    if split is not None and split not in names:
        raise ValueError(f'{file} has no split "{split}". It has: {", ".join(names) or "none"}.')


def _pairs(root: str | Path, paths: list[str], captions: list[list[str]], file: Path) -> Pairs:
    """Image files below `root`. One that is absent is quarantined later; if all are, the folder is wrong."""
    root = _need_folder(root, f"the images that {file} names")
    if not paths:
        raise ValueError(f"{file} holds no usable example.")
    if not any((root / path).exists() for path in islice(paths, 32)):
        raise FileNotFoundError(
            f"None of the first images that {file} names is in {root}; expected for example "
            f"{root / paths[0]}. Is that the right folder?"
        )
    return Pairs(_Files(root, paths), captions, paths)


def _read_idx(path: str, dimensions: int) -> np.ndarray:
    """A uint8 idx file with so many dimensions (yann.lecun.com/exdb/mnist), plain or gzip."""
    file = _need_file(path, "an idx file of the MNIST family, such as train-images-idx3-ubyte.gz")
    data = file.read_bytes()
    try:
        if data.startswith(b"\x1f\x8b"):
            data = gzip.decompress(data)
        zeros, kind, rank = struct.unpack_from(">HBB", data)
        if zeros or kind != 8 or rank != dimensions:
            raise ValueError(
                f"{file} is no idx file of unsigned bytes in {dimensions} dimensions (it begins with "
                f"{data[:4].hex(' ')}). Are images and labels swapped?"
            )
        shape = struct.unpack_from(f">{rank}I", data, 4)
    except (EOFError, OSError, struct.error, zlib.error) as error:
        raise ValueError(f"{file} is cut or damaged ({error}). Download it again.") from None
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * rank)
    if values.size != np.prod(shape):
        raise ValueError(
            f"{file} is cut: its header promises {list(shape)} values, it holds {values.size} bytes. "
            "Download it again."
        )
    return values.reshape(shape)
