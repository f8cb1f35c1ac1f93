"""Sources: name -> random-access examples {"image": bytes or uint8 array, "captions": list[str], "name"}.

A config says `source = {"name": "jsonl", "path": ..., "split": "train"}`; `make` calls that function.
"""

import functools
import itertools
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmgen_jax.core import registry
from mmgen_jax.data.clip_questions import ClipQuestions
from mmgen_jax.data.clips import Clips
from mmgen_jax.data.cub import cub
from mmgen_jax.data.idx import idx
from mmgen_jax.data.pairs import (
    IMAGE_SUFFIXES,
    Labelled,
    Pairs,
    Problems,
    Source,
    check_split,
    need,
    need_file,
    need_folder,
    need_keys,
    on_disk,
    read_json,
    read_lines,
    read_rows,
)
from mmgen_jax.data.questions import QUESTIONS
from mmgen_jax.data.relational_scenes import RelationalScenes
from mmgen_jax.data.scene_questions import SceneQuestions
from mmgen_jax.data.scenes import Scenes
from mmgen_jax.data.tfds import tfds
from mmgen_jax.data.toys import Gaussians, StackedDigits
from mmgen_jax.data.video import video_jsonl, video_parquet
from mmgen_jax.data.webdataset import webdataset

ASKED = ("question", "answers", "question_type", "answer_type", "choices", "group", "about")


class Part:
    """A part of a source, chosen by a hash of its examples' names: the same on every machine, and when others are added.

    Where the source has `group(i)`, that is what is hashed: examples of a group, such as an image's questions, stay together.

    Args:
      source: it has `name(i)`.
      part: "held out 1/10" is about a tenth of the examples, "but 1/10" are the others; "held out 1/10, fold 3" is another
        tenth, of the folds 0 (which is meant where none is named) to 9, as a cross-validation takes them in turn.

    Raises:
      ValueError: another text, or a source without names.
    """

    def __init__(self, source: Source, part: str):
        match = re.fullmatch(r"(held out|but) 1/(\d+)(?:, fold (\d+))?", part)
        every, fold = (int(match[2]), int(match[3] or 0)) if match else (0, 0)
        if every < 2 or fold >= every:
            raise ValueError(
                f'part is {part!r}; it is "held out 1/10" or "but 1/10", or with another number; then perhaps ", fold 3", '
                "of as many as the number says, counted from 0."
            )
        if not hasattr(source, "name"):
            raise ValueError("part goes by the names of the examples, which this source does not have.")
        self._source, held_out = source, match[1] == "held out"
        group = source.group if hasattr(source, "group") else source.name
        chosen = (zlib.crc32(group(i).encode()) % every == fold for i in range(len(source)))
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

    def __getattr__(self, name: str) -> Any:
        """What only sources of questions have, where this one has it."""
        if name in ASKED and hasattr(self._source, name):
            return functools.partial(self._ask, name)
        raise AttributeError(f"{type(self).__name__} of this source has no {name}")

    def _ask(self, name: str, index: int) -> Any:
        return getattr(self._source, name)(self._index[index])


class Together:
    """Each question with others about the same picture or clip, so that a tower looks once for several of them.

    An example is the source's, but "question" is a list of `count` questions and "answers" a list of lists: its own, and those
    that follow it among the questions about the same, around; of fewer some come again. All else is said of its own question.

    Args:
      source: it has `about(i)`, which is equal for questions about the same.
      count: at least 2.

    Raises:
      ValueError: a count below 2, or a source without questions.
    """

    def __init__(self, source: Source, count: int):
        if count < 2:
            raise ValueError(f"together is {count}: how many questions about the same, at least 2.")
        if not hasattr(source, "about"):
            raise ValueError(
                "together takes questions about the same picture or clip, which this source does not have. Drawn clips have "
                "per_clip, drawn scenes per_image."
            )
        same: dict[int, list[int]] = {}
        for i in range(len(source)):
            same.setdefault(source.about(i), []).append(i)
        place = {i: k for group in same.values() for k, i in enumerate(group)}
        self._source, self._count, self._same, self._place = source, count, same, place

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self._source[index]
        same = self._same[self._source.about(index)]
        first = self._place[int(index)]
        chosen = [same[(first + k) % len(same)] for k in range(self._count)]
        questions = [self._source.question(i) for i in chosen]
        return {**example, "question": questions, "answers": [self._source.answers(i) for i in chosen]}

    def __getattr__(self, name: str) -> Any:
        """What the source says of the example's own question."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._source, name)


def make(spec: Mapping) -> Source:
    """The source that a config asks for, such as {"name": "jsonl", "path": "a.jsonl", "split": "train"}.

    With "part" any source gives a part of itself, see `Part`, where the data comes without a split of its own; with "together" a
    source of questions several about the same at once, see `Together`.

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
    part, together = spec.pop("part", None), spec.pop("together", None)
    source = registry.call(function, spec, f'data source "{name}"')
    if part is not None:
        source = Part(source, part)
    return source if together is None else Together(source, together)


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
    file = need_file(path, "a file of JSON lines with image, captions and split")
    problems = Problems(file, on_missing)
    paths, captions = [], []
    for number, row in read_rows(file, split, split_key):
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
    return on_disk(images or file.parent, paths, captions, file)


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
    file = need(path, "a Parquet file, or a folder of them, with images and captions")
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
            check_split(file, split, found.unique().to_pylist())
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
    problems = Problems(file, on_missing)
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
    root = need_folder(path, "a folder of images with a .txt of captions beside each")
    if split is not None:
        splits = [child.name for child in root.iterdir() if child.is_dir()]
        check_split(root, split, splits)
        root = root / split
    files = sorted(file for file in root.rglob("*") if file.is_file())
    texts = {file.with_suffix(""): file for file in files if file.suffix.lower() == ".txt"}
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    problems = Problems(root, on_missing)
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
        lines = [line for _, line in read_lines(text)]
        checked = problems.captions(lines, str(text.relative_to(root)))
        if checked:
            paths.append(str(file.relative_to(root)))
            captions.append(checked)
    problems.report()
    if not paths:
        raise ValueError(f"{root} holds no image with a .txt beside it ({', '.join(IMAGE_SUFFIXES)}).")
    return on_disk(root, paths, captions, root)


def coco(*, captions: str, images: str, on_missing: str = "error") -> Source:
    """The COCO captions format: captions_train2014.json and the folder train2014.

    Args:
      captions: the annotation file (cocodataset.org, "annotations_trainval").
      images: the folder of the images.
      on_missing: what an image without captions, or captions without an image, get: "error" or "skip".
    """
    file = need_file(captions, "COCO's captions_<split>.json; cocodataset.org has it")
    content = read_json(file)
    need_keys(file, content, {"images": ("id", "file_name"), "annotations": ("image_id", "caption")})
    problems = Problems(file, on_missing)
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
    return on_disk(images, paths, kept, file)


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
    file = need_file(path, "Karpathy's dataset_<name>.json")
    content = read_json(file)
    need_keys(file, content, {"images": ("filename", "split", "sentences")})
    problems = Problems(file, on_missing)
    splits = {image["split"] for image in content["images"]}
    check_split(file, split, splits)
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
    return on_disk(images, paths, captions, file)


def flickr8k(*, tokens: str, images: str, split_list: str | None = None, on_missing: str = "error") -> Source:
    """Flickr8k as its authors gave it out: Flickr8k.token.txt, Flickr_8k.trainImages.txt, the image folder.

    Flickr30k's results_20130124.token has the same form.

    Args:
      tokens: lines "name.jpg#k<tab>caption".
      images: the folder of the images.
      split_list: lines "name.jpg", the images of the split; None takes all.
      on_missing: what an image of the list without captions gets: "error" or "skip".
    """
    file = need_file(tokens, "Flickr8k.token.txt, with lines name.jpg#0<tab>caption")
    texts: dict[str, list[str]] = {}
    problems = Problems(file, on_missing)
    for number, line in read_lines(file):
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
        names = [line.strip() for _, line in read_lines(need_file(split_list, "a list of image names"))]
        names = [name for name in names if name]
        for name in names:
            if name not in texts:
                problems.add("image without captions", f"{name} (in {split_list})")
        names = [name for name in names if name in texts]
    problems.report()
    return on_disk(images, names, [texts[name] for name in names], file)


SOURCES: dict[str, Callable[..., Source]] = {
    **{f.__name__: f for f in (jsonl, parquet, folder, webdataset, coco, karpathy, flickr8k, cub, idx, tfds)},
    **QUESTIONS,
    **{f.__name__: f for f in (video_jsonl, video_parquet)},
    "scenes": Scenes,
    "scene_questions": SceneQuestions,
    "relational_scenes": RelationalScenes,
    "clips": Clips,
    "clip_questions": ClipQuestions,
    "gaussians": Gaussians,
    "stacked_digits": StackedDigits,
}


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
