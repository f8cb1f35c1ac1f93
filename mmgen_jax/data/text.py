"""Tokenizers: words, bytes, and byte-pair trained on the captions, CLIP's and BERT's. Each is saved as one JSON file."""

import hashlib
import html
import itertools
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mmgen_jax.core import registry
from mmgen_jax.data.pairs import gunzip, parse_json

PAD, BOS, EOS, UNK = 0, 1, 2, 3
SPECIALS = 4  # the first id of a real token, but for CLIP's and BERT's

# A word keeps its inner hyphens and apostrophes; a clitic that stands alone ("dog 's") is a word too.
_WORD = re.compile(r"'(?:s|re|ve|ll|d|m)\b|\w+(?:[-'\u2019]\w+)*")

_CLIP_MERGES = 48894
_CLIP_WORD = r"<\|(?:start|end)oftext\|>|'(?:s|t|re|ve|m|ll|d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
_END = "</w>"  # marks the last piece of a word
_INSIDE = "##"  # marks a piece that does not begin a word


class Tokenizer:
    """What every tokenizer does. A subclass has `kind`, `vocab_size`, `_content`, `encode` and `_join`.

    `pad`, `bos` and `eos` are the ids around a text; a tokenizer that comes with published weights has its own.
    """

    kind: str
    vocab_size: int
    pad, bos, eos = PAD, BOS, EOS
    _unread = frozenset({PAD, BOS, UNK})  # ids that stand for no text

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without BOS, EOS or PAD."""
        raise NotImplementedError

    def unknown(self, text: str) -> list[str]:
        """The words of a text that the vocabulary lacks, in order; a lossless tokenizer has none."""
        del text
        return []

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids` up to the first EOS; PAD, BOS and UNK are dropped.

        Raises:
          ValueError: an id lies outside of the vocabulary.
        """
        kept = []
        for token in map(int, ids):
            if token == self.eos:
                break
            if not 0 <= token < self.vocab_size:
                raise ValueError(
                    f"Token {token} is outside of this {self.kind} vocabulary of {self.vocab_size}: "
                    "the ids come from another tokenizer."
                )
            if token not in self._unread:
                kept.append(token)
        return self._join(kept)

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The text of each id alone, up to the first EOS: what `decode` joins, for pictures."""
        words = itertools.takewhile(lambda token: token != self.eos, map(int, ids))
        return [self._join([token]) for token in words if token not in self._unread]

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
        """Take the words that occur at least `min_count` times, the most frequent first; none where there are no captions."""
        counts = Counter(word for caption in captions for word in cls.split(caption))
        words = [word for word, count in counts.items() if count >= min_count]
        if counts and not words:
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

    def unknown(self, text: str) -> list[str]:
        return [word for word in self.split(text) if word not in self._ids]

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


class Clip(Tokenizer):
    """CLIP's byte-pair encoding of lower-case text (Radford et al. 2021, arXiv:2103.00020, section 2.4).

    It gives the ids that the published weights know: pieces 0 .. 49405, bos 49406, eos 49407; texts are padded
    with 0, as OpenAI does. The ids equal those of `transformers`' CLIPTokenizer, which takes a text as it is, up
    to NFC, white space and case; also here a written "<|endoftext|>" is that token. OpenAI's own code first
    repairs broken encodings and typography (the package ftfy) and resolves HTML entities twice; `unescape`
    does the latter.

    Args:
      merges: the pairs "left right" in the order in which they are merged; the pieces follow from them.
      unescape: read "&lt;", and "&amp;lt;" too, as "<", for captions from web pages.
    """

    kind = "clip"
    vocab_size = 49408
    pad, bos, eos = 0, 49406, 49407
    _unread = frozenset({bos})  # the pad has a piece's id ("!"); it only ever follows eos

    def __init__(self, merges: Sequence[str], unescape: bool = False):
        from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
        from tokenizers import Tokenizer as Backend

        self._merges, self._unescape = list(merges), unescape
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())  # one for each byte
        specials = ["<|startoftext|>", "<|endoftext|>"]
        joined = [merge.replace(" ", "") for merge in self._merges]
        pieces = [*letters, *(letter + _END for letter in letters), *joined, *specials]
        self._vocab = {piece: k for k, piece in enumerate(pieces)}
        if not len(self._vocab) == len(pieces) == self.vocab_size:
            raise ValueError(f"{len(self._merges)} merges instead of CLIP's {_CLIP_MERGES}, all different")
        pairs = [tuple(merge.split(" ")) for merge in self._merges]
        try:
            model = models.BPE(vocab=self._vocab, merges=pairs, end_of_word_suffix=_END)
        except Exception as error:  # The library raises nothing narrower.
            raise ValueError(f"a merge of unknown pieces: {error}") from error
        self._backend = Backend(model)
        self._backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
        words = pre_tokenizers.Split(Regex(_CLIP_WORD), behavior="removed", invert=True)
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self._backend.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level])
        self._backend.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in specials])
        self._bytes = decoders.ByteLevel()

    @classmethod
    def train(cls, captions: Iterable[str], path: str, unescape: bool = False) -> "Clip":
        """Read the merges; the captions change nothing.

        Args:
          captions: not read.
          path: OpenAI's bpe_simple_vocab_16e6.txt.gz, or Hugging Face's merges.txt; plain or gzip.
          unescape: see the class.

        Raises:
          FileNotFoundError, ValueError: the file is absent, cut, or another one.
        """
        file = Path(path).expanduser()
        if not file.is_file():
            raise FileNotFoundError(
                f"No vocabulary at {path} (seen from {Path.cwd()}). CLIP's tokenizer needs the file "
                "bpe_simple_vocab_16e6.txt.gz of github.com/openai/CLIP; set the tokenizer's path to it."
            )
        try:
            data = file.read_bytes()
            data = gunzip(data, 2**26) if data.startswith(b"\x1f\x8b") else data
            lines = data.decode("utf-8").split("\n")
            # The first line is a heading; OpenAI's file goes on with merges that CLIP does not use.
            return cls(lines[1 : 1 + _CLIP_MERGES], unescape)
        except (ValueError, EOFError, OSError, zlib.error) as error:
            raise ValueError(
                f"{path} is not the whole vocabulary of CLIP ({error}). Copy bpe_simple_vocab_16e6.txt.gz again."
            ) from error

    def encode(self, text: str) -> list[int]:
        if self._unescape:
            text = html.unescape(html.unescape(text))
        return self._backend.encode(text).ids

    def write_hugging_face(self, folder: str | Path) -> None:
        """Write vocab.json, merges.txt and tokenizer_config.json, which `transformers` opens as CLIPTokenizer."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        vocab = json.dumps(self._vocab, ensure_ascii=False)
        (folder / "vocab.json").write_text(vocab, encoding="utf-8")
        merges = "\n".join(["#version: 0.2", *self._merges, ""])
        (folder / "merges.txt").write_text(merges, encoding="utf-8")
        config = json.dumps({"tokenizer_class": "CLIPTokenizer"})
        (folder / "tokenizer_config.json").write_text(config, encoding="utf-8")

    def _join(self, ids: list[int]) -> str:
        pieces = [self._backend.id_to_token(token) for token in ids]
        # A piece that ends a word gets the byte alphabet's space in the place of the mark.
        spaced = [p.removesuffix(_END) + "\u0120" if p.endswith(_END) else p for p in pieces]
        return self._bytes.decode(spaced).strip()

    def _content(self) -> dict:
        return {"merges": self._merges, "unescape": self._unescape}


class WordPiece(Tokenizer):
    """BERT's word pieces (Devlin et al. 2019, arXiv:1810.04805, section 3; Wu et al. 2016, arXiv:1609.08144, section 4.1).

    It gives the ids that the published weights know: a piece's id is its line in vocab.txt, a text is [CLS] ... [SEP], padded
    with [PAD]. A word is the longest piece that it begins with, then the longest "##" piece, and so on; where none fits, all of
    the word is [UNK]. The ids equal those of `transformers`' BertTokenizer; also here a written "[SEP]" is that token.

    Args:
      vocab: the pieces, a line each; piece k has the id k.
      lowercase: lower case and no accents, as the "uncased" weights want; else text stays as it is.
    """

    kind = "wordpiece"

    def __init__(self, vocab: Sequence[str], lowercase: bool = True):
        from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
        from tokenizers import Tokenizer as Backend

        self._vocab, self._lowercase = list(vocab), lowercase
        places = {piece: k for k, piece in enumerate(self._vocab)}
        specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
        absent = [piece for piece in specials if piece not in places]
        if absent or len(places) < len(self._vocab):
            raise ValueError(f"no {', '.join(absent)}" if absent else "a piece twice")
        self.vocab_size = len(self._vocab)
        self.pad, self._unk, self.bos, self.eos = (places[piece] for piece in specials)
        self._unread = frozenset({self.pad, self._unk, self.bos})
        self._backend = Backend(models.WordPiece(vocab=places, unk_token="[UNK]"))
        self._backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
        self._backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        written = [piece for piece in (*specials, "[MASK]") if piece in places]
        self._backend.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in written])
        self._backend.decoder = decoders.WordPiece(prefix=_INSIDE, cleanup=False)

    @classmethod
    def train(cls, captions: Iterable[str], path: str, lowercase: bool = True) -> "WordPiece":
        """Read the pieces; the captions change nothing.

        Args:
          captions: not read.
          path: vocab.txt, as it lies beside published weights.
          lowercase: see the class.

        Raises:
          FileNotFoundError, ValueError: the file is absent, cut, or another one.
        """
        file = Path(path).expanduser()
        if not file.is_file():
            raise FileNotFoundError(
                f"No vocabulary at {path} (seen from {Path.cwd()}). BERT's tokenizer needs the vocab.txt that lies "
                "beside the weights; set the tokenizer's path to it."
            )
        try:
            return cls(file.read_text(encoding="utf-8").removesuffix("\n").split("\n"), lowercase)
        except ValueError as error:
            raise ValueError(
                f"{path} is not a whole vocabulary of word pieces ({error}). Copy the weights' vocab.txt again."
            ) from error

    def encode(self, text: str) -> list[int]:
        return self._backend.encode(text).ids

    def unknown(self, text: str) -> list[str]:
        found = self._backend.encode(text)
        return [
            text[slice(*at)] for token, at in zip(found.ids, found.offsets, strict=True) if token == self._unk
        ]

    def _join(self, ids: list[int]) -> str:
        return self._backend.decode(ids, skip_special_tokens=False)

    def _content(self) -> dict:
        return {"vocab": self._vocab, "lowercase": self._lowercase}


KINDS = {kind.kind: kind for kind in (Words, Bytes, BytePair, Clip, WordPiece)}


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
        content = parse_json(path.read_bytes())
        kind = registry.choose(KINDS, content.pop("kind"), "tokenizer")
        return kind(**content)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path} is not a whole tokenizer ({error}). Copy it again from the run that wrote it."
        ) from error
