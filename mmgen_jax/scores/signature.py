"""A line beside a number that says how it was made."""

from mmgen_jax import __version__


def sign(*kind: str, **how: object) -> str:
    """sign("captions", "tok:ptb", split="val") is "captions|tok:ptb|split:val|v:0.1.0".

    Raises:
      ValueError: a value holds "|" or a line break, which would make the line ambiguous.
    """
    parts = [*kind, *(f"{key}:{value}" for key, value in how.items())]
    for part in parts:
        if "|" in part or "\n" in part:
            raise ValueError(f'A signature cannot hold {part!r}: "|" separates its parts.')
    return "|".join([*parts, f"v:{__version__}"])
