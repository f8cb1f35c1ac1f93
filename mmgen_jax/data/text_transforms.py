"""Transforms of what is said: captions, questions and answers become a model's tokens and targets."""

from collections.abc import Callable

import numpy as np

from mmgen_jax.data.answers import Answers, most_said
from mmgen_jax.data.example import Example, Transform, check_word, seen
from mmgen_jax.data.text import BOS, EOS, PAD, Tokenizer


def caption(max_len: int, per_image: int = 1, which: str = "random", *, tokenizer: Tokenizer) -> Transform:
    """Turn `per_image` = C captions into "tokens": int32 [C, max_len + 1], each BOS ... EOS PAD.

    A caption of more than max_len - 1 tokens is cut after max_len and then has no EOS, so that no false end
    is learnt. All keys but the image or video and the tokens are dropped.

    Args:
      max_len: T, the number of positions that a decoder is trained on.
      per_image: C. An image with fewer captions repeats them.
      which: "random" draws without replacement; "first" takes them in order, as evaluations want.
      tokenizer: given by the program.
    """
    write = _written("caption", max_len, tokenizer)
    pick = _picker("caption", per_image, which)

    def transform(example: Example, rng: np.random.Generator) -> Example:
        return {**seen(example), "tokens": write(pick(example, rng))}

    return transform


def text(
    max_len: int, per_image: int = 1, which: str = "random", too_long: str = "cut", *, tokenizer: Tokenizer
) -> Transform:
    """Turn `per_image` = C captions into whole texts, as a dual encoder reads them; captions and names go.

    "tokens" is int32 [C, max_len], each BOS ... EOS PAD with the tokenizer's own ids; a text that is cut keeps
    its EOS. "text_mask" is float32 [C]: 1, but 0 for the repeats of an image with fewer captions. "cut" is
    float32 [C]: 1 for a text that was cut (0 for repeats, so that its sum counts texts). Labels and other
    arrays stay.

    Args:
      max_len: T, the context: tokens of a text, BOS and EOS too.
      per_image: C.
      which: "random" draws without replacement; "first" takes them in order, as evaluations want.
      too_long: "cut", or "refuse" with an error.
      tokenizer: given by the program.

    Raises:
      ValueError: by the transform, when a text is too long and too_long is "refuse".
    """
    pick = _picker("text", per_image, which)
    check_word("text", "too_long", too_long, ("cut", "refuse"))
    if max_len < 2:
        raise ValueError(f"text needs max_len of at least 2, for BOS and EOS, not {max_len}.")

    def transform(example: Example, rng: np.random.Generator) -> Example:
        tokens = np.empty((per_image, max_len), np.int32)
        mask = (np.arange(per_image) < len(example.get("captions") or ())).astype(np.float32)
        cut = np.zeros(per_image, np.float32)
        for k, sentence in enumerate(pick(example, rng)):
            ids = [tokenizer.bos, *tokenizer.encode(sentence), tokenizer.eos]
            if len(ids) > max_len:
                if too_long == "refuse":
                    raise ValueError(
                        f"text: a caption of {example.get('name', 'an example without a name')!r} has {len(ids)} "
                        f"tokens with BOS and EOS, the context {max_len}: {sentence[:60]!r}... Raise max_len here "
                        'and in the task, shorten the caption, or set too_long="cut".'
                    )
                cut[k] = mask[k]
            tokens[k] = _row(ids, max_len, tokenizer)
        arrays = {key: value for key, value in example.items() if isinstance(value, (np.ndarray, np.generic))}
        return {**arrays, **seen(example), "tokens": tokens, "text_mask": mask, "cut": cut}

    return transform


def description(max_len: int, which: str = "random", *, tokenizer: Tokenizer) -> Transform:
    """Turn one of the captions into "text": int32 [max_len], BOS ... EOS PAD, to be read beside the image for a label.

    One that is cut keeps its EOS. All other keys stay.

    Args:
      max_len: T, BOS and EOS too.
      which: "random" draws one; "first" takes the first, as evaluations want.
      tokenizer: given by the program.
    """
    pick = _picker("description", 1, which)
    if max_len < 2:
        raise ValueError(f"description needs max_len of at least 2, for BOS and EOS, not {max_len}.")

    def transform(example: Example, rng: np.random.Generator) -> Example:
        ids = [tokenizer.bos, *tokenizer.encode(pick(example, rng)[0]), tokenizer.eos]
        return {**example, "text": _row(ids, max_len, tokenizer)}

    return transform


def question(max_len: int, *, tokenizer: Tokenizer) -> Transform:
    """Turn the question into "question": int32 [max_len], BOS ... EOS PAD with the tokenizer's own ids; of a list [Q, max_len].

    One that is cut keeps its EOS. All other keys stay.

    Args:
      max_len: T, BOS and EOS too.
      tokenizer: given by the program.
    """
    if max_len < 2:
        raise ValueError(f"question needs max_len of at least 2, for BOS and EOS, not {max_len}.")

    def transform(example: Example, rng: np.random.Generator) -> Example:
        asked = example.get("question")
        every = [asked] if isinstance(asked, str) else asked
        if not every:
            raise ValueError(
                f"question: the example {example.get('name', '')!r} has no question. Sources of questions are scene_questions, "
                "vqa and the like; see data/questions.py."
            )
        rows = [
            _row([tokenizer.bos, *tokenizer.encode(text), tokenizer.eos], max_len, tokenizer)
            for text in every
        ]
        return {**example, "question": rows[0] if isinstance(asked, str) else np.stack(rows)}

    return transform


def answers(*, answers: Answers) -> Transform:
    """Turn the annotators' answers into "answer": float32 [K], the score of each answer of the vocabulary.

    Of a list for each of Q questions [Q, K]. It is all zeros where the vocabulary has none of them, or where there are none. All
    other keys stay.

    Args:
      answers: K answers, given by the program where the config has data.answers.
    """

    def transform(example: Example, rng: np.random.Generator) -> Example:
        given = example.get("answers", ())
        if len(given) and not isinstance(given[0], str):
            return {**example, "answer": np.stack([answers.soft(own) for own in given])}
        return {**example, "answer": answers.soft(given)}

    return transform


def written_answer(max_len: int, which: str = "random", *, tokenizer: Tokenizer) -> Transform:
    """Turn one annotator's answer, as it stands, into "tokens": int32 [1, max_len + 1], BOS ... EOS PAD, for who writes answers.

    One of more than max_len - 1 tokens is cut as a caption is. All other keys stay.

    Args:
      max_len: T, the number of positions that a decoder is trained on.
      which: "random" draws an annotator, so that an answer counts as often as it was given; "most" takes the answer of most, as
        evaluations want.
      tokenizer: given by the program.
    """
    write = _written("written_answer", max_len, tokenizer)
    check_word("written_answer", "which", which, ("random", "most"))

    def transform(example: Example, rng: np.random.Generator) -> Example:
        said = example.get("answers")
        if not said:
            raise ValueError(f"written_answer: the example {example.get('name', '')!r} has no answers.")
        chosen = said[int(rng.integers(len(said)))] if which == "random" else most_said(said)
        return {**example, "tokens": write([chosen])}

    return transform


def _picker(name: str, per_image: int, which: str) -> Callable[[Example, np.random.Generator], list[str]]:
    """What chooses `per_image` captions of an example; where it has fewer, all come first and then repeats."""
    check_word(name, "which", which, ("random", "first"))
    if per_image < 1:
        raise ValueError(f"{name} needs per_image of at least 1, not {per_image}.")

    def pick(example: Example, rng: np.random.Generator) -> list[str]:
        captions = example.get("captions")
        if not captions:
            raise ValueError(f"{name}: the example {example.get('name', '')!r} has no captions.")
        count = len(captions)
        order = np.arange(per_image) % count
        if which == "random" and count > 1:
            rounds = -(-per_image // count)
            order = np.concatenate([rng.permutation(count) for _ in range(rounds)])[:per_image]
        return [captions[k] for k in order]

    return pick


def _written(name: str, max_len: int, tokenizer: Tokenizer) -> Callable[[list[str]], np.ndarray]:
    """What makes a decoder's texts: C strings -> int32 [C, max_len + 1], each BOS ... EOS PAD; one that is cut has no EOS."""
    own = (tokenizer.pad, tokenizer.bos, tokenizer.eos)
    if own != (PAD, BOS, EOS):
        raise ValueError(
            f"{name}: the {tokenizer.kind} tokenizer has pad, bos and eos {own}, and a decoder writes with {(PAD, BOS, EOS)}. "
            "Use words, bytes or byte_pair; a dual encoder's pipeline ends with text(...)."
        )
    if max_len < 1:
        raise ValueError(f"{name} needs max_len of at least 1, not {max_len}.")

    def write(sentences: list[str]) -> np.ndarray:
        tokens = np.full((len(sentences), max_len + 1), PAD, np.int32)
        for row, sentence in zip(tokens, sentences, strict=True):
            ids = [BOS, *tokenizer.encode(sentence), EOS][: max_len + 1]
            row[: len(ids)] = ids
        return tokens

    return write


def _row(ids: list[int], max_len: int, tokenizer: Tokenizer) -> np.ndarray:
    """BOS ... EOS as int32 [max_len]: padded, or cut before its EOS."""
    row = np.full(max_len, tokenizer.pad, np.int32)
    kept = ids if len(ids) <= max_len else [*ids[: max_len - 1], tokenizer.eos]
    row[: len(kept)] = kept
    return row
