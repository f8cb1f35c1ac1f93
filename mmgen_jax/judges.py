"""Judges: other finished models whose predictions score what a run makes; and the predictor through which they are asked."""

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from mmgen_jax.core import parallel, registry, sharding, step_folders
from mmgen_jax.core.checkpoint import checksums
from mmgen_jax.core.sharding import Layout
from mmgen_jax.data import text_transforms
from mmgen_jax.data.pipeline import Pipeline
from mmgen_jax.evaluators.base import Predict
from mmgen_jax.nn import inception
from mmgen_jax.pretrained import inception as pretrained

Batch = Mapping[str, np.ndarray]


class Judge(Predict, Protocol):
    """A model that others ask, as evaluators ask a run."""

    def check(self) -> None:
        """Raise FileNotFoundError, with the remedy, where it is not there; it is not opened for that."""


class Predictor:
    """Named predictions of a run, and of its judges: "reader.classify" is the prediction "classify" of the judge "reader".

    Args:
      own: (name, this process's rows of a batch) -> (predictions, whole batch), on the host.
      weights: the run's parameters and variables.
      pipeline: the run's, for its tokenizer.
      judges: by name.
    """

    def __init__(self, own: Callable, weights: Any, pipeline: Pipeline, judges: Mapping[str, Judge]):
        self._own, self._weights, self._pipeline, self._judges = own, weights, pipeline, judges

    def __call__(self, name: str, batch: Batch) -> tuple[dict, dict]:
        """(predictions, batch) on the host: the rows of all processes on each.

        Args:
          name: of the prediction.
          batch: this process's rows; a judge looks at their "image" or "tokens".

        Raises:
          ValueError: no such prediction, or no such judge; names the nearest.
          FileNotFoundError: the judge is not there; says what to do.
        """
        judge, dot, rest = name.partition(".")
        if not dot:
            return self._own(name, batch)
        return self._judge(judge)(rest, batch)

    def fingerprint(self, name: str = "") -> str:
        """Eight hexadecimal digits that change with the weights: of the judge that `name` begins with, else of the run itself."""
        judge, dot, rest = name.partition(".")
        if dot or judge in self._judges:
            return self._judge(judge).fingerprint(rest)
        # Checksums of the arrays do not depend on the devices that hold them.
        return _short(json.dumps(checksums(self._weights), sort_keys=True).encode())

    def resize(self, name: str) -> str:
        """How the prediction `name` brings images to its own size; "none" where it wants them as they are."""
        judge, dot, rest = name.partition(".")
        return self._judge(judge).resize(rest) if dot else "none"

    def tokenise(self, name: str, texts: Sequence[str]) -> np.ndarray:
        """Texts as the prediction `name` reads them. n strings -> int32 [n, 1, T]; a text that is too long is cut."""
        judge, dot, rest = name.partition(".")
        if dot:
            return self._judge(judge).tokenise(rest, texts)
        example = self._pipeline.example_batch()
        if "tokens" not in example:
            raise ValueError(f'The prediction "{name}" is of a run without texts.')
        read = text_transforms.text(
            example["tokens"].shape[-1], which="first", tokenizer=self._pipeline.tokenizer
        )
        rng = np.random.default_rng(0)
        return np.stack([read({"image": None, "captions": [text]}, rng)["tokens"] for text in texts])

    def _judge(self, name: str) -> Judge:
        if not self._judges:
            raise ValueError(
                f'The judge "{name}" is asked, and the config has none: give it judges={{"{name}": {{"name": "run", "workdir": '
                "...}}."
            )
        return registry.choose(self._judges, name, "judge")


class Run:
    """A finished run of ours, opened when it is first asked.

    Args:
      name: what the config calls it.
      workdir: of the run.
      step: which checkpoint; default the newest.
      open_run: (workdir, step) -> its `Predictor` and the shapes of its examples.
    """

    def __init__(
        self,
        *,
        name: str,
        workdir: str,
        step: int | None = None,
        open_run: Callable[[Path, int | None], tuple[Predictor, Batch]],
    ):
        self._name, self._workdir, self._step, self._open = name, Path(workdir), step, open_run

    def check(self) -> None:
        path = self._workdir
        if not (path / "config.json").is_file() or not step_folders.steps(path / "checkpoints"):
            missing = "has no checkpoint yet" if (path / "config.json").is_file() else "is not there"
            raise FileNotFoundError(
                f"judges.{self._name}: the run in {path} {missing}. Train it first:\n  python scripts/train.py --config "
                f"configs/{path.name}.py --workdir {path}\nor let judges.{self._name}.workdir name another run."
            )

    @functools.cached_property
    def _opened(self) -> tuple[Predictor, Batch]:
        self.check()
        return self._open(self._workdir, self._step)

    def __call__(self, name: str, batch: Batch) -> tuple[dict, dict]:
        predictor, example = self._opened
        if "image" in batch and batch["image"].shape[1:] != example["image"].shape[1:]:
            shown, own = (list(x["image"].shape[1:]) for x in (batch, example))
            raise ValueError(
                f'The judge "{self._name}" ({self._workdir}) reads images of {own}, and these are {shown}: train a judge on '
                "images of that size."
            )
        return predictor(name, batch)

    def fingerprint(self, name: str = "") -> str:
        return self._opened[0].fingerprint(name)

    def resize(self, name: str) -> str:
        return self._opened[0].resize(name)

    def tokenise(self, name: str, texts: Sequence[str]) -> np.ndarray:
        return self._opened[0].tokenise(name, texts)


class Inception:
    """The network of the FID papers, its weights from a local file.

    Each prediction gives both "features" [B, 2048] and "logits" [B, K], those without the last bias, of which the Inception score
    was first computed.

    Args:
      name: what the config calls it.
      weights: the file; see pretrained/inception.py.
      resize: how images come to 299 pixels, see nn/inception.py; "tf1" compares with published numbers.
      layout: of the run that asks.
    """

    def __init__(self, *, name: str, weights: str, resize: str = "tf1", layout: Layout):
        self._name, self._path, self._layout = name, Path(weights), layout
        registry.choose(inception.RESIZES, resize, f"judges.{name}.resize")
        self._resize = resize

    def check(self) -> None:
        if not self._path.is_file():
            raise FileNotFoundError(f"judges.{self._name}: no weights at {self._path}. {pretrained.WHERE}")

    @functools.cached_property
    def _opened(self) -> Callable[[Batch], tuple[dict, dict]]:
        module, weights = pretrained.read(self._path)

        def ask(weights, _, batch, rng):
            del rng
            image = inception.prepare(batch["image"], resize=self._resize)
            said = module.apply(weights, image, train=False)
            return {"features": said.features, "logits": said.unbiased_logits}, batch

        everywhere = self._layout.replicated
        compiled = parallel.compile_predict(ask, self._layout, everywhere, everywhere)
        weights = jax.device_put(weights, everywhere)
        key = jax.random.key(0)
        return lambda batch: jax.device_get(
            compiled(weights, {}, sharding.put_batch(batch, self._layout), key)
        )

    def __call__(self, name: str, batch: Batch) -> tuple[dict, dict]:
        registry.choose(dict.fromkeys(("features", "logits")), name, f'prediction of "{self._name}"')
        return self._opened(batch)

    def fingerprint(self, name: str = "") -> str:
        del name
        self.check()
        return _short(self._path.read_bytes())

    def resize(self, name: str) -> str:
        del name
        return self._resize

    def tokenise(self, name: str, texts: Sequence[str]) -> np.ndarray:
        raise ValueError(f'The judge "{self._name}" reads no texts: it is an Inception network.')


def make(specs: Mapping[str, Mapping[str, Any]], *, layout: Layout, open_run: Callable) -> dict[str, Judge]:
    """The judges that a config names, such as {"reader": {"name": "run", "workdir": "runs/classifier_scenes"}}.

    Args:
      specs: {what evaluators call it: {"name": "run" or "inception", and its fields}}.
      layout: of the run that asks.
      open_run: see `Run`.
    """
    kinds = {"run": (Run, {"open_run": open_run}), "inception": (Inception, {"layout": layout})}
    judges = {}
    for name, spec in specs.items():
        if "." in name:
            raise ValueError(
                f'judges: the name "{name}" has a dot, which stands between a judge and its prediction.'
            )
        fields = dict(spec)
        kind, more = registry.choose(kinds, fields.pop("name", ""), f"name in judges.{name}")
        judges[name] = registry.call(kind, fields, f"judges.{name}", name=name, **more)
    return judges


def _short(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:8]
