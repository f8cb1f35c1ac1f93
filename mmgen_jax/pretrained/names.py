"""What other libraries call our parameters and how they lay them out: one table a library, one engine, both ways.

A table is written against one tree that holds every model of ours: image/<tower>, text/<tower>, image_projection,
text_projection, logit_scale, logit_bias, head; blocks are block1, block2, ... whether a tower scans over them or not.
"""

import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from einops import rearrange

Arrays = tuple[np.ndarray | None, ...]

# Buffers of PyTorch modules that are no weights.
IGNORED = re.compile(
    r"(.*\.)?(num_batches_tracked|position_ids|token_type_ids|attn_mask|input_resolution|context_length|vocab_size)"
)


class Leaf(NamedTuple):
    """Arrays of ours that hold the same numbers as arrays of theirs.

    In names, {i} stands for a number that counts from 0 and {I} for the same counting from 1; so do j, k.

    Attributes:
      ours, theirs: names.
      read: their arrays -> ours; None for what the file does not have.
      write: our arrays -> theirs.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    read: Callable[..., Arrays]
    write: Callable[..., Arrays]


Table = tuple[Leaf, ...]


# --- layouts ---


def _one(ours: str, theirs: str, read: Callable = lambda x: x, write: Callable | None = None) -> Leaf:
    write = write or read
    return Leaf((ours,), (theirs,), lambda x: (read(x),), lambda x: (write(x),))


def array(ours: str, theirs: str, lead: int = 0) -> Table:
    """The same array; theirs with `lead` axes of length 1 in front."""
    front = (1,) * lead
    return (_one(ours, theirs, lambda x: x.reshape(x.shape[lead:]), lambda x: x.reshape(front + x.shape)),)


# Of a linear layer: ours [I, O] and theirs [O, I], each with a bias; transposing leaves the vector as it is.
_LINEAR = (("kernel", "weight"), ("bias", "bias"))


def dense(ours: str, theirs: str, separator: str = ".") -> Table:
    """A linear layer."""
    return tuple(_one(f"{ours}/{part}", f"{theirs}{separator}{name}", np.transpose) for part, name in _LINEAR)


def fused(ours: str, *theirs: str) -> Table:
    """One linear layer of ours (query, key and value side by side) that is several of theirs."""
    return tuple(
        Leaf(
            (f"{ours}/{part}",),
            tuple(f"{layer}.{name}" for layer in theirs),
            lambda *xs: (np.concatenate(xs).T,),
            lambda x: tuple(np.split(x.T, len(theirs))),
        )
        for part, name in _LINEAR
    )


def split(ours: Sequence[str], theirs: str, separator: str = ".") -> Table:
    """Several linear layers of ours that are one of theirs."""
    return tuple(
        Leaf(
            tuple(f"{layer}/{part}" for layer in ours),
            (f"{theirs}{separator}{name}",),
            lambda x: tuple(part.T for part in np.split(x, len(ours))),
            lambda *xs: (np.concatenate([x.T for x in xs]),),
        )
        for part, name in _LINEAR
    )


def norm(ours: str, theirs: str) -> Table:
    """A layer norm."""
    return (_one(f"{ours}/scale", f"{theirs}.weight"), _one(f"{ours}/bias", f"{theirs}.bias"))


def batch_norm(ours: str, theirs: str) -> Table:
    """A batch norm with its statistics, which are variables of ours, not parameters."""
    statistics = (
        _one(f"{ours}/mean", f"{theirs}.running_mean"),
        _one(f"{ours}/var", f"{theirs}.running_var"),
    )
    return (*norm(ours, theirs), *statistics)


def convolution(ours: str, theirs: str) -> Table:
    """A convolution without bias: [H, W, I, O], theirs [O, I, H, W]; one of 1x1 is a dense kernel [I, O] of ours."""

    def read(x: np.ndarray) -> np.ndarray:
        x = rearrange(x, "o i h w -> h w i o")
        return x[0, 0] if x.shape[:2] == (1, 1) else x

    def write(x: np.ndarray) -> np.ndarray:
        return rearrange(x if x.ndim == 4 else x[None, None], "h w i o -> o i h w")

    return (_one(f"{ours}/kernel", f"{theirs}.weight", read, write),)


def patches(ours: str, theirs: str) -> Table:
    """A ViT's first layer: a dense kernel over a patch's pixels (rows, columns, colours), theirs a convolution."""

    def write(x: np.ndarray) -> np.ndarray:
        side = math.isqrt(len(x) // 3)
        return rearrange(x, "(p q c) d -> d c p q", p=side, q=side)

    kernel = _one(f"{ours}/kernel", f"{theirs}.weight", lambda x: rearrange(x, "d c p q -> (p q c) d"), write)
    return (kernel, _one(f"{ours}/bias", f"{theirs}.bias"))


def positions(theirs: str, lead: int = 0) -> Table:
    """A ViT's positions: [side, side, D] and the class token's own [D]; theirs [1 + side * side, D], or without that row."""

    def read(x: np.ndarray) -> Arrays:
        x = x.reshape(x.shape[lead:])
        side = math.isqrt(len(x))
        first = len(x) - side * side
        if first > 1:
            raise ValueError(f"{len(x)} positions are no square grid, with or without a class token")
        return rearrange(x[first:], "(h w) d -> h w d", h=side), x[0] if first else None

    def write(grid: np.ndarray, first: np.ndarray | None) -> Arrays:
        x = rearrange(grid, "h w d -> (h w) d")
        x = x if first is None else np.concatenate([first[None], x])
        return (x.reshape((1,) * lead + x.shape),)

    return (Leaf(("position", "class_position"), (theirs,), read, write),)


def under(ours: str, theirs: str, *tables: Table) -> Table:
    """The tables with something in front of all names."""
    return tuple(
        Leaf(
            tuple(ours + name for name in leaf.ours), tuple(theirs + name for name in leaf.theirs), *leaf[2:]
        )
        for table in tables
        for leaf in table
    )


# --- Hugging Face transformers ---

QKV = ("pool/query", "pool/key", "pool/value")

_HF_CLIP_BLOCK = (
    *norm("attention_norm", "layer_norm1"),
    *fused("qkv", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    *dense("out", "self_attn.out_proj"),
    *norm("mlp_norm", "layer_norm2"),
    *dense("mlp_in", "mlp.fc1"),
    *dense("mlp_out", "mlp.fc2"),
)
_HF_CLIP_VISION = (
    *array("class_token", "embeddings.class_embedding"),
    *patches("embed", "embeddings.patch_embedding"),
    *positions("embeddings.position_embedding.weight"),
    *norm("pre_norm", "pre_layrnorm"),
    *under("block{I}/", "encoder.layers.{i}.", _HF_CLIP_BLOCK),
    *norm("norm", "post_layernorm"),
    *array("pool/probe", "head.probe", lead=2),
    *split(QKV, "head.attention.in_proj", "_"),
    *dense("pool/out", "head.attention.out_proj"),
    *norm("pool/norm", "head.layernorm"),
    *dense("pool/mlp_in", "head.mlp.fc1"),
    *dense("pool/mlp_out", "head.mlp.fc2"),
)
_HF_CLIP_TEXT = (
    *array("embed", "embeddings.token_embedding.weight"),
    *array("position", "embeddings.position_embedding.weight"),
    *under("block{I}/", "encoder.layers.{i}.", _HF_CLIP_BLOCK),
    *norm("norm", "final_layer_norm"),
)
_HF_CLIP_TOWERS = (
    *under("image/", "vision_model.", _HF_CLIP_VISION),
    *under("text/", "text_model.", _HF_CLIP_TEXT),
    *dense("head", "classifier"),
)
HF_CLIP = (
    *_HF_CLIP_TOWERS,
    *dense("image_projection", "visual_projection"),
    *dense("text_projection", "text_projection"),
    *array("logit_scale", "logit_scale"),
)
HF_SIGLIP = (
    *_HF_CLIP_TOWERS,
    *dense("text_projection", "text_model.head"),
    *array("logit_scale", "logit_scale", lead=1),
    *array("logit_bias", "logit_bias", lead=1),
)
HF_VIT = under(
    "image/",
    "",
    array("class_token", "embeddings.cls_token", lead=2),
    positions("embeddings.position_embeddings", lead=1),
    patches("embed", "embeddings.patch_embeddings.projection"),
    under(
        "block{I}/",
        "encoder.layer.{i}.",
        norm("attention_norm", "layernorm_before"),
        fused("qkv", *(f"attention.attention.{name}" for name in ("query", "key", "value"))),
        dense("out", "attention.output.dense"),
        norm("mlp_norm", "layernorm_after"),
        dense("mlp_in", "intermediate.dense"),
        dense("mlp_out", "output.dense"),
    ),
    norm("norm", "layernorm"),
) + dense("head", "classifier")
HF_BERT = under(
    "text/",
    "",
    array("embed", "embeddings.word_embeddings.weight"),
    array("position", "embeddings.position_embeddings.weight"),
    array("segment", "embeddings.token_type_embeddings.weight"),
    norm("embed_norm", "embeddings.LayerNorm"),
    under(
        "block{I}/",
        "encoder.layer.{i}.",
        fused("qkv", *(f"attention.self.{name}" for name in ("query", "key", "value"))),
        dense("out", "attention.output.dense"),
        norm("attention_norm", "attention.output.LayerNorm"),
        dense("mlp_in", "intermediate.dense"),
        dense("mlp_out", "output.dense"),
        norm("mlp_norm", "output.LayerNorm"),
    ),
    dense("pooler", "pooler.dense"),
)
HF_RESNET = under(
    "image/",
    "",
    convolution("stem_conv", "embedder.embedder.convolution"),
    batch_norm("stem_norm", "embedder.embedder.normalization"),
    under(
        "stage{I}_block{J}/",
        "encoder.stages.{i}.layers.{j}.",
        convolution("shortcut_conv", "shortcut.convolution"),
        batch_norm("shortcut_norm", "shortcut.normalization"),
        convolution("conv{K}", "layer.{k}.convolution"),
        batch_norm("norm{K}", "layer.{k}.normalization"),
    ),
) + dense("head", "classifier.1")

# --- OpenAI, torchvision, timm, open_clip ---

_TORCH_STAGES = under(
    "stage{I}_block{J}/",
    "layer{I}.{j}.",
    convolution("conv{K}", "conv{K}"),
    batch_norm("norm{K}", "bn{K}"),
    convolution("shortcut_conv", "downsample.0"),
    batch_norm("shortcut_norm", "downsample.1"),
)
TORCH_RESNET = under(
    "image/", "", convolution("stem_conv", "conv1"), batch_norm("stem_norm", "bn1"), _TORCH_STAGES
) + dense("head", "fc")

_OPENAI_BLOCKS = under(
    "block{I}/",
    "transformer.resblocks.{i}.",
    norm("attention_norm", "ln_1"),
    dense("qkv", "attn.in_proj", "_"),
    dense("out", "attn.out_proj"),
    norm("mlp_norm", "ln_2"),
    dense("mlp_in", "mlp.c_fc"),
    dense("mlp_out", "mlp.c_proj"),
)
_OPENAI_TEXT = under(
    "text/",
    "",
    array("embed", "token_embedding.weight"),
    array("position", "positional_embedding"),
    _OPENAI_BLOCKS,
    norm("norm", "ln_final"),
) + array("text_projection/kernel", "text_projection")
_OPENAI_SCALES = (*array("logit_scale", "logit_scale"), *array("logit_bias", "logit_bias"))
OPENAI_VIT = (
    *under(
        "image/",
        "visual.",
        array("class_token", "class_embedding"),
        positions("positional_embedding"),
        patches("embed", "conv1"),
        norm("pre_norm", "ln_pre"),
        _OPENAI_BLOCKS,
        norm("norm", "ln_post"),
    ),
    *array("image_projection/kernel", "visual.proj"),
    *_OPENAI_TEXT,
    *_OPENAI_SCALES,
)
OPENAI_RESNET = (
    *under(
        "image/",
        "visual.",
        convolution("stem_conv{K}", "conv{K}"),
        batch_norm("stem_norm{K}", "bn{K}"),
        _TORCH_STAGES,
        array("pool/position", "attnpool.positional_embedding"),
        *(dense(f"pool/{name}", f"attnpool.{name[0]}_proj") for name in ("query", "key", "value")),
        dense("pool/out", "attnpool.c_proj"),
    ),
    *_OPENAI_TEXT,
    *_OPENAI_SCALES,
)

_TIMM_VIT = (
    *array("class_token", "cls_token", lead=2),
    *positions("pos_embed", lead=1),
    *patches("embed", "patch_embed.proj"),
    *norm("pre_norm", "norm_pre"),
    *under(
        "block{I}/",
        "blocks.{i}.",
        norm("attention_norm", "norm1"),
        dense("qkv", "attn.qkv"),
        dense("out", "attn.proj"),
        norm("mlp_norm", "norm2"),
        dense("mlp_in", "mlp.fc1"),
        dense("mlp_out", "mlp.fc2"),
    ),
    *norm("norm", "norm"),
    *array("pool/probe", "attn_pool.latent", lead=2),
    *dense("pool/query", "attn_pool.q"),
    *split(QKV[1:], "attn_pool.kv"),
    *dense("pool/out", "attn_pool.proj"),
    *norm("pool/norm", "attn_pool.norm"),
    *dense("pool/mlp_in", "attn_pool.mlp.fc1"),
    *dense("pool/mlp_out", "attn_pool.mlp.fc2"),
)
TIMM_VIT = under("image/", "", _TIMM_VIT) + dense("head", "head")
OPEN_CLIP_TIMM = (
    *under("image/", "visual.trunk.", _TIMM_VIT),
    *dense("image_projection", "visual.head.proj"),
    *_OPENAI_TEXT[:-1],
    *dense("text_projection", "text_projection"),
    *_OPENAI_SCALES,
)
TORCHVISION_VIT = under(
    "image/",
    "",
    array("class_token", "class_token", lead=2),
    positions("encoder.pos_embedding", lead=1),
    patches("embed", "conv_proj"),
    under(
        "block{I}/",
        "encoder.layers.encoder_layer_{i}.",
        norm("attention_norm", "ln_1"),
        dense("qkv", "self_attention.in_proj", "_"),
        dense("out", "self_attention.out_proj"),
        norm("mlp_norm", "ln_2"),
        dense("mlp_in", "mlp.0"),
        dense("mlp_out", "mlp.3"),
    ),
    norm("norm", "encoder.ln"),
) + dense("head", "heads.head")

# torchvision's Inception-v3; the FID papers' network has the same names in PyTorch.
_INCEPTION_UNITS = (
    *(f"Conv2d_{{i}}{letter}_{{j}}x{{k}}" for letter in "ab"),
    *(
        f"Mixed_{{i}}{letter}.{branch}"
        for letter in "abcde"
        for branch in (
            "branch{j}x{k}",
            *(
                f"branch{{j}}x{{k}}{which}_{{l}}{end}"
                for which in ("", "dbl", "x{m}")
                for end in ("", "a", "b")
            ),
            "branch_pool",
        )
    ),
)
TORCH_INCEPTION = (
    *under(
        "image/",
        "",
        *(
            under(
                f"{unit.lower().replace('.', '/')}/",
                f"{unit}.",
                convolution("conv", "conv"),
                batch_norm("norm", "bn"),
            )
            for unit in _INCEPTION_UNITS
        ),
        dense("head", "fc"),
    ),
    *dense("head", "fc"),
)

# Names of today's libraries and of their past, as the tables have them.
RENAMED = (
    ("LayerNorm.gamma", "LayerNorm.weight"),
    ("LayerNorm.beta", "LayerNorm.bias"),
    ("mlp.linear_1.", "mlp.0."),
    ("mlp.linear_2.", "mlp.3."),
)
# transformers 5 has other names for a ViT in memory than in its files.
_HF_VIT_5 = (
    (r"^layers\.(\d+)\.", r"encoder.layer.\1."),
    (r"attention\.q_proj\.", "attention.attention.query."),
    (r"attention\.k_proj\.", "attention.attention.key."),
    (r"attention\.v_proj\.", "attention.attention.value."),
    (r"attention\.o_proj\.", "attention.output.dense."),
    (r"mlp\.fc1\.", "intermediate.dense."),
    (r"mlp\.fc2\.", "output.dense."),
)


class Dialect(NamedTuple):
    """A library's names for one architecture.

    Attributes:
      title: for messages.
      table: between our names and theirs.
      views: what may stand before their names, or be missing there: (to take away, to put before).
      renamed: (pattern, replacement) of names that the library also has used.
    """

    title: str
    table: Table
    views: tuple[tuple[str, str], ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()


_HF_PARTS = (("", "vision_model."), ("", "text_model."))
DIALECTS = {
    "hf_clip": Dialect("Hugging Face CLIP", HF_CLIP, _HF_PARTS),
    "hf_siglip": Dialect("Hugging Face SigLIP", HF_SIGLIP, _HF_PARTS),
    "hf_vit": Dialect("Hugging Face ViT", HF_VIT, (("vit.", ""),), _HF_VIT_5),
    "hf_bert": Dialect("Hugging Face BERT", HF_BERT, (("bert.", ""),)),
    "hf_resnet": Dialect("Hugging Face ResNet", HF_RESNET, (("resnet.", ""),)),
    "openai_vit": Dialect("OpenAI CLIP with a ViT", OPENAI_VIT, (("text.", ""), ("", "visual."))),
    "openai_resnet": Dialect("OpenAI CLIP with a ResNet", OPENAI_RESNET, (("text.", ""), ("", "visual."))),
    "open_clip_timm": Dialect("open_clip with a timm ViT", OPEN_CLIP_TIMM, (("text.", ""),)),
    "torch_resnet": Dialect("torchvision or timm ResNet", TORCH_RESNET),
    "torch_inception": Dialect("torchvision or FID Inception-v3", TORCH_INCEPTION),
    "torchvision_vit": Dialect("torchvision ViT", TORCHVISION_VIT),
    "timm_vit": Dialect("timm ViT", TIMM_VIT),
}


# --- the engine ---


def _skeleton(name: str) -> str:
    """A name with its numbers alike: what a name and its template share."""
    return re.sub(r"\d+|\{\w\}", "#", name)


def _pattern(template: str) -> re.Pattern:
    parts = re.split(r"\{(\w)\}", template)
    return re.compile(
        "".join(rf"(?P<{part}>\d+)" if i % 2 else re.escape(part) for i, part in enumerate(parts))
    )


def concrete(table: Table, ours: Iterable[str], theirs: Iterable[str]) -> Iterator[Leaf]:
    """The table's leaves of which a name occurs on either side, with numbers in place of {i}."""
    sides = []
    for names in (ours, theirs):
        groups: dict[str, list[str]] = {}
        for name in names:
            groups.setdefault(_skeleton(name), []).append(name)
        sides.append(groups)
    for leaf in table:
        found: dict[tuple, None] = {}
        for groups, templates in zip(sides, (leaf.ours, leaf.theirs), strict=True):
            for template in templates:
                for name in groups.get(_skeleton(template), ()):
                    if match := _pattern(template).fullmatch(name):
                        numbers = {x.lower(): int(v) - x.isupper() for x, v in match.groupdict().items()}
                        found[tuple(sorted(numbers.items()))] = None
        for numbers in found:
            fill = {**dict(numbers), **{x.upper(): v + 1 for x, v in numbers}}
            names = (tuple(name.format(**fill) for name in side) for side in (leaf.ours, leaf.theirs))
            yield Leaf(*names, leaf.read, leaf.write)


def recognise(names: Collection[str]) -> tuple[str, dict[str, str], int]:
    """Whose names these are.

    Returns:
      The dialect that knows most of them, {name as its table has it: name}, and how many of them it knows.
    """
    names = [name for name in names if not IGNORED.fullmatch(name)]
    best = ("", {}, -1)
    for key, dialect in DIALECTS.items():
        known = {_skeleton(name) for leaf in dialect.table for name in leaf.theirs}
        for view in (("", ""), *dialect.views):
            renamed = {_rename(name, dialect, view): name for name in names}
            count = sum(_skeleton(name) in known for name in renamed)
            if count > best[2]:
                best = (key, renamed, count)
    return best


def _rename(name: str, dialect: Dialect, view: tuple[str, str]) -> str:
    away, front = view
    name = name.removeprefix(away)
    for old, new in RENAMED:
        name = name.replace(old, new)
    for pattern, new in dialect.renamed:
        name = re.sub(pattern, new, name)
    return front + name


def to_theirs(ours: Mapping[str, np.ndarray], dialect: str) -> dict[str, np.ndarray]:
    """Our arrays under their names and in their layouts.

    Raises:
      ValueError: an array has no place there.
    """
    title, table, *_ = DIALECTS[dialect]
    theirs: dict[str, np.ndarray] = {}
    rest = dict.fromkeys(ours)
    for leaf in concrete(table, ours, ()):
        if leaf.ours[0] not in ours:
            continue
        arrays = leaf.write(*(ours.get(name) for name in leaf.ours))
        theirs.update(zip(leaf.theirs, (np.asarray(x, order="C") for x in arrays), strict=True))
        for name in leaf.ours:
            rest.pop(name, None)
    if rest:
        raise ValueError(f"{title} has no place for {', '.join(list(rest)[:8])}.")
    # PyTorch counts the batches that its statistics have seen; with a fixed momentum nothing depends on it.
    counts = [name.replace("running_var", "num_batches_tracked") for name in theirs if "running_var" in name]
    theirs.update({name: np.zeros((), np.int64) for name in counts})
    return theirs
