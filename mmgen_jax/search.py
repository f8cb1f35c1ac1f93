"""Search a folder of images with a finished dual encoder: embed it once, then ask with words or with a picture."""

import dataclasses
import functools
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from mmgen_jax import figures, image_files
from mmgen_jax.core.checkpoint import checksums
from mmgen_jax.data import text_transforms, transforms
from mmgen_jax.data.loader import stack
from mmgen_jax.data.quarantine import BrokenExample
from mmgen_jax.evaluate import load

BATCH_SIZE = 64
THUMBNAIL = 256  # pixels, the longer side of a picture on the contact sheet
DIGITS = 6  # scores that agree in these are equal: what differs behind them is rounding
MARGIN = 1e-4  # far more than float32 can be wrong in a score


class Hit(NamedTuple):
    """An answer: its rank from 1, the cosine of the angle to the query, and the file."""

    rank: int
    score: float
    path: str


@dataclasses.dataclass(frozen=True)
class Index:
    """The embeddings of a folder's images, in order of path.

    Attributes:
      embeddings: float32 [N, F], unit length.
      paths: N paths below `folder`.
      stamps: N times (modification time in ns, size in bytes), by which a changed file is known.
      folder: absolute.
      made_by: {"step", "weights", "tokenizer"} of the run, see `Embedder`.
    """

    embeddings: np.ndarray
    paths: list[str]
    stamps: list[list[int]]
    folder: str
    made_by: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write it whole or not at all; nothing in the file can execute when it is read."""
        about = {name: getattr(self, name) for name in ("paths", "stamps", "folder", "made_by")}
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        with part.open("wb") as file:
            np.savez(
                file,
                embeddings=self.embeddings,
                about=np.frombuffer(json.dumps(about).encode("ascii"), np.uint8),
            )
        part.replace(path)

    @classmethod
    def read(cls, path: Path) -> "Index":
        """Read what `save` wrote.

        Raises:
          FileNotFoundError, ValueError: there is no such file, or it is no whole index.
        """
        if not path.is_file():
            raise FileNotFoundError(f"No index {path}. `index FOLDER` makes one.")
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                index = cls(embeddings=file["embeddings"], **json.loads(file["about"].tobytes()))
        except Exception as error:  # Damage shows as whatever zip, numpy and JSON happen to raise.
            raise ValueError(
                f"{path} is no whole index ({error}). Delete it, or give another name, and index the folder again."
            ) from error
        return index


class Embedder:
    """The two towers of a finished run, on files and on texts.

    Args:
      workdir, step: see `evaluate.load`.
      batch_size: rows at once, the last batch filled up.

    Attributes:
      made_by: what an index must agree with: {"step": of the checkpoint, "weights" and "tokenizer": fingerprints}.

    Raises:
      ValueError: the run's task has no embeddings.
    """

    def __init__(self, workdir: Path, step: int | None, batch_size: int):
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}; it is at least 1.")
        experiment, params, variables, step = load(workdir, step=step)
        if not {"embed_image", "embed_text"} <= experiment.task.predict.keys():
            raise ValueError(
                f'The run in {workdir} is of the task "{experiment.config.task.name}", which embeds nothing to search with. '
                "Take one of a dual encoder, such as configs/dual_encoder_scenes.py trains."
            )
        self.read = functools.partial(image_files.read, prepare=image_files.preparation(experiment))
        self.batch_size = -(-batch_size // experiment.layout.cuts) * experiment.layout.cuts
        self._predict = experiment.predictor(params, variables)
        self._tokenizer = experiment.pipeline.tokenizer
        self._context = experiment.pipeline.example_batch()["tokens"].shape[-1]
        sums = json.dumps(checksums([params, variables]), sort_keys=True)
        self.made_by = {
            "step": step,
            "weights": hashlib.sha256(sums.encode()).hexdigest(),
            "tokenizer": self._tokenizer.fingerprint,
        }

    def images(self, images: Sequence[np.ndarray], names: Sequence[str]) -> np.ndarray:
        """n x uint8 [H, W, 3], as `read` makes them, and what messages call them -> float32 [n, F]."""
        return self._embed("embed_image", "image", [{"image": image} for image in images], names)

    def files(self, files: Sequence[str]) -> np.ndarray:
        """n images -> float32 [n, F].

        Raises:
          ValueError: one cannot be read.
        """
        images = [self.read(Path(file)) for file in files]
        for file, image in zip(files, images, strict=True):
            if isinstance(image, BrokenExample):
                raise ValueError(f"The image {file} cannot be read: {image}.")
        return self.images(images, files)

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """n texts -> float32 [n, F]. Words that the run never saw, and a text that is cut, are told on stderr.

        Raises:
          ValueError: a text without a word that the vocabulary has.
        """
        read = text_transforms.text(self._context, which="first", tokenizer=self._tokenizer)
        rows = []
        for text in texts:
            unknown = self._tokenizer.unknown(text)
            if len(unknown) == len(self._tokenizer.encode(text)):
                known = (
                    f"the vocabulary has none of its words: {', '.join(unknown)}"
                    if unknown
                    else "it is empty"
                )
                raise ValueError(f'The query "{text}" says nothing to this run: {known}.')
            if unknown:
                print(f'"{text}": not in the vocabulary: {", ".join(unknown)}', file=sys.stderr)
            example = read({"image": None, "captions": [text]}, np.random.default_rng(0))
            if example["cut"][0]:
                kept = self._tokenizer.decode(example["tokens"][0][1:])
                print(f'"{text}": cut to {self._context} tokens: "{kept}"', file=sys.stderr)
            rows.append({"tokens": example["tokens"]})
        return self._embed("embed_text", "text", rows, texts)

    def _embed(self, prediction: str, key: str, rows: Sequence[Mapping], names: Sequence[str]) -> np.ndarray:
        """The embeddings of n rows, in whole batches -> float32 [n, F]."""
        if not rows:
            return np.zeros((0, 0), np.float32)
        found = []
        for first in range(0, len(rows), self.batch_size):
            group = rows[first : first + self.batch_size]
            output, _ = self._predict(prediction, stack(group, self.batch_size))
            found.append(output[key][: len(group)].reshape(len(group), -1))
        embeddings = np.concatenate(found)
        broken = ~np.isfinite(embeddings).all(axis=1)
        if broken.any():
            raise ValueError(
                f"The embedding of {names[broken.argmax()]} is not finite: the weights of step {self.made_by['step']} are no "
                "good. Take an earlier checkpoint with --step, or train again with a lower optimizer.learning_rate."
            )
        return embeddings


def index_folder(
    workdir: Path,
    folder: Path,
    *,
    out: Path | None = None,
    batch_size: int = BATCH_SIZE,
    step: int | None = None,
) -> Index:
    """Embed every image below a folder and keep the index in a file. Images that cannot be read are told on stderr and left out.

    Where the file holds an index of the same folder by the same weights, files that have not changed are not embedded again.

    Args:
      workdir, step: see `evaluate.load`.
      folder: any depth.
      out: the file; default <workdir>/index/<the folder's name>.npz.
      batch_size: images at once.

    Raises:
      FileNotFoundError, ValueError: no image there that can be read, or `out` is something else.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"No folder {folder}: index takes a folder of images.")
    root = str(folder.resolve())
    stamps = {str(file.relative_to(folder)): _stamp(file) for file in image_files.find_images([folder])}
    out = out or workdir / "index" / f"{Path(root).name or 'root'}.npz"
    # An empty file is no index yet: the script has seen that it can be written.
    old = Index.read(out) if out.exists() and out.stat().st_size else None
    if old and old.folder != root:
        raise ValueError(f"{out} is the index of {old.folder}. Give another --out, or delete it.")
    embedder = Embedder(workdir, step, min(batch_size, len(stamps)))
    rows = {}
    if old and not _differs(old.made_by, embedder.made_by):
        known = zip(old.paths, old.stamps, old.embeddings, strict=True)
        rows = {path: row for path, stamp, row in known if stamps.get(path) == stamp}
    kept = len(rows)
    rows.update(_embed_folder(embedder, folder, [path for path in stamps if path not in rows]))
    if not rows:
        raise ValueError(f"Not one of the {len(stamps)} images in {folder} can be read.")
    paths = [path for path in stamps if path in rows]
    embeddings = np.stack([rows[path] for path in paths])
    index = Index(embeddings, paths, [stamps[path] for path in paths], root, embedder.made_by)
    index.save(out)
    print(
        f"{len(rows)} images in {out}: {len(rows) - kept} embedded, {kept} as they were, "
        f"{len(stamps) - len(rows)} skipped"
    )
    return index


def _embed_folder(embedder: Embedder, folder: Path, paths: Sequence[str]) -> dict[str, np.ndarray]:
    """{path: embedding} of the images that can be read; the others are told."""
    rows: dict[str, np.ndarray] = {}
    console = Console(stderr=True, markup=False, emoji=False, highlight=False)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("embed", total=len(paths))
        files = [folder / path for path in paths]
        for group, images in image_files.batches(files, embedder.read, embedder.batch_size):
            good = {}
            for file, image in zip(group, images, strict=True):
                if isinstance(image, BrokenExample):
                    console.print(f"skipped {file}: {image}", soft_wrap=True)
                else:
                    good[str(file.relative_to(folder))] = image
            rows.update(zip(good, embedder.images(list(good.values()), list(good)), strict=True))
            progress.advance(task, len(group))
    return rows


def search(
    workdir: Path,
    queries: Sequence[str],
    *,
    index: Path | None = None,
    k: int = 10,
    picture: Path | None = None,
    step: int | None = None,
) -> list[list[Hit]]:
    """The k nearest images of an index to each query, best first; equal scores in order of path.

    Args:
      workdir, step: see `evaluate.load`.
      queries: texts, and paths of images.
      index: the file; default the only one in <workdir>/index.
      k: how many; all if there are fewer.
      picture: a file for a contact sheet, a line a query.

    Raises:
      FileNotFoundError: no such index, image or run.
      ValueError: an index made by other weights, an image that cannot be read, a text without a known word.
    """
    if k < 1:
        raise ValueError(f"k={k}; it is at least 1.")
    pictured = [_is_image(query) for query in queries]
    path = index or _only_index(workdir)
    found = Index.read(path)
    embedder = Embedder(workdir, step, min(BATCH_SIZE, len(queries)))
    difference = _differs(found.made_by, embedder.made_by)
    if difference:
        raise ValueError(
            f"{path} was made by {difference}. Index the folder again: "
            f"python scripts/search.py --workdir {workdir} index {found.folder}"
        )
    images = iter(embedder.files([query for query, image in zip(queries, pictured, strict=True) if image]))
    texts = iter(embedder.texts([query for query, image in zip(queries, pictured, strict=True) if not image]))
    embeddings = np.stack([next(images if image else texts) for image in pictured])
    hits = [
        [
            Hit(rank, float(score), os.path.join(found.folder, found.paths[row]))
            for rank, (row, score) in enumerate(zip(rows, scores, strict=True), start=1)
        ]
        for rows, scores in nearest(found.embeddings, embeddings, k)
    ]
    if picture:
        _draw(picture, queries, pictured, hits)
    return hits


def nearest(embeddings: np.ndarray, queries: np.ndarray, k: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The k rows with the largest inner product, exact; equal ones in order of row. Through FAISS where it is installed.

    FAISS and a matrix product differ in the last bits and in whom they take of equals. So both only say which rows can be
    among the best; those are scored again, in float64 and each on its own, and then ranked.

    Args:
      embeddings: float32 [N, F].
      queries: float32 [Q, F].

    Yields:
      For each query rows int [min(k, N)] and scores float64 of as many.
    """
    k = min(k, len(embeddings))
    try:
        import faiss
    except ImportError:
        candidates = _by_product(embeddings, queries, k)
    else:
        candidates = _by_faiss(faiss, embeddings, queries, k)
    for query, rows in zip(queries.astype(np.float64), candidates, strict=True):
        # A sum row by row: a matrix product may add up two equal rows in two orders. In parts, should nearly all be equal.
        parts = np.array_split(rows, len(rows) // 4096 + 1)
        scores = np.concatenate([np.sum(embeddings[part] * query[None, :], axis=1) for part in parts])
        scores = np.round(scores, DIGITS)
        order = np.lexsort((rows, -scores))[:k]
        yield rows[order], scores[order]


def _by_product(embeddings: np.ndarray, queries: np.ndarray, k: int) -> Iterator[np.ndarray]:
    for query in queries:
        scores = embeddings @ query
        yield np.flatnonzero(scores >= np.partition(scores, -k)[-k] - MARGIN)


def _by_faiss(faiss: Any, embeddings: np.ndarray, queries: np.ndarray, k: int) -> Iterator[np.ndarray]:
    index = faiss.IndexFlatIP(embeddings.shape[1])
    index.add(embeddings)
    best, _ = index.search(queries, k)
    for query, scores in zip(queries, best, strict=True):
        yield index.range_search(query[None, :], float(scores[-1]) - MARGIN)[2]


def print_hits(queries: Sequence[str], hits: Sequence[Sequence[Hit]], lines: bool = False) -> None:
    """A table a query, or with `lines` one JSON object a hit."""
    # Where nobody looks, in a pipe or a file, a path is never broken over two lines.
    width = None if sys.stdout.isatty() else 10_000
    console = Console(width=width, markup=False, emoji=False, highlight=False)
    for query, found in zip(queries, hits, strict=True):
        if lines:
            for hit in found:
                print(json.dumps({"query": query, **hit._asdict()}, ensure_ascii=False))
            continue
        table = Table(title=query, title_justify="left", title_style="bold")
        table.add_column("rank", justify="right")
        table.add_column("score", justify="right")
        table.add_column("path", overflow="fold")
        for hit in found:
            table.add_row(str(hit.rank), f"{hit.score:.4f}", hit.path)
        console.print(table)


def _stamp(file: Path) -> list[int]:
    stat = file.stat()
    return [stat.st_mtime_ns, stat.st_size]


def _differs(made: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """In what the maker of an index is another than today's run; None if it is the same."""
    if made["tokenizer"] != now["tokenizer"]:
        return "a run with another tokenizer"
    if made["weights"] == now["weights"]:
        return None
    if made["step"] == now["step"]:
        return f"other weights, those of another run's step {made['step']}"
    return f"other weights: step {made['step']}, and this is step {now['step']}"


def _only_index(workdir: Path) -> Path:
    there = sorted((workdir / "index").glob("*.npz"))
    if not there:
        raise FileNotFoundError(
            f"No index in {workdir}/index. Make one: python scripts/search.py --workdir {workdir} index FOLDER"
        )
    if len(there) > 1:
        raise ValueError(f"Several indices; choose one with --index: {', '.join(map(str, there))}.")
    return there[0]


def _is_image(query: str) -> bool:
    """A query is an image if it names a file, or could name nothing else.

    Raises:
      FileNotFoundError: it is written like an image's path, and there is none.
    """
    if os.path.isfile(query):
        return True
    if query.lower().endswith(image_files.SUFFIXES):
        raise FileNotFoundError(f"No image {query}.")
    return False


def _draw(
    path: Path, queries: Sequence[str], pictured: Sequence[bool], hits: Sequence[Sequence[Hit]]
) -> None:
    """The answers to each query in a line; a query that is a picture stands before them."""
    rows, captions = [], []
    for query, image, found in zip(queries, pictured, hits, strict=True):
        files = [query] * image + [hit.path for hit in found]
        rows.append([_thumbnail(Path(file)) for file in files])
        captions.append(["query"] * image + [f"{hit.score:.3f} {Path(hit.path).name}" for hit in found])
    figures.contact_sheet(path, rows, list(queries), captions)


def _thumbnail(path: Path) -> np.ndarray:
    """A small uint8 [H, W, 3]; grey where the file has gone since."""
    image = image_files.read(path, transforms.parse("decode", {}))
    if isinstance(image, BrokenExample):
        return np.full((8, 8, 3), 128, np.uint8)
    small = Image.fromarray(image)
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return np.asarray(small)
