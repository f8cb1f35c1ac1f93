"""A model of ours as a folder that Hugging Face transformers opens."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from mmgen_jax.core import registry
from mmgen_jax.models.captioner import Captioner
from mmgen_jax.models.classifier import Classifier
from mmgen_jax.models.dual_encoder import DualEncoder
from mmgen_jax.nn import pixels
from mmgen_jax.nn.resnet import BLOCKS, ResNet
from mmgen_jax.nn.text_transformer import TextTransformer
from mmgen_jax.nn.vit import ViT
from mmgen_jax.pretrained import load, names

ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu"}


class Need(NamedTuple):
    """What a class of theirs wants of a module of ours, and what its config.json says of it.

    Attributes:
      module: the module's class.
      fields: the values that its fields may have.
      config: the module -> its part of config.json.
    """

    module: type[nn.Module]
    fields: Mapping[str, tuple]
    config: Callable[[Any], dict[str, Any]] = lambda module: {}

    def differences(self, name: str, module: nn.Module | None) -> list[str]:
        """Where `module` is something else, in words."""
        if not isinstance(module, self.module):
            return [f"its {name} is a {self.module.__name__}, here a {type(module).__name__}"]
        values = {field: getattr(module, field) for field in self.fields}
        return [
            f"its {name} has {field}={' or '.join(map(repr, self.fields[field]))}, here {value!r}"
            for field, value in values.items()
            if value not in self.fields[field]
        ]


class Target(NamedTuple):
    """A class of theirs.

    Attributes:
      name, model_type: what config.json calls it.
      dialect: of `names.DIALECTS`.
      needs: {"model", "image", "text": Need} of the parts that it has.
      prefix: what it puts before the table's names, except a classifier's.
    """

    name: str
    model_type: str
    dialect: str
    needs: Mapping[str, Need]
    prefix: str = ""


def _transformer(tower: ViT | TextTransformer) -> dict[str, Any]:
    return {
        "hidden_size": tower.width,
        "intermediate_size": round(tower.width * tower.mlp_ratio),
        "num_hidden_layers": tower.depth,
        "num_attention_heads": tower.heads,
        "hidden_act": ACTIVATIONS[tower.activation],
        "layer_norm_eps": tower.epsilon,
    }


def _vision(tower: ViT) -> dict[str, Any]:
    return {**_transformer(tower), "image_size": tower.image_size, "patch_size": tower.patch}


def _text(tower: TextTransformer) -> dict[str, Any]:
    sizes = {"vocab_size": tower.vocab_size, "max_position_embeddings": tower.max_len}
    return {**_transformer(tower), **sizes, "eos_token_id": tower.eos}


def _resnet(tower: ResNet) -> dict[str, Any]:
    widest = max(times for _, times in BLOCKS[tower.block])
    return {
        "embedding_size": tower.width,
        "hidden_sizes": [tower.width * 2**i * widest for i in range(len(tower.stages))],
        "depths": list(tower.stages),
        "layer_type": tower.block,
    }


_IMAGE = {"class_token": (True,), "pre_norm": (True,), "patch_bias": (False,), "pool": ("class",)}
_PATCHES = {"class_token": (False,), "pre_norm": (False,), "patch_bias": (True,)}
_CLASS = {"class_token": (True,), "pre_norm": (False,), "patch_bias": (True,)}
_TEXT = {
    "segments": (0,),
    "embed_norm": (False,),
    "norm": ("pre",),
    "final_norm": (True,),
    "pooler": (False,),
}
_BERT = {"segments": (1, 2), "embed_norm": (True,), "norm": ("post",), "final_norm": (False,)}

CLIP_IMAGE = Need(ViT, _IMAGE, _vision)
CLIP_TEXT = Need(TextTransformer, {**_TEXT, "causal": (True,), "pool": ("end",)}, _text)
SIGLIP_IMAGE = Need(ViT, {**_PATCHES, "pool": ("map",)}, _vision)
SIGLIP_GRID = Need(
    ViT, {**_PATCHES, "pool": ("none", "mean")}, lambda tower: {**_vision(tower), "vision_use_head": False}
)
SIGLIP_TEXT = Need(
    TextTransformer, {**_TEXT, "causal": (False,), "mask_padding": (False,), "pool": ("last",)}, _text
)
VIT_IMAGE = Need(ViT, {**_CLASS, "pool": ("class", "mean", "none")}, _vision)
BERT_TEXT = Need(
    TextTransformer,
    {**_BERT, "causal": (False,), "mask_padding": (True,)},
    lambda tower: {**_text(tower), "type_vocab_size": tower.segments},
)
RESNET_IMAGE = Need(ResNet, {"stem": ("imagenet",), "antialias": (False,), "pool": ("mean", "none")}, _resnet)
CLASSIFIER = Need(
    Classifier,
    {"labels": (1,), "apart": (False,)},
    lambda model: {"id2label": {str(i): f"LABEL_{i}" for i in range(model.classes)}},
)


def _dual(image_head: tuple, text_head: tuple, size: str, **fields: tuple) -> Need:
    heads = {"image_head": image_head, "text_head": text_head}
    return Need(DualEncoder, {**heads, **fields}, lambda model: {size: model.embed_dim})


_ANY = ("linear", "affine", "none")
TARGETS = {
    "all": (
        Target(
            "CLIPModel",
            "clip",
            "hf_clip",
            {
                "model": _dual(("linear",), ("linear",), "projection_dim", bias=(0.0,)),
                "image": CLIP_IMAGE,
                "text": CLIP_TEXT,
            },
        ),
        Target(
            "SiglipModel",
            "siglip",
            "hf_siglip",
            {
                "model": _dual(("none",), ("affine",), "projection_size"),
                "image": SIGLIP_IMAGE,
                "text": SIGLIP_TEXT,
            },
        ),
        Target(
            "ViTForImageClassification",
            "vit",
            "hf_vit",
            {"model": CLASSIFIER, "image": VIT_IMAGE._replace(fields={**_CLASS, "pool": ("class",)})},
            "vit.",
        ),
        Target(
            "ResNetForImageClassification",
            "resnet",
            "hf_resnet",
            {"model": CLASSIFIER, "image": RESNET_IMAGE},
            "resnet.",
        ),
    ),
    "image": (
        Target(
            "CLIPVisionModelWithProjection",
            "clip_vision_model",
            "hf_clip",
            {"model": _dual(("linear",), _ANY, "projection_dim"), "image": CLIP_IMAGE},
        ),
        Target("CLIPVisionModel", "clip_vision_model", "hf_clip", {"image": CLIP_IMAGE}),
        Target("SiglipVisionModel", "siglip_vision_model", "hf_siglip", {"image": SIGLIP_IMAGE}),
        Target("SiglipVisionModel", "siglip_vision_model", "hf_siglip", {"image": SIGLIP_GRID}),
        Target("ViTModel", "vit", "hf_vit", {"image": VIT_IMAGE}),
        Target("ResNetModel", "resnet", "hf_resnet", {"image": RESNET_IMAGE}),
    ),
    "text": (
        Target(
            "CLIPTextModelWithProjection",
            "clip_text_model",
            "hf_clip",
            {"model": _dual(_ANY, ("linear",), "projection_dim"), "text": CLIP_TEXT},
        ),
        Target("CLIPTextModel", "clip_text_model", "hf_clip", {"text": CLIP_TEXT}),
        Target(
            "SiglipTextModel",
            "siglip_text_model",
            "hf_siglip",
            {"model": _dual(_ANY, ("affine",), "projection_size"), "text": SIGLIP_TEXT},
        ),
        Target("BertModel", "bert", "hf_bert", {"text": BERT_TEXT}),
    ),
}


def write(
    folder: str | Path,
    model: nn.Module,
    params: Mapping[str, Any],
    variables: Mapping[str, Any] | None = None,
    *,
    part: str = "all",
    tokenizer: Any = None,
) -> str:
    """Write model.safetensors and config.json, with images the statistics of their pixels, and a tokenizer that they know.

    Args:
      folder: made where there is none.
      model: a DualEncoder, Classifier or Captioner; params, variables ({"batch_stats": ...}): its own.
      part: "all", or the "image" or "text" tower alone (with its projection, where their class has one).
      tokenizer: of the texts; one that has `write_hugging_face` is written too.

    Returns:
      The name of their class.

    Raises:
      ValueError: they have no class for such a model; says in what the nearest one differs.
    """
    parts = {
        "model": model,
        "image": next(
            (getattr(model, name) for name in ("image", "tower", "encoder") if hasattr(model, name)), None
        ),
        "text": getattr(model, "text", None),
    }
    target = _choose(registry.choose(TARGETS, part, "part"), parts, part)
    arrays = names.to_theirs(_arrays(params, variables or {}, part, target), target.dialect)
    config = {"architectures": [target.name], "model_type": target.model_type, **_config(target, parts)}
    if part == "all" and isinstance(model, DualEncoder):
        # A model that has learned none: their logits are then the plain cosine.
        arrays.setdefault("logit_scale", np.zeros((1,) if target.model_type == "siglip" else (), np.float32))
        if target.model_type == "siglip":
            arrays.setdefault("logit_bias", np.zeros((1,), np.float32))
    from safetensors.numpy import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        name if name.startswith("classifier") else target.prefix + name: x for name, x in arrays.items()
    }
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "config.json", config)
    if "image" in target.needs:
        _write_json(folder / "preprocessor_config.json", _preprocessor(model, parts["image"]))
    if "text" in target.needs and hasattr(tokenizer, "write_hugging_face"):
        tokenizer.write_hugging_face(folder)
    return target.name


def _choose(targets: tuple[Target, ...], parts: Mapping[str, nn.Module | None], part: str) -> Target:
    """The class that the model is of."""
    found = []
    for target in targets:
        wrong = [line for name, need in target.needs.items() for line in need.differences(name, parts[name])]
        if target.needs.get("text") is CLIP_TEXT and getattr(parts["text"], "eos", None) == 2:
            wrong.append(
                "its text ends with a token that is not 2, which it takes for an old mistake and pools at the largest id; "
                "train with CLIP's tokenizer"
            )
        if not wrong:
            return target
        found.append((wrong, target.name))
    wrong, name = min(found, key=lambda pair: len(pair[0]))
    other = "" if part != "all" else ' A tower alone may have one: part "image" or "text".'
    raise ValueError(
        f"transformers has no class for this {type(parts['model']).__name__} (part {part}). The nearest, {name}, differs:\n  "
        + "\n  ".join(wrong)
        + f"\n{other}".rstrip()
    )


def _config(target: Target, parts: Mapping[str, nn.Module]) -> dict[str, Any]:
    config = {name: need.config(parts[name]) for name, need in target.needs.items()}
    shared = config.pop("model", {})
    if len(config) == 1:
        return {**shared, **next(iter(config.values()))}
    kinds = {"image": "vision", "text": "text"}
    return shared | {
        f"{kind}_config": {"model_type": f"{target.model_type}_{kind}_model", **shared, **config[name]}
        for name, kind in kinds.items()
    }


def _arrays(params: Mapping, variables: Mapping, part: str, target: Target) -> dict[str, np.ndarray]:
    """The part's arrays by the names of the tables."""
    trees = {"params": params, **variables}
    where = {"encoder": "image"} if "encoder" in params else load.place(params)
    arrays = {load.placed(name, where): load.get(trees, slot) for name, slot in load.flatten(trees).items()}
    if part == "all":
        return arrays
    keep = [f"{part}/"] + [f"{part}_projection/"] * ("model" in target.needs)
    return {name: x for name, x in arrays.items() if name.startswith(tuple(keep))}


def _preprocessor(model: DualEncoder | Classifier | Captioner, tower: nn.Module) -> dict[str, Any]:
    """How a picture becomes the tower's input. The size is the tower's; where it has none, a picture keeps its own."""
    mean, std = pixels.STATISTICS[model.pixels]
    size = getattr(tower, "image_size", None) if isinstance(tower, ViT) else None
    resize = {"size": {"height": size, "width": size}, "resample": 3} if size else {}
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": bool(size),
        **resize,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
