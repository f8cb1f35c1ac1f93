"""Pipeline: everything a config's `data` section says, ready to use: source, tokenizer, transforms, loaders."""

import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmgen_jax.core import registry
from mmgen_jax.data import answers as answers_lib
from mmgen_jax.data import sources, text, transforms
from mmgen_jax.data.loader import Batch, Examples, loader
from mmgen_jax.data.quarantine import Quarantine

SHAPES, TOKENIZER, ANSWERS = "example.json", "tokenizer.json", "answers.json"


class Pipeline:
    """The training data of a run, and the loaders of its evaluations. The data is opened when it is first asked for.

    Args:
      source: which data set, see data/sources.py.
      transforms: the pipeline of training, see data/transforms.py.
      batch_size: N, over all processes.
      tokenizer: which to train on the source's captions or questions, see data/text.py; "examples" limits how many are read.
      answers: {"size": 3129}: make a vocabulary of the source's answers, see data/answers.py; "examples" as above. None has none.
      words_from: a run of ours whose tokenizer and answers to take instead, as a start from its weights wants; "" makes new ones.
      shuffle, threads: see data/loader.py.
      max_broken: training stops when a larger share of the examples than this is broken.
      workdir: its tokenizer.json and answers.json are read where they are, and it gets quarantine.jsonl; None has neither.
      seed: of order and augmentation.
      process: (index, count).
      finished: the run is over: what is kept in the workdir does instead of the training data.

    Attributes:
      tokenizer; answers: the vocabulary of answers, or None; context: both, by name, for transforms and tasks.
    """

    def __init__(
        self,
        *,
        source: Mapping[str, Any],
        transforms: str,
        batch_size: int,
        tokenizer: Mapping[str, Any],
        answers: Mapping[str, Any] | None = None,
        words_from: str = "",
        shuffle: bool = True,
        threads: int = 2,
        max_broken: float = 0.05,
        workdir: Path | None = None,
        seed: int = 0,
        process: tuple[int, int] = (0, 1),
        finished: bool = False,
    ):
        self.batch_size, self.seed, self.process, self.workdir = batch_size, seed, process, workdir
        self._shuffle, self._threads, self._max_broken = shuffle, threads, max_broken
        self._spec, self._finished = dict(source), finished
        self._words_from = Path(words_from) if words_from else None
        self.tokenizer = self._tokenizer(dict(tokenizer))
        self.answers = None if answers is None else self._answers(dict(answers))
        self.context = {
            "tokenizer": self.tokenizer,
            **({} if self.answers is None else {"answers": self.answers}),
        }
        self._transforms = self.parse(transforms)

    @functools.cached_property
    def source(self) -> sources.Source:
        """The training examples."""
        return sources.make(self._spec)

    def _kept(self, name: str) -> Path | None:
        """The workdir's own file where it is, or else that of the run whose words these are to be."""
        if self.workdir and (self.workdir / name).exists():
            return self.workdir / name
        return self._words_from and self._words_from / name

    def _tokenizer(self, spec: dict[str, Any]) -> Any:
        """Read the tokenizer that is kept; without one, train it on what is said. Every process trains the same one."""
        path = self._kept(TOKENIZER)
        if path:
            return text.load(path)
        examples = min(spec.pop("examples", len(self.source)), len(self.source))
        if not (examples and _said(self.source, 0)):
            examples = 0  # a source without captions, and it may be endless
        return text.train(spec, (said for i in range(examples) for said in _said(self.source, i)))

    def _answers(self, spec: dict[str, Any]) -> answers_lib.Answers:
        """Read the vocabulary of answers that is kept; without one, make it of what most annotators say of each question."""
        path = self._kept(ANSWERS)
        if path:
            return answers_lib.load(path)
        if not hasattr(self.source, "answers"):
            raise ValueError(
                f'data.answers asks for a vocabulary of answers, and the source "{self._spec["name"]}" has none. Take one '
                "of questions, such as scene_questions (see data/questions.py), or leave data.answers out."
            )
        examples = min(spec.pop("examples", len(self.source)), len(self.source))
        said = (self.source.answers(i) for i in range(examples))
        most = (answers_lib.most_said(answers) for answers in said if answers)
        return registry.call(answers_lib.Answers.train, spec, "data.answers", answers=most)

    def parse(self, pipeline: str) -> list:
        """A pipeline's transforms, with this run's tokenizer and answers."""
        return transforms.parse(pipeline, self.context)

    def quarantine(self, source: Any, name: str) -> Quarantine | None:
        """Where the broken examples of a source are noted, under `name`; None without a workdir."""
        if self.workdir is None:
            return None
        suffix = f".{self.process[0]}" if self.process[0] else ""
        path = self.workdir / f"quarantine{suffix}.jsonl"
        return Quarantine(path, len(source), source=name, max_share=self._max_broken)

    def train(self, step: int, shift: int = 0) -> Iterator[Batch]:
        """Training batches from `step` on, without end. shift: another order and augmentation for each number."""
        return loader(
            self.source,
            self._transforms,
            self.batch_size,
            step=step,
            seed=self.seed + shift,
            shuffle=self._shuffle,
            repeat=True,
            process=self.process,
            threads=self._threads,
            quarantine=self.quarantine(self.source, "train"),
        )

    def example_batch(self) -> Batch:
        """A batch of this process's shape, all zeros, to initialise and compile with; it takes one example's memory."""
        rows = self.batch_size // self.process[1]
        return {
            name: np.broadcast_to(value, (rows, *np.shape(value))) for name, value in self._example.items()
        }

    def save_shapes(self, path: Path) -> None:
        """Write the names, shapes and types of a training example, with which a finished run can do without its data."""
        shapes = {name: [np.shape(value), str(value.dtype)] for name, value in self._example.items()}
        path.write_text(json.dumps(shapes) + "\n", encoding="utf-8")

    @functools.cached_property
    def _example(self) -> dict[str, Any]:
        path = self.workdir / SHAPES if self.workdir else None
        if not (self._finished and path and path.exists()):
            return {**Examples(self.source, self._transforms).empty, "index": np.int32(0)}
        try:
            shapes = json.loads(path.read_text(encoding="utf-8"))
            return {name: np.zeros(shape, dtype) for name, (shape, dtype) in shapes.items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} is not whole ({error}). Delete it: the training data then says what it said."
            ) from error


def _said(source: sources.Source, index: int) -> list[str]:
    """The texts that come with an example: its captions, or its question and the different answers to it."""
    if hasattr(source, "question"):
        return [source.question(index), *dict.fromkeys(source.answers(index))]
    return source.captions(index)
