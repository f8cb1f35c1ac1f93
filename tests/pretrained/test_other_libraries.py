"""OpenAI's, torchvision's, timm's and open_clip's names, on plain PyTorch models written here: outputs and round trips."""

import jax.numpy as jnp
import numpy as np
import pytest

from mmgen_jax.models.classifier import Classifier
from mmgen_jax.models.dual_encoder import DualEncoder
from mmgen_jax.nn import pixels
from mmgen_jax.nn.resnet import ResNet
from mmgen_jax.nn.text_transformer import TextTransformer
from mmgen_jax.nn.vit import ViT
from mmgen_jax.pretrained import names
from mmgen_jax.pretrained.load import load

torch = pytest.importorskip("torch")
nn = torch.nn
F = nn.functional
EOS = 20  # of a vocabulary of 21


class Holder(nn.Module):
    """A module of these parts, a tuple being a parameter's shape; dots make modules within."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, tuple):
                self.register_parameter(name, nn.Parameter(torch.zeros(part)))
            else:
                self.add_module(name, part)


# --- residual networks ---


def convolution(inputs, outputs, kernel, stride=1):
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


class ResBlock(nn.Module):
    """torchvision's basic and bottleneck block, and with `blur` OpenAI's: a stride is an average pool."""

    def __init__(self, inputs, width, stride, bottleneck, blur):
        super().__init__()
        plan = [(width, 1), (width, 3), (4 * width, 1)] if bottleneck else [(width, 3), (width, 3)]
        self.count, self.strided, last = len(plan), int(bottleneck), inputs
        self.pool = nn.AvgPool2d(stride) if blur else nn.Identity()
        for i, (features, kernel) in enumerate(plan):
            here = stride if i == self.strided and not blur else 1
            self.add_module(f"conv{i + 1}", convolution(last, features, kernel, here))
            self.add_module(f"bn{i + 1}", nn.BatchNorm2d(features))
            last = features
        self.downsample = None
        if stride > 1 or inputs != last:
            shortcut = convolution(inputs, last, 1, 1 if blur else stride)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(last))

    def forward(self, x):
        y = x
        for i in range(self.count):
            y = getattr(self, f"bn{i + 1}")(getattr(self, f"conv{i + 1}")(y))
            y = torch.relu(y) if i + 1 < self.count else y
            y = self.pool(y) if i == self.strided else y
        return torch.relu(y + (x if self.downsample is None else self.downsample(self.pool(x))))


def stages(counts, width, inputs, bottleneck, blur=False):
    layers = {}
    for i, count in enumerate(counts):
        blocks = []
        for j in range(count):
            blocks.append(ResBlock(inputs, width * 2**i, 2 if i and not j else 1, bottleneck, blur))
            inputs = width * 2**i * (4 if bottleneck else 1)
        layers[f"layer{i + 1}"] = nn.Sequential(*blocks)
    return layers, inputs


class TorchResNet(Holder):
    def __init__(self, counts, width, bottleneck, classes):
        layers, features = stages(counts, width, width, bottleneck)
        super().__init__(
            conv1=nn.Conv2d(3, width, 7, 2, 3, bias=False), bn1=nn.BatchNorm2d(width), **layers,
            fc=nn.Linear(features, classes),
        )  # fmt: skip
        self.names = list(layers)

    def forward(self, x):
        x = F.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for name in self.names:
            x = getattr(self, name)(x)
        return self.fc(x.mean((2, 3)))


class OpenAiResNet(Holder):
    """Three convolutions as stem, blur pools, and a pool in which the mean attends over all places."""

    def __init__(self, counts, width, side, embed, heads):
        layers, features = stages(counts, width, width, True, blur=True)
        half = width // 2
        stem = {"conv1": convolution(3, half, 3, 2), "conv2": convolution(half, half, 3)}
        stem |= {"conv3": convolution(half, width, 3)}
        norms = {f"bn{i + 1}": nn.BatchNorm2d(n) for i, n in enumerate((half, half, width))}
        linear = {f"{name}_proj": nn.Linear(features, features) for name in "kqv"}
        pool = Holder(
            positional_embedding=(side**2 + 1, features), **linear, c_proj=nn.Linear(features, embed)
        )
        super().__init__(**stem, **norms, **layers, attnpool=pool)
        self.names, self.heads = list(layers), heads

    def forward(self, x):
        for i in "123":
            x = torch.relu(getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x)))
        x = F.avg_pool2d(x, 2)
        for name in self.names:
            x = getattr(self, name)(x)
        pool, x = self.attnpool, x.flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(1, keepdim=True), x], 1) + pool.positional_embedding
        q, k, v = pool.q_proj(x[:, :1]), pool.k_proj(x), pool.v_proj(x)
        return pool.c_proj(attend(q, k, v, self.heads))[:, 0]


# --- transformers ---


def attend(q, k, v, heads, causal=False):
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2)


def quick_gelu(x):
    return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """A pre-norm block with the names of "openai", "torchvision" or "timm"."""

    def __init__(self, style, width, heads, causal=False):
        super().__init__()
        first, second = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.heads, self.causal = heads, causal
        self.activation = quick_gelu if style == "openai" else F.gelu
        if style == "timm":
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.attn = Holder(qkv=nn.Linear(width, 3 * width), proj=nn.Linear(width, width))
            self.mlp = Holder(fc1=first, fc2=second)
            self.parts = self.norm1, self.attn.qkv, self.attn.proj, self.norm2, first, second
            return
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        attention = nn.MultiheadAttention(width, heads)
        self.add_module("attn" if style == "openai" else "self_attention", attention)
        first_name, second_name = ("c_fc", "c_proj") if style == "openai" else ("0", "3")
        self.mlp = Holder(**{first_name: first, second_name: second})
        joint = lambda x: F.linear(x, attention.in_proj_weight, attention.in_proj_bias)
        self.parts = self.ln_1, joint, attention.out_proj, self.ln_2, first, second

    def forward(self, x):
        norm1, qkv, out, norm2, first, second = self.parts
        x = x + out(attend(*qkv(norm1(x)).chunk(3, -1), self.heads, self.causal))
        return x + second(self.activation(first(norm2(x))))


def run_blocks(blocks, x):
    for block in blocks.children():
        x = block(x)
    return x


def tokens_of(image, conv, first, position):
    """Patches as tokens, the class token before them if there is one, and positions."""
    x = conv(image).flatten(2).transpose(1, 2)
    if first is not None:
        x = torch.cat([first.reshape(1, 1, -1).expand(len(x), -1, -1), x], 1)
    return x + position


class OpenAiVit(Holder):
    def __init__(self, width, depth, heads, patch, side, embed):
        blocks = nn.Sequential(*(Block("openai", width, heads) for _ in range(depth)))
        super().__init__(
            class_embedding=(width,), positional_embedding=(side**2 + 1, width), proj=(width, embed),
            conv1=nn.Conv2d(3, width, patch, patch, bias=False), ln_pre=nn.LayerNorm(width),
            transformer=Holder(resblocks=blocks), ln_post=nn.LayerNorm(width),
        )  # fmt: skip

    def forward(self, image):
        x = self.ln_pre(tokens_of(image, self.conv1, self.class_embedding, self.positional_embedding))
        return self.ln_post(run_blocks(self.transformer.resblocks, x)[:, 0]) @ self.proj


class OpenAiClip(Holder):
    def __init__(self, visual, width, depth, heads, length, embed):
        blocks = nn.Sequential(*(Block("openai", width, heads, causal=True) for _ in range(depth)))
        super().__init__(
            positional_embedding=(length, width), text_projection=(width, embed), logit_scale=(),
            visual=visual, transformer=Holder(resblocks=blocks),
            token_embedding=nn.Embedding(EOS + 1, width), ln_final=nn.LayerNorm(width),
        )  # fmt: skip

    def forward(self, image, text):
        x = self.token_embedding(text) + self.positional_embedding
        x = self.ln_final(run_blocks(self.transformer.resblocks, x))
        x = x[torch.arange(len(x)), text.argmax(-1)] @ self.text_projection
        return F.normalize(self.visual(image), dim=-1), F.normalize(x, dim=-1)


class TorchvisionVit(Holder):
    def __init__(self, width, depth, heads, patch, side, classes):
        blocks = {f"encoder_layer_{i}": Block("torchvision", width, heads) for i in range(depth)}
        super().__init__(
            class_token=(1, 1, width), conv_proj=nn.Conv2d(3, width, patch, patch),
            encoder=Holder(
                pos_embedding=(1, side**2 + 1, width), layers=Holder(**blocks), ln=nn.LayerNorm(width)
            ),
            heads=Holder(head=nn.Linear(width, classes)),
        )  # fmt: skip

    def forward(self, image):
        x = tokens_of(image, self.conv_proj, self.class_token, self.encoder.pos_embedding)
        return self.heads.head(self.encoder.ln(run_blocks(self.encoder.layers, x))[:, 0])


class TimmVit(Holder):
    """With a class token and a head, or with `classes` of 0 and attention pooling, as SigLIP in timm."""

    def __init__(self, width, depth, heads, patch, side, classes):
        blocks = nn.Sequential(*(Block("timm", width, heads) for _ in range(depth)))
        super().__init__(
            **({"cls_token": (1, 1, width)} if classes else {}),
            pos_embed=(1, side**2 + bool(classes), width),
            patch_embed=Holder(proj=nn.Conv2d(3, width, patch, patch)), blocks=blocks, norm=nn.LayerNorm(width),
        )  # fmt: skip
        self.pool_heads = heads
        if classes:
            self.head = nn.Linear(width, classes)
        else:
            mlp = Holder(fc1=nn.Linear(width, 2 * width), fc2=nn.Linear(2 * width, width))
            self.attn_pool = Holder(
                latent=(1, 1, width), q=nn.Linear(width, width), kv=nn.Linear(width, 2 * width),
                proj=nn.Linear(width, width), norm=nn.LayerNorm(width), mlp=mlp,
            )  # fmt: skip

    def forward(self, image):
        first = getattr(self, "cls_token", None)
        x = self.norm(run_blocks(self.blocks, tokens_of(image, self.patch_embed.proj, first, self.pos_embed)))
        if first is not None:
            return self.head(x[:, 0])
        pool = self.attn_pool
        x = pool.proj(
            attend(pool.q(pool.latent.expand(len(x), -1, -1)), *pool.kv(x).chunk(2, -1), self.pool_heads)
        )
        return (x + pool.mlp.fc2(F.gelu(pool.mlp.fc1(pool.norm(x)))))[:, 0]


# --- the tests ---


def images(side):
    """uint8 [3, side, side, 3], and as a PyTorch model takes them."""
    image = np.random.default_rng(0).integers(0, 256, (3, side, side, 3), np.uint8)
    x = np.asarray(pixels.normalise(jnp.asarray(image), "imagenet", jnp.float32))
    return image, torch.tensor(x.transpose(0, 3, 1, 2))


VIT = dict(width=12, depth=2, heads=3, patch=4, image_size=12, mlp_ratio=2.0, epsilon=1e-5)
SIZE = (12, 2, 3, 4, 3)  # the same for the PyTorch models


CLASSIFIERS = {
    "torchvision_vit": (TorchvisionVit(*SIZE, 5), ViT(**VIT, class_token=True, pool="class"), 12),
    "timm_vit": (TimmVit(*SIZE, 5), ViT(**VIT, class_token=True, pool="class", scan=True), 12),
    "torch_resnet": (TorchResNet((1, 2), 8, False, 5), ResNet((1, 2), "basic", 8, pool="mean"), 32),
    "torch_resnet_50": (TorchResNet((2, 1), 4, True, 5), ResNet((2, 1), "bottleneck", 4, pool="mean"), 32),
}


@pytest.mark.parametrize("case", CLASSIFIERS)
def test_classifiers(case, scramble, state, empty, flat, equal_names, run, tmp_path):
    theirs, tower, side = CLASSIFIERS[case]
    torch.save({"state_dict": scramble(theirs).state_dict()}, tmp_path / "weights.pth")
    (image, inputs), ours = images(side), Classifier(tower, 5)
    params, variables, report = load(tmp_path / "weights.pth", *empty(ours, image, train=False))
    assert not (report.missing or report.left or report.mismatched), report
    with torch.no_grad():
        expect = theirs(inputs).numpy()
    np.testing.assert_allclose(run(ours, params, variables, image, train=False), expect, atol=1e-4)
    dialect = case.removesuffix("_50")
    assert names.DIALECTS[dialect].title in report.source
    equal_names(names.to_theirs(flat(params, variables), dialect), state(theirs))


TEXT = dict(width=8, depth=2, heads=2, max_len=7, mlp_ratio=2.0, causal=True, pool="end", epsilon=1e-5)
QUICK = {"activation": "quick_gelu"}
CLIP = dict(class_token=True, pre_norm=True, patch_bias=False, pool="class", **QUICK)
BLUR = dict(block="bottleneck", width=4, stem="deep", antialias=True, pool="attention", pool_features=10)
CLIPS = {
    "openai_vit": (OpenAiVit(*SIZE, 10), ViT(**VIT, **CLIP), 12, "linear"),
    "openai_resnet": (
        OpenAiResNet((1, 2), 4, 4, 10, 4), ResNet((1, 2), **BLUR, pool_heads=4, image_size=32), 32, "none",
    ),
    "openai_resnet_deeper": (
        OpenAiResNet((2, 1, 1), 4, 2, 10, 2), ResNet((2, 1, 1), **BLUR, pool_heads=2, image_size=32), 32, "none",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CLIPS)
def test_openai_clip(case, scramble, state, empty, flat, equal_names, run, same, tmp_path):
    visual, tower, side, head = CLIPS[case]
    theirs = scramble(OpenAiClip(visual, 8, 2, 2, 7, 10))
    torch.save(theirs.state_dict(), tmp_path / "clip.pt")
    text = np.random.default_rng(1).integers(1, EOS, (3, 7)).astype(np.int32)
    for row, end in enumerate((2, 6, 4)):
        text[row, end:] = [EOS] + [0] * (6 - end)
    image, inputs = images(side)
    ours = DualEncoder(tower, TextTransformer(EOS + 1, EOS, **TEXT, **QUICK), 10, image_head=head)
    params, variables, report = load(tmp_path / "clip.pt", *empty(ours, image, text[:, None]))
    assert not (report.missing or report.left or report.mismatched), report
    with torch.no_grad():
        expect = theirs(inputs, torch.tensor(text).long())
    image_embed, text_embed = run(ours, params, variables, image, text[:, None])
    np.testing.assert_allclose(image_embed, expect[0].numpy(), atol=1e-4)
    np.testing.assert_allclose(text_embed[:, 0], expect[1].numpy(), atol=1e-4)
    dialect = case.removesuffix("_deeper")
    equal_names(names.to_theirs(flat(params, variables), dialect), state(theirs))
    # open_clip's other nesting, in half precision; and the image tower alone, which lacks its head.
    nested = {
        k if k.startswith(("visual", "logit")) else f"text.{k}": v.half()
        for k, v in theirs.state_dict().items()
    }
    torch.save(nested, tmp_path / "half.pt")
    half, _, report = load(tmp_path / "half.pt", *empty(ours, image, text[:, None]))
    assert not (report.missing or report.left or report.mismatched), report
    np.testing.assert_allclose(half["text"]["embed"], params["text"]["embed"], rtol=1e-3, atol=1e-4)
    torch.save(visual.state_dict(), tmp_path / "visual.pt")
    x = np.asarray(inputs).transpose(0, 2, 3, 1)
    alone, statistics, report = load(tmp_path / "visual.pt", *empty(tower, x, train=False))
    same(alone, params["image"])
    assert report.left == (["proj"] if case == "openai_vit" else [])
    same(statistics.get("batch_stats", {}), variables.get("batch_stats", {}).get("image", {}))


def test_timm_with_attention_pooling_alone_and_in_open_clip(
    scramble, state, empty, flat, equal_names, run, tmp_path
):
    theirs, tower = scramble(TimmVit(*SIZE, 0)), ViT(**VIT, pool="map")
    torch.save(theirs.state_dict(), tmp_path / "vit.pt")
    _, inputs = images(12)
    x = np.asarray(inputs).transpose(0, 2, 3, 1)
    params, _, report = load(tmp_path / "vit.pt", *empty(tower, x, train=False))
    assert not (report.missing or report.left or report.mismatched), report
    with torch.no_grad():
        expect = theirs(inputs).numpy()
    np.testing.assert_allclose(run(tower, params, {}, x, train=False), expect, atol=1e-4)
    equal_names(names.to_theirs(flat(params, {}), "timm_vit"), state(theirs))
    clip = scramble(OpenAiClip(Holder(trunk=theirs), 8, 1, 2, 7, 12), seed=1)
    both = {k if k.startswith(("visual", "logit")) else f"text.{k}": v for k, v in clip.state_dict().items()}
    head = both.pop("text.text_projection")
    both |= {"text.text_projection.weight": head.T, "text.text_projection.bias": head[0]}
    torch.save({**both, "logit_bias": torch.tensor([-9.0])}, tmp_path / "both.pt")
    text = TextTransformer(EOS + 1, EOS, **{**TEXT, "depth": 1})
    ours = DualEncoder(tower, text, 12, image_head="none", text_head="affine", bias=-10.0)
    params, _, report = load(
        tmp_path / "both.pt", *empty(ours, images(12)[0], np.full((3, 1, 7), EOS, np.int32))
    )
    assert not (report.missing or report.left or report.mismatched), report
    assert params["logit_bias"] == -9.0
    np.testing.assert_array_equal(params["text_projection"]["kernel"], head.numpy())
