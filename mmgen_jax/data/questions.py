"""Questions about images, in the formats of VQA, DAQUAR, CLEVR, GQA, easy-VQA, SHAPES and NLVR: an example is one question.

{"image": bytes or uint8 array, "question": str, "answers": [str, ...], "question_type": str, "answer_type": str, "name": str}
"""

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmgen_jax.data import pictures
from mmgen_jax.data.answers import answer_type, most_said
from mmgen_jax.data.pairs import (
    Files,
    Problems,
    check_split,
    exists,
    json_lines,
    need,
    need_file,
    need_folder,
    need_keys,
    read_json,
    read_lines,
)
from mmgen_jax.data.quarantine import BrokenExample


class Question(NamedTuple):
    """One question.

    Attributes:
      image: the image's place among the images; until they are there its path, or a number in a file.
      text: the question.
      answers: of all annotators; none where they are secret.
      type: what kind of question it is; "" for its first two words.
      answer_type: "yes/no", "number" or "other"; "" for what its answer looks like.
      choices: answers to choose from, of a multiple choice.
      group: what must not be torn apart by a split; "" for the image.
      where: its place in the file, for messages.
    """

    image: Any
    text: str
    answers: Sequence[str]
    type: str = ""
    answer_type: str = ""
    choices: Sequence[str] = ()
    group: str = ""
    where: str = ""


class Questions:
    """Questions about images, each an example.

    Args:
      images: images[i] is an encoded image (bytes) or a uint8 array [H, W, 3]; read when it is asked for.
      names: what messages call each image.
      questions: whose `image` is a place among these.
    """

    def __init__(self, images: Sequence, names: Sequence[str], questions: Sequence[Question]):
        self._images, self._names, self._questions = images, names, questions

    def __len__(self) -> int:
        return len(self._questions)

    def __getitem__(self, index: int) -> dict[str, Any]:
        asked = self._questions[index]  # raises IndexError past the end
        return {
            "image": self._images[asked.image],
            "question": asked.text,
            "answers": list(asked.answers),
            "question_type": self.question_type(index),
            "answer_type": self.answer_type(index),
            "name": self.name(index),
        }

    def captions(self, index: int) -> list[str]:
        """There are none."""
        del index
        return []

    def question(self, index: int) -> str:
        """The question of `self[index]`, without reading its image; so do the other methods."""
        return self._questions[index].text

    def answers(self, index: int) -> list[str]:
        """The annotators' answers; none where they are secret."""
        return list(self._questions[index].answers)

    def question_type(self, index: int) -> str:
        """What the data set says of it, or else the question's first two words."""
        asked = self._questions[index]
        return asked.type or " ".join(asked.text.lower().split()[:2])

    def answer_type(self, index: int) -> str:
        """What the data set says of it, or else "yes/no", "number" or "other"; "" where the answers are secret."""
        asked = self._questions[index]
        return asked.answer_type or (answer_type(most_said(asked.answers)) if asked.answers else "")

    def name(self, index: int) -> str:
        """What messages call the image."""
        return self._names[self._questions[index].image]

    def about(self, index: int) -> int:
        """The image's place, which is equal for questions about the same."""
        return self._questions[index].image

    def group(self, index: int) -> str:
        """Questions of one group, an image's if nothing else is said, are of the same part; see `sources.Part`."""
        return self._questions[index].group or self.name(index)


class MultipleChoice(Questions):
    """Questions with answers to choose from; an example has "choices" too."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**super().__getitem__(index), "choices": self.choices(index)}

    def choices(self, index: int) -> list[str]:
        """The answers to choose from."""
        return list(self._questions[index].choices)


def vqa(
    *,
    questions: str,
    images: str,
    annotations: str | None = None,
    image_file: str = "COCO_{subtype}_{id:012d}.jpg",
    on_missing: str = "error",
) -> Questions:
    """VQA v1 and v2 (visualqa.org), and what is written in their format.

    Args:
      questions: v2_OpenEnded_mscoco_train2014_questions.json; one with "multiple_choices" gives a multiple choice.
      images: the folder of the images, such as train2014.
      annotations: v2_mscoco_train2014_annotations.json; None where the answers are secret.
      image_file: an image's file, of {id}, its image_id, and {subtype}, the questions' data_subtype. The images of
        "test-dev2015" are called test2015: write "COCO_test2015_{id:012d}.jpg".
      on_missing: what a question without image or annotation, or an annotation without question, gets: "error" or "skip".
    """
    file = need_file(questions, "VQA's ..._questions.json; visualqa.org has it")
    content = read_json(file)
    need_keys(file, content, {"questions": ("question_id", "image_id", "question")})
    problems = Problems(file, on_missing)
    notes: dict[Any, dict] = {}
    if annotations is not None:
        notes_file = need_file(annotations, "VQA's ..._annotations.json; visualqa.org has it")
        said = read_json(notes_file)
        need_keys(notes_file, said, {"annotations": ("question_id", "image_id", "answers")})
        for note in said["annotations"]:
            number = _number(note, notes_file)
            if number in notes:
                problems.add(f"annotation that comes twice in {notes_file}", f"question_id {number}")
            notes[number] = note
    rows, seen = [], set()
    for asked in content["questions"]:
        number = _number(asked, file)
        where, note = f"question_id {number}", notes.get(number)
        if number in seen:
            problems.add("question that comes twice", where)
            continue
        seen.add(number)
        if annotations is not None and note is None:
            problems.add(f"question without annotation in {annotations}", where)
            continue
        if note is not None and note["image_id"] != asked["image_id"]:
            also = f"{where} (image_id {asked['image_id']}, annotated {note['image_id']})"
            problems.add("annotation of another image", also)
            continue
        try:
            path = image_file.format(id=asked["image_id"], subtype=content.get("data_subtype", ""))
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise ValueError(
                f"image_file={image_file!r} is no name for the image_id {asked['image_id']!r} of {file} ({error}); it has the "
                'places {id} and {subtype}, such as "COCO_{subtype}_{id:012d}.jpg" or "{id}.png".'
            ) from None
        more = {"choices": _list(asked.get("multiple_choices")), "where": where}
        if note is None:
            rows.append(Question(path, asked["question"], (), **more))
            continue
        answers = [one.get("answer") if isinstance(one, dict) else one for one in _list(note["answers"])]
        kinds = {"type": note.get("question_type", ""), "answer_type": note.get("answer_type", "")}
        rows.append(Question(path, asked["question"], answers, **kinds, **more))
    for number in notes.keys() - seen:
        problems.add(f"annotation without question in {annotations}", f"question_id {number}")
    return _on_disk(rows, images, file, problems, secret=annotations is None)


def daquar(
    *,
    path: str,
    images: str | None = None,
    split: str | None = None,
    single: bool = False,
    suffix: str = ".png",
    on_missing: str = "error",
) -> Questions:
    """DAQUAR (Malinowski & Fritz, 2014, arXiv:1410.0210): the original text file, or JSON lines.

    An answer of several things, "book, scissor", is one answer. The photographs "image3", "image4", ... are numbered room by
    room, so those of consecutive numbers are of the same part, see `sources.Part`.

    Args:
      path: qa.894.raw.train.txt and the like, a question's line before its answer's; or JSON lines with the keys image,
        question, answer and split.
      images: the folder of the images; by default that of `path`.
      split: take these JSON lines only; None takes all.
      single: leave out the questions whose answer is several things.
      suffix: of the image files that the text calls "image3".
      on_missing: what a question without image or answer gets: "error" or "skip".
    """
    file = need_file(path, "DAQUAR's qa.894.raw.train.txt, or its questions as JSON lines")
    problems, rows, splits = Problems(file, on_missing), [], set()
    if file.suffix == ".jsonl":
        for number, row in json_lines(file):
            splits.add(str(row.get("split")))
            if split is None or row.get("split") == split:
                answers = [row["answer"]] if "answer" in row else []
                rows.append(Question(row.get("image"), row.get("question"), answers, where=f"line {number}"))
        check_split(file, split, splits)
    else:
        check_split(file, split, ())
        lines = [(number, line.strip()) for number, line in read_lines(file)]
        if len(lines) % 2:
            raise ValueError(
                f"{file} has {len(lines)} lines, question and answer in turn: the last answer is cut off. Copy it again."
            )
        for (number, text), (_, said) in zip(lines[::2], lines[1::2], strict=True):
            match = re.fullmatch(r"(.*?)(?: in| on| of)?(?: the)? (image\d+) ?\?", text)
            if not match:
                raise ValueError(
                    f'{file}, line {number}: no "... in the image3 ?" at the end of {text[:60]!r}.'
                )
            rows.append(Question(match[2] + suffix, f"{match[1]} ?", [said], where=f"line {number}"))
    if single:
        rows = [row for row in rows if not any("," in str(said) for said in row.answers)]
    rooms = _rooms({str(row.image) for row in rows})
    rows = [row._replace(group=rooms.get(str(row.image), "")) for row in rows]
    return _on_disk(rows, images or str(file.parent), file, problems)


def clevr(*, questions: str, images: str, on_missing: str = "error") -> Questions:
    """CLEVR (Johnson et al., 2017, arXiv:1612.06890). A question's type is the last step of its program: "count", "query_shape".

    Args:
      questions: CLEVR_train_questions.json; in that of "test" the answers are secret.
      images: the folder with the images of all splits, train/CLEVR_train_000000.png.
      on_missing: what a question without image gets: "error" or "skip".
    """
    file = need_file(questions, "CLEVR_<split>_questions.json")
    content = read_json(file)
    need_keys(file, content, {"questions": ("image_filename", "question", "split")})
    rows = []
    for number, asked in enumerate(content["questions"]):
        steps = [step for step in _list(asked.get("program")) if isinstance(step, dict)]
        last = steps[-1] if steps else {}
        rows.append(
            Question(
                f"{asked['split']}/{asked['image_filename']}",
                asked["question"],
                [asked["answer"]] if "answer" in asked else (),
                type=last.get("function") or last.get("type") or "",
                where=f"question {number}",
            )
        )
    return _on_disk(
        rows, images, file, Problems(file, on_missing), secret=not any(row.answers for row in rows)
    )


def gqa(*, questions: str, images: str, suffix: str = ".jpg", on_missing: str = "error") -> Questions:
    """GQA (Hudson & Manning, 2019, arXiv:1902.09506). A question's type is its structure: "query", "verify", "compare".

    Args:
      questions: train_balanced_questions.json and the like, or a folder of such files, as train_all_questions is one.
      images: the folder of the images, 2370799.jpg.
      suffix: of the image files.
      on_missing: what a question without image gets: "error" or "skip".
    """
    found = need(questions, "GQA's <split>_questions.json, or the folder of its parts")
    files = sorted(found.glob("*.json")) if found.is_dir() else [found]
    problems, rows = Problems(found, on_missing), []
    for file in files:
        content = read_json(file)
        if not isinstance(content, dict):
            raise ValueError(
                f"{file} holds no object of questions by their number: is it the right kind of file?"
            )
        for number, asked in content.items():
            for key in ("imageId", "question"):
                if not isinstance(asked, dict) or key not in asked:
                    raise ValueError(f'{file}: the question {number} has no "{key}".')
            answers = [asked["answer"]] if "answer" in asked else ()
            kinds = asked.get("types")
            kind = kinds.get("structural") if isinstance(kinds, dict) else ""
            image = f"{asked['imageId']}{suffix}"
            rows.append(Question(image, asked["question"], answers, type=kind, where=f"question {number}"))
    return _on_disk(rows, images, found, problems, secret=not any(row.answers for row in rows))


def easy_vqa(*, path: str, split: str | None = None, on_missing: str = "error") -> Questions:
    """easy-VQA (github.com/vzhou842/easy-VQA): shapes in colours, 13 answers.

    Args:
      path: its folder of a split, with questions.json and images/0.png; or a Parquet file with a row an image: image (bytes),
        image_id, questions and answers (lists) and split.
      split: take these rows of the Parquet file only; None takes all.
      on_missing: what a question without image or answer gets: "error" or "skip".
    """
    root = need(path, "easy-VQA's folder of a split, or a Parquet file of its images with their questions")
    problems = Problems(root, on_missing)
    if root.is_dir():
        check_split(root, split, ())
        file = need_file(root / "questions.json", "easy-VQA's questions, [[question, answer, image], ...]")
        content = read_json(file)
        if not isinstance(content, list) or not all(
            isinstance(row, list) and len(row) == 3 for row in content
        ):
            raise ValueError(f"{file} is no list of [question, answer, image]: is it the right kind of file?")
        rows = [
            Question(f"{image}.png", text, [said], where=f"question {number}")
            for number, (text, said, image) in enumerate(content)
        ]
        return _on_disk(rows, str(root / "images"), file, problems)
    table = _table(root, ("image", "image_id", "questions", "answers", "split"), split)
    rows = []
    for k, (texts, answers) in enumerate(zip(table["questions"], table["answers"], strict=True)):
        texts, answers = _list(texts), _list(answers)
        if len(texts) != len(answers):
            problems.add(
                "questions and answers that do not match", f"row {k} ({len(texts)} and {len(answers)})"
            )
            continue
        rows += [Question(k, q, [a], where=f"row {k}") for q, a in zip(texts, answers, strict=True)]
    names = [f"{root.name}/{number}" for number in table["image_id"]]
    return _in_memory(rows, table["image"], names, root, problems)


def shapes_vqa(*, path: str, split: str, on_missing: str = "error") -> Questions:
    """SHAPES (Andreas et al., 2016, arXiv:1511.02799) as <split>_images.npz and <split>_qa.jsonl.

    Args:
      path: the folder. The archive has "images", uint8 [N, H, W, 3]; a line has index (of its image), question and answer.
      split: "train", "val".
      on_missing: what a question without image or answer gets: "error" or "skip".
    """
    root = need_folder(path, "<split>_images.npz and <split>_qa.jsonl")
    check_split(root, split, [file.name.removesuffix("_qa.jsonl") for file in root.glob("*_qa.jsonl")])
    file = root / f"{split}_qa.jsonl"
    archive = need_file(root / f"{split}_images.npz", "the images that the questions are about")
    try:
        with archive.open("rb") as opened, np.load(opened) as content:
            images = content["images"]
    except Exception as error:  # zipfile and numpy raise all sorts of things on damaged files
        raise ValueError(f'{archive} is no whole archive with "images" ({error}). Copy it again.') from error
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(
            f'{archive}: "images" must be uint8 [N, H, W, 3], not {images.dtype} {list(images.shape)}.'
        )
    rows = [
        Question(
            row.get("index"),
            row.get("question"),
            [row["answer"]] if "answer" in row else [],
            where=f"line {number}",
        )
        for number, row in json_lines(file)
    ]
    names = [f"{archive.name}[{k}]" for k in range(len(images))]
    return _in_memory(rows, images, names, file, Problems(file, on_missing))


def nlvr(
    *,
    path: str,
    images: str | None = None,
    split: str | None = None,
    orders: int = 6,
    on_missing: str = "error",
) -> Questions:
    """NLVR (Suhr et al., 2017): a statement about three boxes of shapes, to be answered "true" or "false".

    Parts of it (see `sources.Part`) share neither a statement nor a picture: what has the same words, or the same three boxes in
    whatever order, is of one group.

    Args:
      path: its dev.json, JSON lines; or a Parquet file with the columns image (bytes), name, sentence, label (bool) and split.
      images: of JSON lines the folder of the images, with 3/dev-1572-0-0.png; by default images/ beside the file.
      split: take these rows of the Parquet file only; None takes all.
      orders: how many of the pictures of a statement to take, which show the boxes in the six possible orders.
      on_missing: what a statement without image or label gets: "error" or "skip".
    """
    file = need_file(path, "NLVR's dev.json, or a Parquet file of its images and statements")
    problems = Problems(file, on_missing)
    more = {"type": "statement", "answer_type": "true/false"}
    if file.suffix == ".parquet":
        table = _table(file, ("image", "name", "sentence", "label", "split"), split)
        groups = _together(table["sentence"], map(_boxes, table["image"]))
        rows = [
            Question(k, text, _label(label), group=group, where=f"row {k} ({name})", **more)
            for k, (name, text, label, group) in enumerate(
                zip(table["name"], table["sentence"], table["label"], groups, strict=True)
            )
        ]
        return _in_memory(rows, table["image"], list(map(str, table["name"])), file, problems)
    check_split(file, split, ())
    rows, entries = [], list(json_lines(file))
    for number, row in entries:
        for key in ("identifier", "sentence", "label", "directory"):
            if key not in row:
                raise ValueError(f'{file}, line {number}: no "{key}".')
    drawn = [sorted(map(repr, _list(row.get("structured_rep")))) or row["identifier"] for _, row in entries]
    groups = _together([row["sentence"] for _, row in entries], map(repr, drawn))
    for (number, row), group in zip(entries, groups, strict=True):
        for order in range(orders):
            image = f"{row['directory']}/{file.stem}-{row['identifier']}-{order}.png"
            asked = row["sentence"], _label(row["label"])
            rows.append(Question(image, *asked, group=group, where=f"line {number}", **more))
    return _on_disk(rows, images or str(file.parent / "images"), file, problems)


QUESTIONS: dict[str, Callable[..., Questions]] = {
    f.__name__: f for f in (vqa, daquar, clevr, gqa, easy_vqa, shapes_vqa, nlvr)
}


def _list(value: Any) -> list:
    """A list as it is; anything else is an empty one."""
    return value if isinstance(value, list) else []


def _label(value: Any) -> list[str]:
    """The answer to a statement that is true or false, of either form in which files have it."""
    text = str(value).lower()
    return [text] if text in ("true", "false") else []


def _rooms(images: Iterable[str]) -> dict[str, str]:
    """{"image4.png": "image3"}: the first of the consecutive numbers to which each belongs; images without number have none."""
    numbers = {image: int(match[1]) for image in images if (match := re.search(r"image(\d+)\.\w+$", image))}
    there, begins = set(numbers.values()), {}
    for number in sorted(there):
        begins[number] = begins[number - 1] if number - 1 in there else number
    return {image: f"image{begins[number]}" for image, number in numbers.items()}


def _boxes(image: Any) -> Any:
    """What NLVR's pictures of the same three boxes have in common, in whatever order: 100 pixels wide, with 50 between them."""
    try:
        pixels = np.asarray(pictures.decode(image, 2**20))
    except BrokenExample:
        return repr(image)  # whoever reads it says what is wrong with it
    return tuple(sorted(pixels[:, left : left + 100].tobytes() for left in (0, 150, 300)))


def _together(texts: Sequence[Any], images: Iterable[Any]) -> list[str]:
    """A group for each pair of a text and an image; pairs that share either, or are linked so through others, share it.

    Case and punctuation make no other text. A group is called as its first text.
    """
    first: dict[Any, int] = {}  # what is shared -> the first that has it
    parent = list(range(len(texts)))

    def root(k: int) -> int:
        while parent[k] != k:
            k = parent[k]
        return k

    words = [" ".join(re.findall(r"\w+", str(text).lower())) for text in texts]
    for k, shared in enumerate(zip(words, images, strict=True)):
        for thing in enumerate(shared):
            a, b = sorted((root(first.setdefault(thing, k)), root(k)))
            parent[b] = a
    return [words[root(k)] for k in range(len(texts))]


def _number(entry: dict[str, Any], file: Path) -> int | str:
    """The question_id of a question or an annotation."""
    number = entry["question_id"]
    if not isinstance(number, (int, str)):
        raise ValueError(f"{file}: the question_id {str(number)[:40]!r} is neither a number nor a text.")
    return number


def _table(file: Path, columns: Sequence[str], split: str | None) -> dict[str, list]:
    """The columns of a Parquet file, the rows of `split` alone, as lists; "split" need not be there where none is asked for."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted = [column for column in columns if column != "split" or split is not None]
    try:
        names = pq.read_schema(file).names
        absent = [column for column in wanted if column not in names]
        content = {} if absent else pq.read_table(file, columns=wanted).to_pydict()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{file} is no whole Parquet file ({error}). If it was cut while copying, copy it again."
        ) from error
    if absent:
        raise ValueError(f'{file} has no column "{absent[0]}"; it has: {", ".join(names)}.')
    if split is None:
        return content
    check_split(file, split, set(content["split"]))
    kept = [k for k, own in enumerate(content["split"]) if own == split]
    return {column: [values[k] for k in kept] for column, values in content.items()}


def _on_disk(
    rows: Iterable[Question], root: str, file: Path, problems: Problems, secret: bool = False
) -> Questions:
    """Questions whose images are files below `root`; a question without its file is a problem."""
    folder, rows = need_folder(root, f"the images that {file} names"), list(rows)
    paths = dict.fromkeys(row.image for row in rows if isinstance(row.image, str) and row.image)
    there = {path: k for k, path in enumerate(path for path in paths if exists(folder / path))}
    if paths and not there:
        raise FileNotFoundError(
            f"None of the images that {file} names is in {folder}; expected for example {folder / next(iter(paths))}. Is that "
            "the right folder?"
        )
    return _checked(rows, Files(folder, list(there)), list(there), there.get, file, problems, secret)


def _in_memory(
    rows: Iterable[Question], images: Sequence, names: Sequence[str], file: Path, problems: Problems
) -> Questions:
    """Questions about images that are all here, each by its number; None is no image."""

    def place(number: Any) -> int | None:
        known = isinstance(number, int) and 0 <= number < len(images)
        return number if known and isinstance(images[number], (bytes, np.ndarray)) else None

    return _checked(rows, images, names, place, file, problems, secret=False)


def _checked(
    rows: Iterable[Question],
    images: Sequence,
    names: Sequence[str],
    place: Callable[[Any], int | None],
    file: Path,
    problems: Problems,
    secret: bool,
) -> Questions:
    """The questions that have all they need; one error tells of all others."""
    kept = []
    for row in rows:
        if not isinstance(row.text, str) or not row.text.strip():
            problems.add("image without question", row.where)
            continue
        image = place(row.image) if isinstance(row.image, (str, int)) else None
        if image is None:
            problems.add("question without image", f"{row.where} ({row.image})")
            continue
        answers = [said for said in row.answers if isinstance(said, str) and said.strip()]
        if len(answers) < max(len(row.answers), not secret):
            problems.add("question without answer", f"{row.where} ({row.text[:40]!r})")
            continue
        if not all(isinstance(choice, str) for choice in row.choices):
            problems.add("choice that is no text", row.where)
            continue
        said = {"text": row.text.strip(), "answers": tuple(answer.strip() for answer in answers)}
        kinds = {
            key: value
            for key in ("type", "answer_type", "group")
            if isinstance(value := getattr(row, key), str)
        }
        kept.append(Question(image, **said, **kinds, choices=tuple(row.choices)))
    problems.report()
    if not kept:
        raise ValueError("\n".join([f"{file} holds no usable question.", *problems.found()]))
    return (MultipleChoice if any(row.choices for row in kept) else Questions)(images, names, kept)
