"""Videos: GIFs, folders of frames, sheets of frames, mp4; which frames to take of them; sources that name such files."""

import functools
import io
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from mmgen_jax.core import registry
from mmgen_jax.data import pictures
from mmgen_jax.data.pairs import (
    IMAGE_SUFFIXES,
    Problems,
    Source,
    check_split,
    need_file,
    need_folder,
    read_rows,
)
from mmgen_jax.data.quarantine import BrokenExample, read_bytes

# Of a file, to tell a video cut in its header from something else altogether: where its first bytes are, and these.
_SIGNATURES = (
    (4, b"ftyp"),  # mp4, mov
    (0, b"\x1a\x45\xdf\xa3"),  # webm, mkv
    (8, b"AVI "),
    (0, b"\x00\x00\x01\xb3"),  # mpeg
    (0, b"\x00\x00\x01\xba"),
    (0, b"OggS"),
    (0, b"FLV"),
)


class Sheet(NamedTuple):
    """A picture of all frames, row by row, which may end before the last place.

    Attributes:
      data: the encoded picture, or the path of its file.
      rows, columns: of frames.
      rate: frames a second, or None.
    """

    data: bytes | str | Path
    rows: int
    columns: int
    rate: float | None = None


class Video(Protocol):
    """An opened video: `count` frames, at `rate` a second where that is known."""

    count: int
    rate: float | None

    def take(self, chosen: Sequence[int]) -> np.ndarray:
        """The frames of these numbers, ascending. -> uint8 [len(chosen), H, W, 3]."""


def open_video(value: Any, max_pixels: int = 2**26) -> Video:
    """Open a video without decoding its frames, by its content.

    Args:
      value: uint8 [F, H, W, 3]; the bytes or the path of a GIF, an animated WebP or PNG, or what PyAV reads (mp4, webm, avi,
        mpeg); the path of a folder of numbered pictures; or a `Sheet`.
      max_pixels: a frame that declares more is refused before it is decoded.

    Raises:
      BrokenExample: it is missing, damaged, no video, or has no frames.
      ImportError: it needs PyAV, which is not installed.
    """
    opened: Video
    if isinstance(value, np.ndarray):
        opened = _Array(value)
    elif isinstance(value, Sheet):
        opened = _Tiles(value, max_pixels)
    elif isinstance(value, (str, Path)) and Path(value).is_dir():
        opened = _Folder(Path(value), max_pixels)
    else:
        data = read_bytes(value) if isinstance(value, (str, Path)) else value
        if not data:
            raise BrokenExample("zero bytes")
        streamed = any(data[at : at + len(sign)] == sign for at, sign in _SIGNATURES)
        opened = _Stream(data, max_pixels) if streamed else _Animation(data, max_pixels)
    if opened.count < 1:
        raise BrokenExample("video without frames")
    return opened


def check_array(video: np.ndarray) -> np.ndarray:
    """uint8 [F, H, W, 3] as it is.

    Raises:
      ValueError: it is something else.
    """
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3:
        raise ValueError(f"A video array must be uint8 [F, H, W, 3], not {video.dtype} {list(video.shape)}.")
    return video


def sample(
    video: Video, count: int, rate: float | None = None, rng: np.random.Generator | None = None
) -> np.ndarray:
    """Which frames to take: int64 [count], ascending, or fewer where the video is too short.

    Without a rate one of each of `count` equal parts (Wang et al., 2016, section 3.1): the middle one, or with `rng` any.
    With a rate `count` frames so far apart: from the middle of the video, or with `rng` from a random place.

    Raises:
      ValueError: the video does not say its own rate, or one lower than that asked for.
    """
    if rate is None:
        if video.count < count:
            return np.arange(video.count)
        within = np.full(count, 0.5) if rng is None else rng.random(count)
        # A rounding error must not reach into the next part, nor behind the last frame.
        return np.minimum((np.arange(count) + within) * video.count / count, video.count - 1).astype(np.int64)
    if not video.rate:
        raise ValueError(
            f"frames(rate={rate:g}): the video does not say how many frames a second it has. Leave rate out, or give the "
            "source its own rate."
        )
    step = video.rate / rate
    if step < 1:
        raise ValueError(
            f"frames(rate={rate:g}): the video has {video.rate:g} frames a second. Ask for at most that."
        )
    offsets = (np.arange(count) * step).astype(np.int64)
    spare = video.count - 1 - int(offsets[-1])
    if spare < 0:
        return offsets[offsets < video.count]
    return offsets + (spare // 2 if rng is None else int(rng.integers(spare + 1)))


class _Array:
    rate = None

    def __init__(self, frames: np.ndarray):
        self._frames = check_array(frames)
        self.count = len(frames)

    def take(self, chosen: Sequence[int]) -> np.ndarray:
        return self._frames[np.asarray(chosen, np.int64)]


class _Folder:
    """Pictures in the order of the numbers in their names."""

    rate = None

    def __init__(self, folder: Path, max_pixels: int):
        files = [file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES]
        # "frame10" comes after "frame9".
        self._files = sorted(
            files, key=lambda file: [int(n) if n.isdigit() else n for n in re.split(r"(\d+)", file.name)]
        )
        self._max_pixels, self.count = max_pixels, len(files)

    def take(self, chosen: Sequence[int]) -> np.ndarray:
        return _stack(pictures.decode(read_bytes(self._files[i]), self._max_pixels) for i in chosen)


class _Tiles:
    def __init__(self, sheet: Sheet, max_pixels: int):
        data = sheet.data if isinstance(sheet.data, bytes) else read_bytes(sheet.data)
        image = np.asarray(pictures.decode(data, max_pixels * sheet.rows * sheet.columns))
        height, width = image.shape[:2]
        if height % sheet.rows or width % sheet.columns:
            raise BrokenExample(
                f"no such sheet: {width} x {height} pixels do not divide into {sheet.columns} x {sheet.rows} frames"
            )
        tiles = image.reshape(sheet.rows, height // sheet.rows, sheet.columns, width // sheet.columns, 3)
        self._frames = tiles.swapaxes(1, 2).reshape(-1, height // sheet.rows, width // sheet.columns, 3)
        self.count, self.rate = len(self._frames), sheet.rate

    def take(self, chosen: Sequence[int]) -> np.ndarray:
        return self._frames[np.asarray(chosen, np.int64)]


class _Animation:
    """What Pillow reads. A frame of a GIF that is shown longer counts as several: equal frames are written as one that lasts."""

    def __init__(self, data: bytes, max_pixels: int):
        from PIL import Image

        pictures.decode(data, max_pixels)  # says what is wrong with the first frame, and refuses bombs
        if data.startswith(b"GIF8") and not data.rstrip(b"\0").endswith(b";"):
            raise BrokenExample(
                "truncated: a GIF without its end"
            )  # Pillow would read the frames before the cut
        self._image = Image.open(io.BytesIO(data))
        try:
            count = getattr(self._image, "n_frames", 1)
            duration = self._image.info.get("duration", 0)  # milliseconds, of the first frame
        except Exception as error:  # PIL's plugins raise all sorts of things on damaged files.
            raise BrokenExample(f"truncated or damaged: {error}") from error
        self._shown = np.arange(count)
        delays = _delays(data) if data.startswith(b"GIF8") else []
        if len(delays) == count and any(delays):
            unit = math.gcd(*delays)
            self._shown = np.repeat(self._shown, [max(delay // unit, 1) for delay in delays])
            duration = 10 * unit
        self.count = len(self._shown)
        self.rate = 1000.0 / duration if duration else None

    def take(self, chosen: Sequence[int]) -> np.ndarray:
        def shots() -> Iterator[Any]:
            for i in self._shown[np.asarray(chosen)]:
                self._image.seek(int(i))
                yield pictures.to_rgb(self._image.copy())

        try:
            return _stack(shots())
        except BrokenExample:
            raise
        except Exception as error:
            raise BrokenExample(f"truncated or damaged: {error}") from error


def _delays(data: bytes) -> list[int]:
    """How long each frame of a GIF is shown, in hundredths of a second (CompuServe, GIF89a, sections 17 to 25); [] where damaged.

    Pillow says so only of a frame that it has drawn, and with it all before.
    """

    def table(flags: int) -> int:
        return 3 << (flags & 7) + 1 if flags & 0x80 else 0

    delays, delay = [], 0
    try:
        at = 13 + table(data[10])
        while data[at] != 0x3B:  # the end
            if data[at] == 0x2C:  # a picture
                delays.append(delay)
                delay, at = 0, at + 11 + table(data[at + 9])
            else:  # an extension
                if data[at + 1] == 0xF9:
                    delay = int.from_bytes(data[at + 4 : at + 6], "little")
                at += 2
            while data[at]:  # blocks of so many bytes
                at += data[at] + 1
            at += 1
    except IndexError:
        return []
    return delays


class _Stream:
    """What PyAV reads."""

    def __init__(self, data: bytes, max_pixels: int):
        try:
            import av
        except ImportError as error:
            raise ImportError(
                'Reading mp4 and other video streams needs PyAV: pip install "mmgen_jax[video]". GIFs, folders of frames and '
                "sheets need nothing more."
            ) from error
        self._open, self._error, self._data = av.open, av.error.FFmpegError, data
        try:
            with self._open(io.BytesIO(data)) as container:
                if not container.streams.video:
                    raise BrokenExample("video without frames: it has no video stream, or its end is cut off")
                stream = container.streams.video[0]
                if stream.width * stream.height > max_pixels:
                    raise BrokenExample(
                        f"decompression bomb: {stream.width} x {stream.height} pixels declared, at most {max_pixels}"
                    )
                self.rate = float(stream.average_rate) if stream.average_rate else None
                # A container need not say how many frames there are; its packets are quickly counted.
                self.count = stream.frames or sum(bool(packet.size) for packet in container.demux(stream))
        except self._error as error:
            raise BrokenExample(f"truncated or damaged: {error}") from error

    def take(self, chosen: Sequence[int]) -> np.ndarray:
        wanted, found = set(map(int, chosen)), []
        try:
            with self._open(io.BytesIO(self._data)) as container:
                for i, frame in enumerate(container.decode(video=0)):
                    if i in wanted:
                        found.append(frame.to_ndarray(format="rgb24"))
                    if len(found) == len(wanted):
                        break
        except self._error as error:
            raise BrokenExample(f"truncated or damaged: {error}") from error
        if len(found) < len(wanted):
            raise BrokenExample(f"truncated: {self.count} frames declared, fewer are there")
        return np.stack(found)


def _stack(images: Iterator[Any]) -> np.ndarray:
    frames = [np.asarray(image) for image in images]
    shapes = {frame.shape for frame in frames}
    if len(shapes) > 1:
        sizes = ", ".join(sorted(f"{width} x {height}" for height, width, _ in shapes))
        raise BrokenExample(f"frames of different sizes: {sizes}")
    return np.stack(frames)


# ------------------------------------------------------------------------------------------------- sources


class Videos:
    """Videos with their captions: {"video": what `open_video` opens, "captions": [...], "name": ...}.

    Args:
      videos: videos[i] is opened when it is asked for.
      captions: a list of strings for each.
      names: what messages call each.
    """

    def __init__(self, videos: Sequence, captions: Sequence[list[str]], names: Sequence[str]):
        self._videos, self._captions, self._names = videos, captions, names

    def __len__(self) -> int:
        return len(self._captions)

    def __getitem__(self, index: int) -> dict[str, Any]:
        name = self._names[index]  # raises IndexError past the end
        return {"video": self._videos[index], "captions": self._captions[index], "name": name}

    def captions(self, index: int) -> list[str]:
        """The captions of a video, without reading it."""
        return self._captions[index]

    def name(self, index: int) -> str:
        """What messages call the video."""
        return self._names[index]


class VideoQuestions:
    """Questions about videos: {"video", "question", "answers": [one string], "question_type", "answer_type", "name"}.

    The type of a question is its first two words, as in VQA; that of an answer "yes/no", "number" or "other".

    Args:
      videos: see `Videos`, whose captions are not used.
      asked: (number of the video, question, answer) of each example.
    """

    def __init__(self, videos: Videos, asked: Sequence[tuple[int, str, str]]):
        self._videos, self._asked = videos, asked

    def __len__(self) -> int:
        return len(self._asked)

    def __getitem__(self, index: int) -> dict[str, Any]:
        video, question, answer = self._asked[index]
        return {
            "video": self._videos[video]["video"],
            "question": question,
            "answers": [answer],
            "question_type": self.question_type(index),
            "answer_type": self.answer_type(index),
            "name": self.name(index),
        }

    def question(self, index: int) -> str:
        """The question, without reading its video."""
        return self._asked[index][1]

    def answers(self, index: int) -> list[str]:
        """The answer, without reading the video."""
        return [self._asked[index][2]]

    def question_type(self, index: int) -> str:
        """The first two words."""
        return " ".join(self.question(index).lower().split()[:2])

    def answer_type(self, index: int) -> str:
        """ "yes/no", "number" or "other"."""
        answer = self._asked[index][2].lower()
        return "yes/no" if answer in ("yes", "no") else "number" if answer.isdigit() else "other"

    def captions(self, index: int) -> list[str]:
        """There are none."""
        del index
        return []

    def group(self, index: int) -> str:
        """The video's name, so that a part of the source keeps its questions together."""
        return self._videos.name(self._asked[index][0])

    def about(self, index: int) -> int:
        """The video's place, which is equal for questions about the same."""
        return self._asked[index][0]

    def name(self, index: int) -> str:
        """What messages call the example."""
        return f"{self.group(index)}, question {index}"


class _Files:
    """Paths below a folder as `open_video` takes them."""

    def __init__(self, root: Path, paths: Sequence[str], sheet: Sequence[int] | None, rate: float | None):
        self._root, self._paths = root, paths
        self._wrap = (
            (lambda path: path)
            if sheet is None
            else functools.partial(_as_sheet, sheet=tuple(sheet), rate=rate)
        )

    def __getitem__(self, index: int) -> Any:
        return self._wrap(self._root / self._paths[index])


def _as_sheet(data: Any, *, sheet: tuple[int, int], rate: float | None) -> Sheet:
    return Sheet(data, *sheet, rate)


def video_jsonl(
    *,
    path: str,
    videos: str | None = None,
    split: str | None = None,
    video_key: str = "video",
    captions_key: str = "captions",
    questions_key: str | None = None,
    split_key: str = "split",
    sheet: Sequence[int] | None = None,
    rate: float | None = None,
    on_missing: str = "error",
) -> Source:
    """One JSON object a line: {"video": "a.mp4", "captions": ["...", ...], "split": "train"}.

    Args:
      path: the file of JSON lines.
      videos: folder that the videos' paths are relative to; by default that of `path`. A path is a file or a folder of frames.
      split: take the lines of this split only; None takes all.
      video_key, captions_key, split_key: names of the fields.
      questions_key: field with [{"question": "...", "answer": "..."}, ...]; the source is then one of questions.
      sheet: (rows, columns), where each file is a sheet of frames; rate: how many of its frames are a second.
      on_missing: what a line without video, captions or questions gets: "error" or "skip".
    """
    file = need_file(path, "a file of JSON lines with video, captions and split")
    if sheet is not None and (len(sheet) != 2 or min(sheet) < 1):
        raise ValueError(f"sheet is {list(sheet)}; it is (rows, columns) of frames.")
    problems = Problems(file, on_missing)
    paths: list[str] = []
    captions: list[list[str]] = []
    asked: list[tuple[int, str, str]] = []
    for number, row in read_rows(file, split, split_key):
        where, video = f"line {number}", row.get(video_key)
        if not isinstance(video, str) or not video:
            problems.add("line without video", f'{where}: no "{video_key}"')
            continue
        if questions_key is None:
            said = problems.captions(row.get(captions_key), f"{where} ({video})")
            if not said:
                continue
            captions.append(said)
        else:
            pairs = row.get(questions_key)
            pairs = [
                (pair.get("question"), pair.get("answer")) if isinstance(pair, dict) else (None, None)
                for pair in (pairs if isinstance(pairs, list) else [])
            ]
            asked += _asked(problems, len(paths), pairs, f"{where} ({video})")
            captions.append([])
        paths.append(video)
    keys = f'captions_key="{captions_key}"' if questions_key is None else f'questions_key="{questions_key}"'
    problems.report(f'Its fields are called video_key="{video_key}" and {keys} here.')
    root = need_folder(videos or file.parent, f"the videos that {file} names")
    found = Videos(_Files(root, paths, sheet, rate), captions, paths)
    return _usable(found if questions_key is None else VideoQuestions(found, asked), file)


def video_parquet(
    *,
    path: str,
    video: str,
    split: str | None = None,
    questions: str = "questions",
    answers: str = "answers",
    video_name: str = "video_id",
    split_column: str = "split",
    on_missing: str = "error",
) -> Source:
    """A Parquet file of encoded videos with lists of questions and of their answers, such as easy-VQA-video's.

    Args:
      path: the file; the bytes stay in memory.
      video: column of the videos' bytes, such as GIFs.
      split: take the rows of this split only; None takes all.
      questions, answers: columns of lists of strings, the answers in the questions' order.
      video_name: column of names.
      split_column: column of the split.
      on_missing: what a row without video or questions gets, or one with more questions than answers: "error" or "skip".
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = need_file(path, "a Parquet file with videos, questions and answers")
    try:
        table = pq.read_table(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(
            f"{file} is no whole Parquet file ({error}). If it was cut while copying, copy it again."
        ) from error
    for column in (video, questions, answers, video_name, *([split_column] if split is not None else [])):
        if column not in table.column_names:
            raise ValueError(
                f'{file} has no column "{column}".{registry.nearest(column, table.column_names)}'
            )
    rows = range(len(table))
    if split is not None:
        splits = table.column(split_column).to_pylist()
        check_split(file, split, set(splits))
        rows = [i for i in rows if splits[i] == split]
    problems = Problems(file, on_missing)
    data, names, asked = [], [], []
    columns = [table.column(column).to_pylist() for column in (video, questions, answers, video_name)]
    for i in rows:
        content, texts, said, name = (column[i] for column in columns)
        where = f"row {i} ({name})"
        if not content:
            problems.add("row without video", where)
            continue
        texts, said = list(texts or []), list(said or [])
        if len(texts) != len(said):
            problems.add("questions and answers that do not match", f"{where}: {len(texts)} and {len(said)}")
            continue
        asked += _asked(problems, len(data), list(zip(texts, said, strict=True)), where)
        data.append(content)
        names.append(str(name))
    problems.report()
    return _usable(VideoQuestions(Videos(data, [[]] * len(data), names), asked), file)


def _asked(problems: Problems, video: int, pairs: Sequence[tuple], where: str) -> list[tuple[int, str, str]]:
    """The pairs of question and answer that are whole; what is wrong is noted."""
    if not pairs:
        problems.add("video without questions", where)
    kept = []
    for k, (question, answer) in enumerate(pairs):
        if all(isinstance(text, str) and text.strip() for text in (question, answer)):
            kept.append((video, question.strip(), answer.strip()))
        else:
            problems.add("question without answer, or the reverse", f"{where}, question {k + 1}")
    return kept


def _usable(source: Source, file: Path) -> Source:
    if not len(source):
        raise ValueError(f"{file} holds no usable example.")
    return source
