"""Tokenizers: words, bytes, and byte-pair trained on the captions. Each is saved as one JSON file."""

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mmgen_jax.core import registry

PAD, BOS, EOS, UNK = 0, 1, 2, 3
SPECIALS = 4  # the first id of a real token

# A word keeps its inner hyphens and apostrophes; a clitic that stands alone ("dog 's") is a word too.
_WORD = re.compile(r"'(?:s|re|ve|ll|d|m)\b|\w+(?:[-'\u2019]\w+)*")


class Tokenizer:
    """What every tokenizer does. A subclass has `kind`, `vocab_size`, `_content`, `encode` and `_join`."""

    kind: str
    vocab_size: int

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without BOS, EOS or PAD."""
        raise NotImplementedError

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids` up to the first EOS; PAD, BOS and UNK are dropped.

        Raises:
          ValueError: an id lies outside of the vocabulary.
        """
        kept = []
        for token in map(int, ids):
            if token == EOS:
                break
            if not 0 <= token < self.vocab_size:
                raise ValueError(
                    f"Token {token} is outside of this {self.kind} vocabulary of {self.vocab_size}: "
                    "the ids come from another tokenizer."
                )
            if token >= SPECIALS:
                kept.append(token)
        return self._join(kept)

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The text of each id alone, up to the first EOS: what `decode` joins, for pictures."""
        words = itertools.takewhile(lambda token: token != EOS, map(int, ids))
        return [self._join([token]) for token in words if token >= SPECIALS]

    def save(self, path: str | Path) -> None:
        """Write the tokenizer to `path` as JSON."""
        Path(path).write_text(self._text(), encoding="utf-8")

    @property
    def fingerprint(self) -> str:
        """sha256 of the saved file's content: equal for equal vocabularies only."""
        return hashlib.sha256(self._text().encode("utf-8")).hexdigest()

    def _text(self) -> str:
        return json.dumps({"kind": self.kind, **self._content()}, ensure_ascii=False, indent=0) + "\n"

    def _content(self) -> dict:
        return {}

    def _join(self, ids: list[int]) -> str:
        raise NotImplementedError


class Words(Tokenizer):
    """Lower-case words; punctuation is dropped, words outside of the vocabulary become UNK.

    Args:
      words: the vocabulary; word k has the id SPECIALS + k.
    """

    kind = "words"

    def __init__(self, words: Sequence[str]):
        self.words = list(words)
        self.vocab_size = SPECIALS + len(self.words)
        self._ids = {word: SPECIALS + k for k, word in enumerate(self.words)}

    @classmethod
    def train(cls, captions: Iterable[str], min_count: int = 5) -> "Words":
        """Take the words that occur at least `min_count` times, the most frequent first."""
        counts = Counter(word for caption in captions for word in cls.split(caption))
        words = [word for word, count in counts.items() if count >= min_count]
        if not words:
            raise ValueError(
                f"No word occurs {min_count} times in the captions ({len(counts)} different words): "
                "lower min_count."
            )
        return cls(sorted(words, key=lambda word: (-counts[word], word)))

    @staticmethod
    def split(text: str) -> list[str]:
        """The words of a text, in lower case."""
        return _WORD.findall(text.lower())

    def encode(self, text: str) -> list[int]:
        return [self._ids.get(word, UNK) for word in self.split(text)]

    def _join(self, ids: list[int]) -> str:
        return " ".join(self.words[token - SPECIALS] for token in ids)

    def _content(self) -> dict:
        return {"words": self.words}


class Bytes(Tokenizer):
    """The bytes of the UTF-8 text: lossless, nothing to train."""

    kind = "bytes"
    vocab_size = SPECIALS + 256

    @classmethod
    def train(cls, captions: Iterable[str]) -> "Bytes":
        """The same tokenizer for any captions."""
        return cls()

    def encode(self, text: str) -> list[int]:
        return [SPECIALS + byte for byte in text.encode("utf-8")]

    def _join(self, ids: list[int]) -> str:
        # A model may stop inside of a character; the rest is still readable.
        return bytes(token - SPECIALS for token in ids).decode("utf-8", errors="replace")


class BytePair(Tokenizer):
    """Byte-level byte-pair encoding (Sennrich et al. 2016, arXiv:1508.07909; on bytes as in GPT-2): lossless.

    Args:
      vocab: token -> id, without the specials.
      merges: pairs of tokens, in the order in which they are merged.
    """

    kind = "byte_pair"

    def __init__(self, vocab: Mapping[str, int], merges: Sequence[Sequence[str]]):
        from tokenizers import Tokenizer as Backend
        from tokenizers import decoders, models, pre_tokenizers

        self._vocab = dict(sorted(vocab.items(), key=lambda item: item[1]))
        self._merges = [tuple(pair) for pair in merges]
        self.vocab_size = SPECIALS + len(self._vocab)
        self._backend = Backend(models.BPE(vocab=self._vocab, merges=self._merges))
        self._backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self._backend.decoder = decoders.ByteLevel()

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int = 4096) -> "BytePair":
        """Merge the most frequent pairs until there are `vocab_size` ids (specials too) or none is left."""
        from tokenizers import Tokenizer as Backend
        from tokenizers import models, pre_tokenizers, trainers

        smallest = SPECIALS + 256
        if vocab_size < smallest:
            raise ValueError(
                f"vocab_size must be at least {smallest} (specials and bytes), not {vocab_size}."
            )
        backend = Backend(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        # The specials are ours alone: a caption that contains "<pad>" is text like any other.
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - SPECIALS,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            special_tokens=[],
            show_progress=False,
        )
        backend.train_from_iterator(captions, trainer)
        model = json.loads(backend.to_str())["model"]
        return cls(model["vocab"], model["merges"])

    def encode(self, text: str) -> list[int]:
        return [SPECIALS + token for token in self._backend.encode(text).ids]

    def _join(self, ids: list[int]) -> str:
        return self._backend.decode([token - SPECIALS for token in ids])

    def _content(self) -> dict:
        return {"vocab": self._vocab, "merges": self._merges}


KINDS = {kind.kind: kind for kind in (Words, Bytes, BytePair)}


def train(spec: Mapping, captions: Iterable[str]) -> Tokenizer:
    """Make the tokenizer that a config asks for, such as {"name": "words", "min_count": 5}.

    Raises:
      ValueError: unknown name or key; the message names the nearest one.
    """
    spec = dict(spec)
    if "name" not in spec:
        raise ValueError(f'A tokenizer needs a "name": {", ".join(KINDS)}.')
    kind = registry.choose(KINDS, spec.pop("name"), "tokenizer")
    return registry.call(kind.train, spec, f'tokenizer "{kind.kind}"', captions=captions)


def load(path: str | Path) -> Tokenizer:
    """Read a tokenizer that `save` wrote.

    Raises:
      FileNotFoundError, ValueError: the file is absent, cut, or no tokenizer.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"No tokenizer at {path}. Training writes one into its workdir: is that path right?"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        kind = registry.choose(KINDS, content.pop("kind"), "tokenizer")
        return kind(**content)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path} is not a whole tokenizer ({error}). Copy it again from the run that wrote it."
        ) from error
