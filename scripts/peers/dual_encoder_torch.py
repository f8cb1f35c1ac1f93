"""CLIP in PyTorch, plainly: peers for scripts/benchmark.py (extra "torch"). Names and sizes are those of OpenAI's weights."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from peers import training
from torch import Tensor, nn

HEAD = 64  # features of an attention head
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Attention(nn.Module):
    """Multi-head self-attention through PyTorch's own kernel. [B, T, D] -> [B, T, D]."""

    def __init__(self, width: int, causal: bool):
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)
        self.causal = causal

    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = x.unflatten(-1, (3, -1, HEAD)).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out_proj(x.transpose(1, 2).flatten(2))


class QuickGelu(nn.Module):
    """The sigmoid approximation that CLIP was trained with."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """Pre-norm attention and MLP, each beside a shortcut. [B, T, D] -> [B, T, D]."""

    def __init__(self, width: int, causal: bool):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, causal)
        self.mlp = nn.Sequential()
        for name, layer in (
            ("c_fc", nn.Linear(width, 4 * width)),
            ("gelu", QuickGelu()),
            ("c_proj", nn.Linear(4 * width, width)),
        ):
            self.mlp.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """[B, T, D] -> [B, T, D]."""

    def __init__(self, width: int, depth: int, causal: bool):
        super().__init__()
        self.resblocks = nn.Sequential(*(Block(width, causal) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.resblocks(x)


class VisionTransformer(nn.Module):
    """image [B, 3, H, W] -> [B, embed]."""

    def __init__(self, *, width: int, depth: int, patch: int, positions: int, embed: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(positions, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Transformer(width, depth, causal=False)
        self.proj = nn.Parameter(torch.empty(width, embed))

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv1(image).flatten(2).transpose(1, 2)
        first = self.class_embedding.to(x.dtype).expand(len(x), 1, -1)
        x = torch.cat([first, x], 1) + self.positional_embedding.to(x.dtype)
        x = self.transformer(self.ln_pre(x))
        return self.ln_post(x[:, 0]) @ self.proj


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with batch normalisation beside a shortcut; a stride is an average pool."""

    def __init__(self, features: int, width: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(features, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.downsample = None
        if stride > 1 or features != 4 * width:
            conv = nn.Conv2d(features, 4 * width, 1, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.pool(F.relu(self.bn2(self.conv2(y))))
        y = self.bn3(self.conv3(y))
        if self.downsample is not None:
            x = self.downsample(self.pool(x))
        return F.relu(x + y)


class AttentionPool(nn.Module):
    """The mean of the positions attends over itself and them. [B, D, H, W] -> [B, embed]."""

    def __init__(self, positions: int, width: int, embed: int):
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.empty(positions, width))
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.c_proj = nn.Linear(width, embed)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(1, keepdim=True), x], 1) + self.positional_embedding.to(x.dtype)
        q, k, v = (
            y.unflatten(-1, (-1, HEAD)).transpose(1, 2)
            for y in (self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x))
        )
        return self.c_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(1))


class ModifiedResNet(nn.Module):
    """CLIP's: a stem of three convolutions, average pools for strides, an attention pool. image [B, 3, H, W] -> [B, embed]."""

    def __init__(self, *, stages: tuple[int, ...], width: int, positions: int, embed: int):
        super().__init__()
        sizes = ((3, width // 2, 2), (width // 2, width // 2, 1), (width // 2, width, 1))
        for i, (features, out, stride) in enumerate(sizes, 1):
            self.add_module(f"conv{i}", nn.Conv2d(features, out, 3, stride, 1, bias=False))
            self.add_module(f"bn{i}", nn.BatchNorm2d(out))
        features = width
        for i, count in enumerate(stages):
            blocks = []
            for j in range(count):
                blocks.append(Bottleneck(features, width * 2**i, 2 if i > 0 and j == 0 else 1))
                features = 4 * width * 2**i
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        self.stages = len(stages)
        self.attnpool = AttentionPool(positions, features, embed)

    def forward(self, image: Tensor) -> Tensor:
        x = image
        for i in (1, 2, 3):
            x = F.relu(self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(x)))
        x = F.avg_pool2d(x, 2)
        for i in range(self.stages):
            x = self.get_submodule(f"layer{i + 1}")(x)
        return self.attnpool(x)


def count(weights: Mapping[str, np.ndarray], prefix: str) -> int:
    """How many different numbers or names follow a prefix."""
    return len({name[len(prefix) :].split(".")[0] for name in weights if name.startswith(prefix)})


class CLIP(nn.Module):
    """An image tower and a causal text Transformer, of the sizes that `weights` have (Radford et al., 2021).

    Args:
      weights: arrays by OpenAI's names.
      eos: the id at whose first place a text is pooled.
    """

    def __init__(self, weights: Mapping[str, np.ndarray], eos: int):
        super().__init__()
        self.eos = eos
        context, width = weights["positional_embedding"].shape
        self.token_embedding = nn.Embedding(len(weights["token_embedding.weight"]), width)
        self.positional_embedding = nn.Parameter(torch.empty(context, width))
        self.transformer = Transformer(width, count(weights, "transformer.resblocks."), causal=True)
        self.ln_final = nn.LayerNorm(width)
        embed = weights["text_projection"].shape[1]
        self.text_projection = nn.Parameter(torch.empty(width, embed))
        self.logit_scale = nn.Parameter(torch.empty(()))
        first = weights["visual.conv1.weight"]
        if "visual.proj" in weights:
            self.visual = VisionTransformer(
                width=len(first),
                depth=count(weights, "visual.transformer.resblocks."),
                patch=first.shape[-1],
                positions=len(weights["visual.positional_embedding"]),
                embed=embed,
            )
        else:
            self.visual = ModifiedResNet(
                stages=tuple(
                    count(weights, f"visual.layer{i + 1}.") for i in range(count(weights, "visual.layer"))
                ),
                width=2 * len(first),
                positions=len(weights["visual.attnpool.positional_embedding"]),
                embed=embed,
            )
            # The fastest memory format of convolutions, on both kinds of device.
            self.to(memory_format=torch.channels_last)
        state = {name: torch.tensor(np.asarray(value)) for name, value in weights.items()}
        lacking, unexpected = self.load_state_dict(state, strict=False)
        lacking = [name for name in lacking if not name.endswith("num_batches_tracked")]
        if lacking or unexpected:
            raise ValueError(f"Weights of another network: {lacking} are missing, {unexpected} unexpected.")

    def embed_image(self, image: Tensor) -> Tensor:
        """image: float [B, 3, H, W] -> [B, embed], unit length."""
        return F.normalize(self.visual(image).float(), dim=-1)

    def embed_text(self, tokens: Tensor) -> Tensor:
        """tokens: int64 [B, T], EOS in each row -> [B, embed], unit length."""
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        x = self.transformer(x)
        end = (tokens == self.eos).int().argmax(-1)
        x = self.ln_final(x[torch.arange(len(x), device=x.device), end])
        return F.normalize((x @ self.text_projection).float(), dim=-1)

    def forward(self, image: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """-> both embeddings [B, embed], the scale of their products."""
        return self.embed_image(image), self.embed_text(tokens), self.logit_scale.exp()


def clip_loss(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """Symmetric InfoNCE over a batch, its matrix of logits in memory. image, text: [N, F] -> scalar."""
    logits = scale * (image @ text.T).float()
    labels = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def pixels(image: np.ndarray) -> np.ndarray:
    """As CLIP normalises them. uint8 [B, H, W, 3] -> float32 [B, 3, H, W]."""
    x = (image / 255 - MEAN) / STD
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2), np.float32)


def transformers_clip(weights: Mapping[str, np.ndarray], eos: int) -> nn.Module:
    """`transformers`' CLIPModel of the sizes that `weights` have, by its own names; called as `CLIP` is."""
    import transformers

    def sizes(tower: str) -> dict[str, int]:
        mlp, width = weights[f"{tower}.encoder.layers.0.mlp.fc1.weight"].shape
        return {
            "hidden_size": width,
            "intermediate_size": mlp,
            "num_hidden_layers": count(weights, f"{tower}.encoder.layers."),
            "num_attention_heads": width // HEAD,
        }

    patch = weights["vision_model.embeddings.patch_embedding.weight"].shape[-1]
    positions = len(weights["vision_model.embeddings.position_embedding.weight"])
    image_size = patch * math.isqrt(positions - 1)
    context = len(weights["text_model.embeddings.position_embedding.weight"])
    vocab = len(weights["text_model.embeddings.token_embedding.weight"])
    config = transformers.CLIPConfig(
        vision_config={**sizes("vision_model"), "patch_size": patch, "image_size": image_size},
        text_config={
            **sizes("text_model"),
            "max_position_embeddings": context,
            "vocab_size": vocab,
            "eos_token_id": eos,
        },
        projection_dim=len(weights["visual_projection.weight"]),
    )

    class Model(transformers.CLIPModel):
        def forward(self, image: Tensor, tokens: Tensor) -> Tensor:
            return super().forward(pixel_values=image, input_ids=tokens, return_loss=True).loss

        def embed_image(self, image: Tensor) -> Tensor:
            pooled = self.vision_model(image).pooler_output
            return F.normalize(self.visual_projection(pooled), dim=-1)

        def embed_text(self, tokens: Tensor) -> Tensor:
            pooled = self.text_model(tokens).pooler_output
            return F.normalize(self.text_projection(pooled), dim=-1)

    model = Model(config)
    state = {name: torch.tensor(np.asarray(value)) for name, value in weights.items()}
    model.load_state_dict(state)
    return model


def make_train_step(model: nn.Module, **options) -> Callable:
    """A step (image float32 [B, 3, H, W], tokens int64 [B, T]) -> loss; options as `training.stepper` takes them."""

    def objective(outputs: Tensor | tuple[Tensor, ...], image: Tensor, tokens: Tensor) -> Tensor:
        return outputs if isinstance(outputs, Tensor) else clip_loss(*outputs)

    return training.stepper(model.train(), objective, **options)


def waiting(call: Callable, device: str) -> Callable:
    """`call` that comes back when the device has done it."""

    def run(*inputs) -> Any:
        found = call(*inputs)
        if device == "cuda":
            torch.cuda.synchronize()
        return found

    return run


def make_embed(model: nn.Module, kind: str, *, device: str, dtype: str) -> Callable:
    """A function (inputs) -> unit vectors. kind: "embed_image" or "embed_text"."""
    embed, precision = getattr(model.to(device).eval(), kind), getattr(torch, dtype)

    @torch.inference_mode()
    def run(inputs: Tensor) -> Tensor:
        with torch.autocast(device, precision, enabled=precision != torch.float32):
            return embed(inputs)

    return waiting(run, device)


def loss_gradients(image: Tensor, text: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
    """`clip_loss` and its gradient by each of the three. image, text: [N, F]."""
    inputs = [x.detach().requires_grad_() for x in (image, text, scale)]
    loss = clip_loss(*inputs)
    return loss.detach(), *torch.autograd.grad(loss, inputs)


@torch.inference_mode()
def ranks(queries: Tensor, keys: Tensor, query_id: Tensor, key_id: Tensor, block: int = 512) -> Tensor:
    """1 + how many keys of another id score as high as a query's best of its own. [Q, F], [K, F], [Q], [K] -> [Q]."""
    found = []
    for rows, ids in zip(queries.split(block), query_id.split(block), strict=True):
        scores, own = rows @ keys.T, ids[:, None] == key_id
        best = scores.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
        found.append(1 + ((scores >= best) & ~own).sum(1))
    return torch.cat(found)
