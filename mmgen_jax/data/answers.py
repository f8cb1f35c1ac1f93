"""The vocabulary of answers: what a classifier of questions chooses from. It is saved as one JSON file."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from mmgen_jax.data.pairs import parse_json
from mmgen_jax.scores import vqa

YES_NO = ("yes", "no")


class Answers:
    """K answers, in the form in which they are compared (see `scores.vqa.normalise`).

    Args:
      words: the answers; answer k is class k.

    Raises:
      ValueError: there is none, or one comes twice.
    """

    def __init__(self, words: Sequence[str]):
        self.words = list(words)
        self._place = {word: k for k, word in enumerate(self.words)}
        if not self.words or len(self._place) < len(self.words):
            raise ValueError(
                f"A vocabulary needs different answers; here are {len(self.words)}, {len(self._place)} of them different."
            )

    @classmethod
    def train(cls, answers: Iterable[str], size: int = 3129, min_count: int = 1) -> "Answers":
        """The `size` most frequent answers, of those that occur at least `min_count` times; the most frequent first.

        With min_count=9 the questions of VQA v2's train and val have 3,129 (Teney et al., 2018, arXiv:1708.02711).

        Raises:
          ValueError: no answer occurs so often.
        """
        if size < 1:
            raise ValueError(f"size is {size}: a vocabulary has at least one answer.")
        counts = Counter(map(vqa.normalise, answers))
        words = sorted(
            (word for word in counts if counts[word] >= min_count), key=lambda word: (-counts[word], word)
        )
        if not words:
            raise ValueError(
                f"No answer occurs {min_count} times ({counts.total()} answers, {len(counts)} different ones): "
                "lower min_count of data.answers, or take a source that has answers."
            )
        return cls(words[:size])

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, answer: str) -> int:
        """The place of an answer in `words`; -1 where it is not there."""
        return self._place.get(vqa.normalise(answer), -1)

    def soft(self, answers: Sequence[str]) -> np.ndarray:
        """float32 [K]: what each answer of the vocabulary would score with these annotators; zeros where none is in it."""
        target = np.zeros(len(self), np.float32)
        for answer, score in vqa.soft_scores(answers).items():
            place = self._place.get(answer)
            if place is not None:
                target[place] = score
        return target

    def save(self, path: str | Path) -> None:
        """Write the vocabulary to `path` as JSON."""
        Path(path).write_text(self._text(), encoding="utf-8")

    @property
    def fingerprint(self) -> str:
        """sha256 of the saved file's content: equal for equal vocabularies only."""
        return hashlib.sha256(self._text().encode("utf-8")).hexdigest()

    def _text(self) -> str:
        return json.dumps({"words": self.words}, ensure_ascii=False, indent=0) + "\n"


def most_said(answers: Sequence[str]) -> str:
    """The answer that most of a question's annotators gave; of several, that which was given first."""
    return Counter(map(vqa.normalise, answers)).most_common(1)[0][0]


def answer_type(answer: str) -> str:
    """ "yes/no", "number" or "other", as VQA calls them; of an answer in its normal form."""
    return "yes/no" if answer in YES_NO else "number" if answer.isdigit() else "other"


def load(path: str | Path) -> Answers:
    """Read a vocabulary that `save` wrote.

    Raises:
      FileNotFoundError, ValueError: the file is absent, cut, or no vocabulary.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"No answers at {path}. Training writes them into its workdir: is that path right?"
        )
    try:
        return Answers(**parse_json(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path} is not a whole vocabulary of answers ({error}). Copy it again from the run that wrote it."
        ) from error
