"""The attention captioner in PyTorch, as people write it: peers for scripts/benchmark.py (extra "torch")."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from peers import training
from torch import Tensor, nn

PAD, BOS, EOS = 0, 1, 2
BANNED = (PAD, BOS)  # never generated; scores remain the model's own log-probabilities


def random_weights(
    vocab: int = 9490,
    features: int = 2048,
    hidden: int = 512,
    attention: int = 512,
    embed: int = 512,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Weights of the decoder by name, float32; matrices are [in, out], so that x @ w applies them.

    The four gates of the LSTM lie side by side in the order i, f, g, o.
    """
    rng = np.random.default_rng(seed)
    shapes = {
        "embed": (vocab, embed),
        "init_h": (features, hidden),
        "init_h_bias": (hidden,),
        "init_c": (features, hidden),
        "init_c_bias": (hidden,),
        "key": (features, attention),
        "key_bias": (attention,),
        "query": (hidden, attention),
        "score": (attention,),
        "gate": (hidden, features),
        "gate_bias": (features,),
        "lstm_embed": (embed, 4 * hidden),
        "lstm_context": (features, 4 * hidden),
        "lstm_hidden": (hidden, 4 * hidden),
        "lstm_bias": (4 * hidden,),
        "out_hidden": (hidden, embed),
        "out_context": (features, embed),
        "vocab": (embed, vocab),
        "vocab_bias": (vocab,),
    }
    return {name: (rng.normal(size=s) / np.sqrt(s[0])).astype(np.float32) for name, s in shapes.items()}


def from_params(params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weights by name from the parameters of `mmgen_jax.models.captioner.RnnDecoder`.

    Raises:
      ValueError: the decoder is no LSTM with additive attention of one head, a gate and deep output.
    """
    named = {
        "embed": "embed",
        "key_kernel": "key",
        "key_bias": "key_bias",
        "query_kernel": "query",
        "gate_kernel": "gate",
        "gate_bias": "gate_bias",
        "word_kernel": "lstm_embed",
        "context_kernel": "lstm_context",
        "recurrent_kernel": "lstm_hidden",
        "gates_bias": "lstm_bias",
        "deep_hidden_kernel": "out_hidden",
        "deep_context_kernel": "out_context",
        "out_kernel": "vocab",
        "out_bias": "vocab_bias",
    }
    odd = sorted(params.keys() ^ {*named, "v", "start_kernel", "start_bias"})
    if odd or len(params["v"]) != 1 or 4 * len(params["query_kernel"]) != len(params["gates_bias"]):
        raise ValueError(
            "These peers know one decoder: cell lstm, attention additive, heads 1, gate scalar or vector, "
            f"deep_output. Parameters that differ: {', '.join(odd) or 'shapes'}."
        )
    weights = {ours: np.asarray(params[theirs], np.float32) for theirs, ours in named.items()}
    weights["score"] = np.asarray(params["v"], np.float32)[0]
    for suffix, source in (("", "start_kernel"), ("_bias", "start_bias")):
        h, c = np.split(np.asarray(params[source], np.float32), 2, axis=-1)
        weights |= {f"init_h{suffix}": h, f"init_c{suffix}": c}
    return weights


class Decoder(nn.Module):
    """Soft attention over a grid, an LSTM and a deep output layer (Xu et al. 2015, sections 3.1.2 and 4.2.1).

    Shapes: memory [B, P, D], tokens int64 [B, T + 1] (BOS ... EOS PAD), h and c [B, H].
    """

    def __init__(self, weights: Mapping[str, np.ndarray]):
        super().__init__()
        for name, value in weights.items():
            self.register_parameter(name, nn.Parameter(torch.tensor(np.asarray(value))))

    def start(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """State before the first word, from the mean feature. -> h, c [B, H]"""
        mean = memory.mean(1)
        h = torch.tanh(mean @ self.init_h + self.init_h_bias)
        return h, torch.tanh(mean @ self.init_c + self.init_c_bias)

    def keys(self, memory: Tensor) -> Tensor:
        """The projection of the image for attention. [B, P, D] -> [B, P, A]"""
        return memory @ self.key + self.key_bias

    def attend(self, memory: Tensor, keys: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """-> gated context [B, D], attention weights [B, P]"""
        energy = torch.tanh(keys + (h @ self.query)[:, None]) @ self.score
        alpha = energy.softmax(-1)
        context = torch.bmm(alpha[:, None], memory)[:, 0]
        return torch.sigmoid(h @ self.gate + self.gate_bias) * context, alpha

    def cell(self, from_embed: Tensor, context: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """One LSTM step. from_embed: the previous word's part of the gates with the bias, [B, 4H]."""
        gates = from_embed + context @ self.lstm_context + h @ self.lstm_hidden
        i, f, g, o = gates.chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c

    def logits(self, embedded: Tensor, h: Tensor, context: Tensor) -> Tensor:
        """Deep output. [..., E], [..., H], [..., D] -> [..., V]"""
        deep = torch.tanh(embedded + h @ self.out_hidden + context @ self.out_context)
        return deep @ self.vocab + self.vocab_bias

    def step(self, memory: Tensor, keys: Tensor, token: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        """One word of decoding. token: int64 [B] -> logits [B, V], h, c"""
        embedded = self.embed[token]
        context, _ = self.attend(memory, keys, h)
        h, c = self.cell(embedded @ self.lstm_embed + self.lstm_bias, context, h, c)
        return self.logits(embedded, h, context), h, c


class RecomputeLoop(Decoder):
    """Peer (a), the tutorials' loop: image projection and vocabulary layer anew for each word."""

    def forward(self, memory: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Teacher forcing. -> logits [B, T, V], attention weights [B, T, P]"""
        h, c = self.start(memory)
        logits, alphas = [], []
        for token in tokens[:, :-1].unbind(1):
            embedded = self.embed[token]
            context, alpha = self.attend(memory, self.keys(memory), h)
            h, c = self.cell(embedded @ self.lstm_embed + self.lstm_bias, context, h, c)
            logits.append(self.logits(embedded, h, context))
            alphas.append(alpha)
        return torch.stack(logits, 1), torch.stack(alphas, 1)


class HoistedLoop(Decoder):
    """Peer (b): whatever needs no recurrence is computed once for all words."""

    def forward(self, memory: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Teacher forcing. -> logits [B, T, V], attention weights [B, T, P]"""
        h, c = self.start(memory)
        keys = self.keys(memory)
        embedded = self.embed[tokens[:, :-1]]
        hiddens, contexts, alphas = [], [], []
        for from_embed in (embedded @ self.lstm_embed + self.lstm_bias).unbind(1):
            context, alpha = self.attend(memory, keys, h)
            h, c = self.cell(from_embed, context, h, c)
            hiddens.append(h)
            contexts.append(context)
            alphas.append(alpha)
        return self.logits(embedded, torch.stack(hiddens, 1), torch.stack(contexts, 1)), torch.stack(
            alphas, 1
        )


LOOPS = {"recompute": RecomputeLoop, "hoisted": HoistedLoop, "compiled": HoistedLoop}


def caption_loss(logits: Tensor, alphas: Tensor, tokens: Tensor) -> Tensor:
    """Mean cross-entropy of the real words, plus the mean over images of sum_p (1 - sum_t alpha_tp)^2.

    (Xu et al. 2015, equation 14 with lambda = 1; words after the end attend to nothing.)
    """
    targets = tokens[:, 1:]
    entropy = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=PAD)
    attended = (alphas.float() * (targets != PAD)[..., None]).sum(1)
    return entropy + ((1 - attended) ** 2).sum(-1).mean()


def stepper(model: nn.Module, variant: str, device: str, dtype: str, learning_rate: float) -> Callable:
    """A function (inputs, tokens) -> loss that moves `model` by one Adam step on each call."""

    def objective(outputs: tuple[Tensor, Tensor], inputs: Tensor, tokens: Tensor) -> Tensor:
        return caption_loss(*outputs, tokens)

    options = {"device": device, "dtype": dtype, "learning_rate": learning_rate}
    return training.stepper(model, objective, compiled=variant == "compiled", **options)


def make_train_step(
    variant: str,
    weights: Mapping[str, np.ndarray],
    *,
    device: str = "cpu",
    dtype: str = "float32",
    learning_rate: float = 4e-4,
) -> Callable:
    """A training step on cached features.

    Args:
      variant: "recompute" (a), "hoisted" (b) or "compiled" (c: `torch.compile` of b; the first call compiles,
        which takes minutes on CPU).
      weights: as `random_weights` names them.
      device: "cpu" or "cuda".
      dtype: of the computation through autocast; parameters stay float32.
      learning_rate: Adam's.

    Returns:
      A function (features float32 [B, P, D], tokens int [B, T + 1]) -> loss, a tensor without dimensions;
      arrays and tensors both do. float(loss) waits for the device.
    """
    return stepper(LOOPS[variant](weights), variant, device, dtype, learning_rate)


def gradients(
    variant: str, weights: Mapping[str, np.ndarray], features: np.ndarray, tokens: np.ndarray
) -> tuple[float, dict[str, np.ndarray]]:
    """Loss and its gradient by weight, to compare peers with each other and with other libraries."""
    model = LOOPS[variant](weights)
    targets = torch.as_tensor(tokens).long()
    loss = caption_loss(*model(torch.as_tensor(features), targets), targets)
    loss.backward()
    return loss.item(), {name: p.grad.numpy() for name, p in model.named_parameters()}


@torch.inference_mode()
def greedy(
    weights: Mapping[str, np.ndarray] | Decoder, features: np.ndarray | Tensor, max_len: int = 20
) -> np.ndarray:
    """The likeliest word at each position. features: [B, P, D] -> int64 [B, max_len], PAD after EOS.

    A `Decoder` in place of weights saves copying them on each call.
    """
    model, memory = prepare(weights, features)
    keys = model.keys(memory)
    h, c = model.start(memory)
    token = torch.full((len(memory),), BOS, device=memory.device)
    done = torch.zeros_like(token, dtype=torch.bool)
    out = torch.full((len(memory), max_len), PAD, device=memory.device)
    for t in range(max_len):
        logits, h, c = model.step(memory, keys, token, h, c)
        logits[:, BANNED] = -torch.inf
        token = logits.argmax(-1).masked_fill(done, PAD)
        out[:, t] = token
        done = done | (token == EOS)
        if done.all():
            break
    return out.cpu().numpy()


@torch.inference_mode()
def beam(
    weights: Mapping[str, np.ndarray] | Decoder,
    features: np.ndarray | Tensor,
    k: int = 5,
    max_len: int = 20,
    *,
    batched: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Beam search by the plain sum of log-probabilities.

    A finished hypothesis stays in the beam with its score and goes on with PAD at log-probability 0; one that
    reaches `max_len` without EOS counts as it is.

    Args:
      weights, features: as in `greedy`.
      k: hypotheses per image.
      max_len: words, EOS included.
      batched: all images at once, the memory repeated for every hypothesis; or one image after the other.

    Returns:
      Tokens int64 [B, k, max_len] and scores float32 [B, k], best first.
    """
    model, memory = prepare(weights, features)
    parts = [memory] if batched else memory.split(1)
    found = [beam_batch(model, part, k, max_len) for part in parts]
    return tuple(torch.cat(results).cpu().numpy() for results in zip(*found, strict=True))


def beam_batch(model: Decoder, memory: Tensor, k: int, max_len: int) -> tuple[Tensor, Tensor]:
    """`beam` for one batch. memory: [B, P, D] -> [B, k, max_len], [B, k]"""
    batch, device = len(memory), memory.device
    keys = model.keys(memory).repeat_interleave(k, 0)
    h, c = (state.repeat_interleave(k, 0) for state in model.start(memory))
    memory = memory.repeat_interleave(k, 0)
    token = torch.full((batch * k,), BOS, device=device)
    done = torch.zeros(batch, k, dtype=torch.bool, device=device)
    out = torch.full((batch, k, max_len), PAD, device=device)
    # All hypotheses start equal, so all but one are switched off until they differ.
    scores = torch.full((batch, k), -torch.inf, device=device)
    scores[:, 0] = 0
    first = torch.arange(batch, device=device)[:, None] * k
    for t in range(max_len):
        logits, h, c = model.step(memory, keys, token, h, c)
        gain = logits.log_softmax(-1).view(batch, k, -1)
        gain[..., BANNED] = -torch.inf
        gain[done] = -torch.inf
        gain[..., PAD].masked_fill_(done, 0.0)
        vocab = gain.shape[-1]
        scores, best = (scores[..., None] + gain).flatten(1).topk(k)
        parent, token = best // vocab, best % vocab
        rows = (first + parent).flatten()
        h, c = h[rows], c[rows]
        out = out.gather(1, parent[..., None].expand_as(out))
        out[:, :, t] = token
        done = done.gather(1, parent) | (token == EOS)
        if done.all():
            break
        token = token.flatten()
    return out, scores


def prepare(
    weights: Mapping[str, np.ndarray] | Decoder, features: np.ndarray | Tensor
) -> tuple[Decoder, Tensor]:
    """The decoder and the features on its device."""
    model = weights if isinstance(weights, Decoder) else Decoder(weights)
    return model, torch.as_tensor(features, device=model.embed.device)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with batch normalisation beside a shortcut."""

    def __init__(self, features: int, width: int, stride: int):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(features, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.norm3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.shortcut_conv = self.shortcut_norm = None
        if stride != 1 or features != 4 * width:
            self.shortcut_conv = nn.Conv2d(features, 4 * width, 1, stride, bias=False)
            self.shortcut_norm = nn.BatchNorm2d(4 * width)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        if self.shortcut_conv is not None:
            x = self.shortcut_norm(self.shortcut_conv(x))
        return F.relu(x + y)


class ResNet(nn.Module):
    """ResNet-50 v1.5 without its head (other sizes for tests). image [B, H, W, 3] -> grid [B, P, D].

    Its modules have the names of mmgen_jax.nn.resnet, so that `load` is a walk over a tree.
    """

    def __init__(self, stages: Sequence[int] = (3, 4, 6, 3), width: int = 64):
        super().__init__()
        self.stem_conv, self.stem_norm = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
        self.blocks, features = [], width
        for i, count in enumerate(stages):
            for j in range(count):
                block = Bottleneck(features, width * 2**i, 2 if i > 0 and j == 0 else 1)
                self.blocks.append(f"stage{i + 1}_block{j + 1}")
                self.add_module(self.blocks[-1], block)
                features = 4 * width * 2**i

    def forward(self, image: Tensor) -> Tensor:
        # The view of a channels-last image is already in the memory format that is fastest here.
        x = F.relu(self.stem_norm(self.stem_conv(image.permute(0, 3, 1, 2))))
        x = F.max_pool2d(x, 3, 2, 1)
        for name in self.blocks:
            x = self.get_submodule(name)(x)
        return x.flatten(2).transpose(1, 2)

    def load(self, params: Mapping, batch_stats: Mapping) -> None:
        """Copy the weights of mmgen_jax.nn.resnet (nested dictionaries of arrays)."""
        names = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
        state = {}
        for *path, leaf, value in [*walk(params), *walk(batch_stats)]:
            array = np.asarray(value)
            if leaf == "kernel":
                array = array.reshape((1, 1) * (array.ndim == 2) + array.shape).transpose(3, 2, 0, 1)
            state[".".join([*path, names.get(leaf, leaf)])] = torch.tensor(np.ascontiguousarray(array))
        missing, unexpected = self.load_state_dict(state, strict=False)
        missing = [name for name in missing if not name.endswith("num_batches_tracked")]
        if missing or unexpected:
            raise ValueError(f"Weights of another network: {missing} are missing, {unexpected} unexpected.")


def walk(tree: Mapping, *path: str) -> Iterator[tuple]:
    """(*names, leaf) of every leaf of nested dictionaries."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from walk(value, *path, name)
        else:
            yield (*path, name, value)


class EndToEnd(nn.Module):
    """ResNet-50 and a decoder, trained together. image [B, 224, 224, 3] -> as the decoder."""

    def __init__(self, tower: ResNet, decoder: Decoder):
        super().__init__()
        self.tower, self.decoder = tower, decoder

    def forward(self, image: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return self.decoder(self.tower(image), tokens)


def normalise(image: np.ndarray) -> np.ndarray:
    """Pixels by the statistics of ImageNet. uint8 [B, H, W, 3] -> float32 [B, H, W, 3]."""
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    return ((image - mean) / std).astype(np.float32)


def make_end_to_end_step(
    variant: str,
    weights: Mapping[str, np.ndarray],
    *,
    tower: ResNet | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    learning_rate: float = 4e-4,
) -> Callable:
    """As `make_train_step`, with images float32 [B, H, W, 3] for features, and a tower that trains too."""
    model = EndToEnd(tower or ResNet(), LOOPS[variant](weights)).to(memory_format=torch.channels_last)
    return stepper(model.train(), variant, device, dtype, learning_rate)
