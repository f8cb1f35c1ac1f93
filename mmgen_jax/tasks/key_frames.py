"""Key frames: which frames of a video begin something new, learned frame by frame; a summary is those of the highest scores."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mmgen_jax.core import registry
from mmgen_jax.core.metrics import Mean
from mmgen_jax.core.optimizer import Optimizer
from mmgen_jax.core.sharding import Layout
from mmgen_jax.models.key_frames import KeyFrames
from mmgen_jax.tasks.base import DTYPES, Batch, Task, take_init_from

NEXT = """
Next:
  python scripts/evaluate.py --workdir {workdir}    # score it again
  ls {workdir}/predictions                          # which frames it chose of each video
"""


def make_model(
    *, tower: Mapping[str, Any], pixels: str = "half", dtype: Any = jnp.float32, axis: str | None = None
) -> KeyFrames:
    """Build the model that a config describes; the tower's `name` is a file in nn/, one of video_..."""
    tower = registry.build("nn", {"pool": "frames", **tower}, dtype=dtype, axis_name=axis)
    return KeyFrames(tower, pixels, dtype)


class KeyFrameTask(Task):
    """Say of each frame whether it is a key frame: binary cross-entropy.

    Args:
      model: see `make_model`; `init_from` in it, or in its tower, starts that from other weights.
      dtype: "float32" or "bfloat16", of the network.
    """

    def __init__(
        self,
        *,
        model: Mapping[str, Any],
        dtype: str = "float32",
        optimizer: Optimizer,
        layout: Layout,
        context: Mapping[str, Any],
    ):
        del context
        super().__init__(optimizer, layout)
        dtype = registry.choose(DTYPES, dtype, "dtype")
        model, self.init_from = take_init_from(model)
        self.model = registry.call(make_model, model, "task.model", dtype=dtype, axis=self.axis)
        self.predict = {"score": self._predict_score}

    def networks(self, rng: jax.Array, batch: Batch) -> dict[str, dict]:
        if not {"video", "key_frames"} <= batch.keys():
            raise ValueError(
                'The examples come without "video" or "key_frames". The source "clips" has both; caption(...) in the '
                "transforms drops key_frames."
            )
        return {"model": self.model.init(rng, batch["video"], batch.get("frame_mask"))}

    def loss(self, params, variables, batch, rng, step):
        del step
        logits, variables = self.model.apply(
            {"params": params["model"], **variables["model"]},
            batch["video"],
            batch.get("frame_mask"),
            train=True,
            mutable=list(variables["model"]),
            rngs={"dropout": rng},
        )
        mask = jnp.broadcast_to(batch["mask"][:, None], logits.shape)
        if "frame_mask" in batch:
            mask = jnp.where(batch["frame_mask"], mask, 0.0)
        losses = optax.sigmoid_binary_cross_entropy(logits, batch["key_frames"])
        right = ((logits > 0) == (batch["key_frames"] > 0.5)).astype(jnp.float32)
        metrics = {"loss": Mean.of(losses, mask), "accuracy": Mean.of(right, mask)}
        return metrics["loss"].compute(), (metrics, {"model": variables})

    def _predict_score(self, params, variables, batch, rng):
        """How likely each frame is a key frame, 0 for one that pads. -> {"score" float32 [B, F]}."""
        del rng
        every = {"params": params["model"], **variables["model"]}
        score = jax.nn.sigmoid(self.model.apply(every, batch["video"], batch.get("frame_mask")))
        return {"score": jnp.where(batch["frame_mask"], score, 0.0) if "frame_mask" in batch else score}


make = KeyFrameTask
