"""Transforms: small callables (example, rng) -> example, written in a config as one string.

"decode | random_resized_crop(96, min_area=0.6) | flip | color_jitter(0.2) | caption(max_len=24)"
"""

import ast
import inspect
from collections.abc import Mapping
from typing import Any

from mmgen_jax.core import registry
from mmgen_jax.data import image_transforms, text_transforms
from mmgen_jax.data.example import Transform

# Of a video these treat every frame alike.
OF_PICTURES = ("resize", "center_crop", "random_resized_crop", "shift", "flip", "color_jitter")
FACTORIES = {
    f.__name__: f
    for f in (
        image_transforms.decode,
        image_transforms.resize,
        image_transforms.center_crop,
        image_transforms.random_resized_crop,
        image_transforms.shift,
        image_transforms.flip,
        image_transforms.color_jitter,
        image_transforms.frames,
        image_transforms.array,
        text_transforms.caption,
        text_transforms.text,
        text_transforms.description,
        text_transforms.question,
        text_transforms.answers,
        text_transforms.written_answer,
    )
}


def parse(pipeline: str, context: Mapping[str, Any]) -> list[Transform]:
    """Build the pipeline "name | name(argument, key=value) | ...".

    Args:
      pipeline: its text; arguments are literals.
      context: what the program hands to factories that have a keyword-only parameter of that name, such as
        {"tokenizer": tokenizer}.

    Returns:
      The transforms in order, and one more that makes the image an array.

    Raises:
      ValueError: no such transform or argument (names the nearest), one is missing, or the text is no
        pipeline.
    """
    return [_build(step, pipeline, context) for step in _steps(_tree(pipeline))] + [image_transforms.array()]


def names(pipeline: str) -> list[str]:
    """The names of a pipeline's transforms, in order."""
    steps = _steps(_tree(pipeline))
    return [ast.unparse(step.func if isinstance(step, ast.Call) else step) for step in steps]


def _tree(pipeline: str) -> ast.expr:
    try:
        return ast.parse(f"({pipeline})", mode="eval").body  # in brackets it may span several lines
    except SyntaxError as error:
        raise ValueError(
            f'The pipeline "{pipeline}" cannot be read: {error.msg} near column {(error.offset or 1) - 1}. '
            'Write "decode | resize(96) | ...".'
        ) from None


def _steps(tree: ast.expr) -> list[ast.expr]:
    if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.BitOr):
        return _steps(tree.left) + _steps(tree.right)
    return [tree]


def _build(step: ast.expr, pipeline: str, context: Mapping[str, Any]) -> Transform:
    """One step of the syntax tree -> its transform."""
    call = step if isinstance(step, ast.Call) else ast.Call(func=step, args=[], keywords=[])
    source = ast.unparse(step)
    if not isinstance(call.func, ast.Name):
        raise ValueError(
            f'"{source}" in the pipeline "{pipeline}" is no transform. Write name or name(arguments).'
        )
    name = call.func.id
    factory = registry.choose(FACTORIES, name, f'transform in the pipeline "{pipeline}":')
    parameters = inspect.signature(factory).parameters.values()
    given = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty}
    own = [p.name for p in parameters if p.name not in given]
    try:
        args = [ast.literal_eval(arg) for arg in call.args]
        kwargs = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    except ValueError:
        raise ValueError(
            f'The arguments of "{source}" must be plain values such as 96, 0.5 or "text".'
        ) from None
    if None in kwargs or len(args) > len(own):
        raise ValueError(f'"{source}" has too many arguments; {name} takes: {", ".join(own) or "none"}.')
    for parameter, value in zip(own, args, strict=False):
        if parameter in kwargs:
            raise ValueError(f'"{source}" gives {parameter} twice.')
        kwargs[parameter] = value
    absent = given - context.keys()
    if absent:
        raise ValueError(
            f'"{source}" needs {", ".join(sorted(absent))}, which this program does not provide; a training does where the '
            f"config has {', '.join(f'data.{key}' for key in sorted(absent))}."
        )
    try:
        made = registry.call(factory, kwargs, f'"{source}"', **{key: context[key] for key in given})
    except TypeError as error:
        raise ValueError(f'"{source}" has an argument of the wrong type: {error}.') from error
    return image_transforms.on_frames(made) if name in OF_PICTURES else made
