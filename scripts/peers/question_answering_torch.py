"""BERT and ViT of `transformers`, fused by PyTorch's TransformerEncoder: a peer for scripts/benchmark.py (extra "torch")."""

import math
import re
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from peers.dual_encoder_torch import HEAD, count
from torch import Tensor, nn

from mmgen_jax.pretrained.names import DIALECTS


def pixels(image: np.ndarray) -> np.ndarray:
    """From -1 to 1. uint8 [B, H, W, 3] -> float32 [B, 3, H, W]."""
    return np.ascontiguousarray((image / 127.5 - 1).transpose(0, 3, 1, 2), np.float32)


def filled(model: nn.Module, weights: Mapping[str, np.ndarray], dialect: str) -> nn.Module:
    """The model with `weights`, which have the names of its published files; in memory they may have others.

    Raises:
      KeyError, RuntimeError: the weights are of another network.
    """
    state = {}
    for name in model.state_dict():
        published = name
        for pattern, replacement in DIALECTS[dialect].renamed:
            published = re.sub(pattern, replacement, published)
        state[name] = torch.tensor(weights[published])
    model.load_state_dict(state)
    return model


def vit(weights: Mapping[str, np.ndarray]) -> nn.Module:
    """`transformers`' ViTModel of the sizes that `weights` have."""
    mlp, width = weights["encoder.layer.0.intermediate.dense.weight"].shape
    patch = weights["embeddings.patch_embeddings.projection.weight"].shape[-1]
    config = transformers.ViTConfig(
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=count(weights, "encoder.layer."),
        num_attention_heads=width // HEAD,
        patch_size=patch,
        image_size=patch * math.isqrt(weights["embeddings.position_embeddings"].shape[1] - 1),
        layer_norm_eps=1e-6,
    )
    return filled(transformers.ViTModel(config, add_pooling_layer=False), weights, "hf_vit")


def bert(weights: Mapping[str, np.ndarray]) -> nn.Module:
    """`transformers`' BertModel of the sizes that `weights` have, without dropout."""
    mlp, width = weights["encoder.layer.0.intermediate.dense.weight"].shape
    config = transformers.BertConfig(
        vocab_size=len(weights["embeddings.word_embeddings.weight"]),
        max_position_embeddings=len(weights["embeddings.position_embeddings.weight"]),
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=count(weights, "encoder.layer."),
        num_attention_heads=width // HEAD,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return filled(transformers.BertModel(config, add_pooling_layer=False), weights, "hf_bert")


class QuestionAnswering(nn.Module):
    """Logits of answers, of the sizes that the weights have.

    Args:
      image, question: weights of the towers, in the names of `transformers`' files.
      rest: of the fusion and the head, in the names of this class.
      eos: the id that ends a question.
    """

    def __init__(
        self,
        image: Mapping[str, np.ndarray],
        question: Mapping[str, np.ndarray],
        rest: Mapping[str, np.ndarray],
        eos: int,
    ):
        super().__init__()
        self.eos = eos
        width = len(rest["summary"])
        self.summary = nn.Parameter(torch.empty(width))
        self.project = nn.ModuleList(
            nn.Linear(rest[f"project.{i}.weight"].shape[1], width) for i in range(count(rest, "project."))
        )
        layer = nn.TransformerEncoderLayer(
            width,
            width // HEAD,
            len(rest["encoder.layers.0.linear1.weight"]),
            dropout=0.0,
            activation="gelu",
            layer_norm_eps=1e-6,
            batch_first=True,
            norm_first=True,
        )
        depth = count(rest, "encoder.layers.")
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width, 1e-6)
        answers, hidden = rest["logits.weight"].shape
        self.hidden, self.logits = nn.Linear(width, hidden), nn.Linear(hidden, answers)
        self.load_state_dict({name: torch.tensor(x) for name, x in rest.items()})
        self.vit, self.bert = vit(image), bert(question)

    def forward(self, image: Tensor, question: Tensor, answer: Tensor) -> Tensor:
        """image: float [B, 3, H, W]; question: int64 [B, T] -> [B, K]."""
        del answer
        ends = (question == self.eos).int()
        inside = ends.cumsum(1) - ends == 0
        places = self.vit(image).last_hidden_state[:, 1:]
        words = self.bert(question, attention_mask=inside.long()).last_hidden_state
        summary = self.summary.expand(len(image), 1, -1)
        x = torch.cat([summary, self.project[0](places), self.project[1](words)], 1)
        away = F.pad(~inside, (x.shape[1] - words.shape[1], 0), value=False)
        x = self.encoder(x, src_key_padding_mask=away)
        return self.logits(F.relu(self.hidden(self.norm(x[:, 0]))))


def loss(logits: Tensor, image: Tensor, question: Tensor, answer: Tensor) -> Tensor:
    """Binary cross-entropy of each answer, summed; the mean over questions. logits, answer: [B, K] -> scalar."""
    del image, question
    return F.binary_cross_entropy_with_logits(logits.float(), answer, reduction="sum") / len(answer)
