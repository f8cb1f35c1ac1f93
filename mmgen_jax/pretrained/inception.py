"""The Inception-v3 of a local file, ready to judge images; whose it is shows in the file."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmgen_jax.nn import inception
from mmgen_jax.pretrained import files
from mmgen_jax.pretrained.load import load

WHERE = (
    "FID's Inception-v3 is not part of this package. The FID papers' network for PyTorch is the file "
    "pt_inception-2015-12-05-6726825d.pth of the releases of github.com/mseitzer/pytorch-fid; download it once, anywhere, and "
    "give its path as `weights`."
)


def read(path: str | Path, *, dtype: Any = jnp.float32) -> tuple[inception.Inception, dict]:
    """The network with its weights, whole.

    Args:
      path: the FID papers' weights in PyTorch's names, or torchvision's; the number of classes tells them apart.

    Returns:
      (module, what `module.apply` takes).

    Raises:
      FileNotFoundError: nothing is there; says where to get the file.
      ValueError: weights of another network, or not all of them.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"No weights at {path}. {WHERE}")
    weights = files.read(path)
    classes = weights["fc.bias"].size if "fc.bias" in weights else 0
    known = {fields["classes"]: name for name, fields in inception.VARIANTS.items()}
    if classes not in known:
        raise ValueError(
            f"{path} is no Inception-v3 that is known here: its fc.bias should have {' or '.join(map(str, known))} classes, and "
            f"{f'has {classes}' if classes else 'is not there'}. {WHERE}"
        )
    module = inception.make(variant=known[classes], dtype=dtype)
    image = jax.ShapeDtypeStruct((1, inception.SIDE, inception.SIDE, 3), jnp.float32)
    shapes = jax.eval_shape(lambda image: module.init(jax.random.key(0), image, train=False), image)
    empty = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    params, variables, report = load(path, empty.pop("params"), empty)
    if report.missing or report.mismatched:
        raise ValueError(f"A judge needs all of its weights. {report}\n{WHERE}")
    return module, {"params": params, **variables}
