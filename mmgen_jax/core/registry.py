"""The file is the registry: `lookup("tasks", "captioning")` is the module mmgen_jax/tasks/captioning.py."""

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any


def nearest(name: str, options: Iterable[str]) -> str:
    """A sentence for an error message that names the option closest to `name`, or lists them all."""
    options = sorted(options)
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    if close:
        return f' Did you mean "{close[0]}"?'
    return f" Valid: {', '.join(options)}." if options else ""


def lookup(package: str, name: str) -> ModuleType:
    """Import mmgen_jax.<package>.<name>.

    Raises:
      ValueError: there is no such file; the message names the nearest one.
    """
    parent = importlib.import_module(f"mmgen_jax.{package}")
    names = [module.name for module in pkgutil.iter_modules(parent.__path__) if module.name != "base"]
    if name not in names:
        raise ValueError(f'Unknown name "{name}" in {package}/.{nearest(name, names)}')
    return importlib.import_module(f"mmgen_jax.{package}.{name}")


def build(package: str, spec: Mapping[str, Any], **more: Any) -> Any:
    """What a config's {"name": ..., fields} describes: `make(**fields, **more)` of the file of that name.

    Raises:
      ValueError: no name, or no such file; the message names the nearest one.
    """
    spec = dict(spec)
    if "name" not in spec:
        raise ValueError(
            f'A part from {package}/ needs a "name"; here are only: {", ".join(spec) or "no keys"}.'
        )
    return lookup(package, spec.pop("name")).make(**spec, **more)


def choose(options: Mapping[str, Any], name: str, what: str) -> Any:
    """`options[name]`; an unknown name is a ValueError that says what was chosen and names the nearest option."""
    if name not in options:
        raise ValueError(f'Unknown {what} "{name}".{nearest(name, options)}')
    return options[name]


def call(function: Callable, kwargs: Mapping[str, Any], what: str, **more: Any) -> Any:
    """`function(**kwargs, **more)`, where a key that the signature lacks, or one left out, is a clear error.

    Args:
      function: a function or class whose keyword parameters are the valid keys.
      kwargs: what the user wrote.
      what: the place in the config, for the message ("data.source").
      more: arguments that the program adds itself; users cannot set these.
    """
    parameters = inspect.signature(function).parameters.values()
    keyword = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    # A flax module's own two fields, known by the rarer of them, are not for configs.
    hidden = {"parent", "name"} if any(p.name == "parent" for p in keyword) else set()
    keyword = [p for p in keyword if p.name not in hidden]
    valid = [p.name for p in keyword if p.name not in more]
    for key in kwargs:
        if key not in valid:
            raise ValueError(f'Unknown key "{key}" in {what}.{nearest(key, valid)}')
    missing = [p.name for p in keyword if p.default is p.empty and p.name not in {*kwargs, *more}]
    if missing:
        raise ValueError(f"{what} needs a value for: {', '.join(missing)}.")
    return function(**kwargs, **more)
