"""Classify images by the names of the classes alone (Radford et al., 2021, section 3.1)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmgen_jax.data.loader import stack
from mmgen_jax.data.pipeline import Pipeline
from mmgen_jax.evaluators.base import Classification, Predict

TEMPLATES = ("a picture of a {name}", "a photo of a {name}", "there is a {name}", "a {name}")


class ZeroShot(Classification):
    """Each image gets the class whose texts lie nearest to it.

    A class is the mean of the unit embeddings of its name in every template, brought back to unit length.

    Args:
      source, transforms, batch_size, pipeline: see `Classification`; the transforms need no text.
      max_len: T, the context of the text tower, BOS and EOS too.
      templates: texts with {name} in the place of the class's name.
      classes: names instead of the source's own, in their order; such as "a red car" for "car_red".
    """

    kind = "zero_shot"

    def __init__(
        self,
        *,
        source: Mapping[str, Any],
        transforms: str,
        batch_size: int,
        max_len: int,
        templates: Sequence[str] = TEMPLATES,
        classes: Sequence[str] | None = None,
        pipeline: Pipeline,
    ):
        super().__init__(source=source, transforms=transforms, batch_size=batch_size, pipeline=pipeline)
        for template in templates:
            if "{name}" not in template:
                raise ValueError(f"The template {template!r} lacks {{name}}, the place of the class's name.")
        if not templates:
            raise ValueError(
                "Zero-shot classification needs at least one template, such as 'a picture of a {name}'."
            )
        self._templates, self._names = templates, classes
        self._tokenise = pipeline.parse(f"text({max_len}, which='first')")[0]

    def judge(self, predict: Predict) -> tuple[dict[str, np.ndarray], np.ndarray]:
        classes = self._embed_classes(predict)
        outputs, inputs = self.outputs(predict, "embed_image")
        return inputs, outputs["image"] @ classes.T

    def _embed_classes(self, predict: Predict) -> np.ndarray:
        """-> float32 [K, F], unit length."""
        names = self.source.classes if self._names is None else self._names
        if len(names) != len(self.source.classes):
            raise ValueError(
                f"classes has {len(names)} names, the source {len(self.source.classes)} classes."
            )
        texts = [template.replace("{name}", name) for name in names for template in self._templates]
        tokens = [
            self._tokenise({"image": None, "captions": [text]}, np.random.default_rng(0)) for text in texts
        ]
        size = self.batch_size // self.pipeline.process[1]
        embeddings = []
        for first in range(0, len(tokens), size):
            part = tokens[first : first + size]
            batch = stack([{"tokens": example["tokens"]} for example in part], size)
            # Rows of other processes, which embed the same, follow this one's.
            embeddings.append(predict("embed_text", batch)[0]["text"][: len(part), 0])
        mean = np.concatenate(embeddings).reshape(len(names), len(self._templates), -1).mean(axis=1)
        return mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)

    def how(self) -> dict[str, Any]:
        return {"templates": len(self._templates)}


make = ZeroShot
