"""Configs: arguments after the colon, JSON in the workdir, and strictness."""

import ast
import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_collections

from mmgen_jax.core import registry

REQUIRED = ("seed", "steps", "task", "data", "optimizer", "mesh", "checkpoint", "log_every", "evals")
OPTIONAL = ("writers", "judges", "guard")


def parse_arg(arg: str | None, **defaults: Any) -> ml_collections.ConfigDict:
    """Read a config's argument, the part after the colon: `configs/x.py:tiny,steps=100`.

    A bare word is True. A value is read as a Python literal and must have the type of its default; what is not
    a literal is a string.

    Raises:
      ValueError: an unknown argument (names the nearest) or a value of another type than the default's.
    """
    values = dict(defaults)
    for part in filter(None, (arg or "").split(",")):
        key, has_value, text = part.partition("=")
        if key not in defaults:
            raise ValueError(f'Unknown config argument "{key}".{registry.nearest(key, defaults)}')
        if not has_value:
            value = True
        else:
            try:
                value = ast.literal_eval(text)
            except (ValueError, SyntaxError):
                value = text
        default = defaults[key]
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if default is not None and type(value) is not type(default):
            raise ValueError(
                f'Config argument "{key}" is {value!r}; it wants {type(default).__name__}, such as {default!r}.'
            )
        values[key] = value
    return ml_collections.ConfigDict(values)


def sibling(path: str, name: str) -> Callable[[str], ml_collections.ConfigDict]:
    """`get_config` of the config file `name` beside `path`, for a config that differs from it in a few values.

    Args:
      path: the calling file's `__file__`.
      name: "clip_vit_b32"; configs/ is no package, so that a file can be run from anywhere.
    """
    return runpy.run_path(str(Path(path).with_name(f"{name}.py")))["get_config"]


def check(config: ml_collections.ConfigDict) -> None:
    """Every config has the same top-level keys.

    Raises:
      ValueError: a key is missing, or unknown (names the nearest).
    """
    for key in config:
        if key not in REQUIRED + OPTIONAL:
            raise ValueError(f'Unknown config key "{key}".{registry.nearest(key, REQUIRED + OPTIONAL)}')
    missing = [key for key in REQUIRED if key not in config]
    if missing:
        raise ValueError(f"The config lacks the key(s) {', '.join(missing)}, which every config has.")


def to_json(config: ml_collections.ConfigDict) -> str:
    """The config as indented JSON with sorted keys."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True)


def load_json(path: Path) -> ml_collections.ConfigDict:
    """Read a `config.json`.

    Raises:
      FileNotFoundError: no such file; says what makes one.
      ValueError: the file is not whole JSON.
    """
    if not path.is_file():
        raise FileNotFoundError(f"No {path}. A workdir gets one when scripts/train.py starts a run in it.")
    try:
        return ml_collections.ConfigDict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} is not whole JSON ({error}). Restore it, or start a new workdir."
        ) from error


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    if not isinstance(config, dict | ml_collections.ConfigDict):
        return {prefix: config}
    flat = {}
    for key, value in config.items():
        flat.update(flatten(value, f"{prefix}.{key}" if prefix else key))
    return flat


def differences(old: ml_collections.ConfigDict, new: ml_collections.ConfigDict) -> list[str]:
    """The keys in which two configs differ, one line each, as JSON sees them (a tuple equals a list)."""
    old, new = (flatten(json.loads(to_json(config))) for config in (old, new))
    absent = "(absent)"
    return [
        f"{key}: {old.get(key, absent)!r} -> {new.get(key, absent)!r}"
        for key in sorted({*old, *new})
        if old.get(key, absent) != new.get(key, absent)
    ]
