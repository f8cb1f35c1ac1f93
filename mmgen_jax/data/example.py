"""What an example and a transform of it are, and what transforms of pictures and of texts share."""

from collections.abc import Callable
from typing import Any

import numpy as np

from mmgen_jax.core import registry

Example = dict[str, Any]
Transform = Callable[[Example, np.random.Generator], Example]


def seen(example: Example) -> Example:
    """What a model looks at: the image, or the video with its mask."""
    return {key: example[key] for key in ("image", "video", "frame_mask") if key in example}


def check_word(name: str, argument: str, word: str, words: tuple[str, ...]) -> None:
    """An argument of the transform `name` that takes one of some words.

    Raises:
      ValueError: another word; the message names the nearest.
    """
    if word not in words:
        raise ValueError(f'{name}: unknown {argument}="{word}".{registry.nearest(word, words)}')
