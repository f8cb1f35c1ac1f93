"""The published dual encoders, rebuilt to the parameter, and what the heads do. Shapes alone are computed."""

import jax
import jax.numpy as jnp
import pytest

from mmgen_jax.core import registry
from mmgen_jax.models.dual_encoder import DualEncoder

CLIP = {"image_head": "linear", "text_head": "linear", "pixels": "clip"}
RESNET = {**CLIP, "image_head": "none"}
SIGLIP = {"image_head": "none", "text_head": "affine", "temperature": 0.1, "bias": -10.0, "pixels": "half"}


def build(image, text, vocab_size, max_len, **fields):
    image = registry.build("nn", image, dtype=jnp.float32)
    text = registry.build("nn", text, vocab_size=vocab_size, max_len=max_len, eos=2, dtype=jnp.float32)
    return DualEncoder(image, text, **fields)


def parameters(model, size, max_len):
    shapes = jax.eval_shape(
        model.init,
        jax.random.key(0),
        jnp.zeros((1, size, size, 3), jnp.uint8),
        jnp.ones((1, 1, max_len), jnp.int32),
    )
    return shapes["params"]


@pytest.mark.parametrize("scan", [False, True], ids=["loop", "scan"])
@pytest.mark.parametrize(
    ("tower", "text", "embed_dim", "fields", "count"),
    [
        ("clip_vit_b32", "clip_b", 512, CLIP, 151_277_313),
        ("clip_vit_b16", "clip_b", 512, CLIP, 149_620_737),
        ("clip_vit_l14", "clip_l", 768, CLIP, 427_616_513),
        ("clip_rn50", "clip_b", 1024, RESNET, 102_007_137),
    ],
)
def test_published_clip(tower, text, embed_dim, fields, count, scan):
    name = "resnet" if tower.startswith("clip_rn") else "vit"
    image = {"name": name, "variant": tower, **({"scan": scan} if name == "vit" else {})}
    text = {"name": "text_transformer", "variant": text, "scan": scan}
    params = parameters(build(image, text, 49_408, 77, embed_dim=embed_dim, **fields), 224, 77)
    assert sum(x.size for x in jax.tree.leaves(params)) == count


def test_published_siglip():
    """203,155,970: what transformers counts of google/siglip-base-patch16-224."""
    image = {"name": "vit", "variant": "siglip_vit_b16"}
    text = {"name": "text_transformer", "variant": "siglip_b"}
    params = parameters(build(image, text, 32_000, 64, embed_dim=768, **SIGLIP), 224, 64)
    assert sum(x.size for x in jax.tree.leaves(params)) == 203_155_970
    assert {"logit_scale", "logit_bias", "text_projection"} <= params.keys()
    assert "image_projection" not in params


def test_without_a_temperature_there_is_no_scale():
    image = {"name": "convnet", "widths": (4,), "blocks": 0, "pool": "mean"}
    text = {"name": "text_rnn", "features": 4, "embed_features": 4}
    params = parameters(build(image, text, 10, 5, embed_dim=4, temperature=0.0), 8, 5)
    assert "logit_scale" not in params
