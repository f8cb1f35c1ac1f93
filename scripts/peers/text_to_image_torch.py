"""DCGAN in PyTorch, plainly: peers for scripts/benchmark.py (extra "torch")."""

import copy
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from peers.captioner_torch import walk
from peers.dual_encoder_torch import waiting
from torch import Tensor, nn

ADAM = {"lr": 2e-4, "betas": (0.5, 0.999)}  # Radford et al., 2016, section 4


class Generator(nn.Module):
    """Transposed convolutions from a pixel of noise up to the image. z [B, Z] -> [B, C, S, S] in [-1, 1]."""

    def __init__(self, *, z_features: int, width: int, image_size: int, channels: int = 3, side: int = 4):
        super().__init__()
        self.doublings = (image_size // side).bit_length() - 1
        features = width * 2 ** (self.doublings - 1)
        self.first = nn.ConvTranspose2d(z_features, features, side, 1, 0, bias=False)
        for i in range(self.doublings):
            out = features // 2 if i + 1 < self.doublings else channels
            self.add_module(f"norm{i}", nn.BatchNorm2d(features))
            self.add_module(f"up{i + 1}", nn.ConvTranspose2d(features, out, 4, 2, 1, bias=False))
            features = out
        self.to(memory_format=torch.channels_last)

    def forward(self, z: Tensor) -> Tensor:
        x = self.first(z[:, :, None, None])
        for i in range(self.doublings):
            x = F.relu(self.get_submodule(f"norm{i}")(x))
            x = self.get_submodule(f"up{i + 1}")(x)
        return torch.tanh(x.float())


class Discriminator(nn.Module):
    """Strided convolutions down to a 4x4 grid, and one logit. [B, C, S, S] -> [B]."""

    def __init__(self, *, width: int, image_size: int, channels: int = 3, side: int = 4):
        super().__init__()
        self.halvings = (image_size // side).bit_length() - 1
        features = channels
        for i in range(self.halvings):
            self.add_module(f"down{i + 1}", nn.Conv2d(features, width * 2**i, 4, 2, 1, bias=False))
            features = width * 2**i
            if i:
                self.add_module(f"norm{i + 1}", nn.BatchNorm2d(features))
        self.logit = nn.Conv2d(features, 1, side, 1, 0, bias=False)
        self.to(memory_format=torch.channels_last)

    def forward(self, image: Tensor) -> Tensor:
        x = image
        for i in range(self.halvings):
            x = self.get_submodule(f"down{i + 1}")(x)
            if i:
                x = self.get_submodule(f"norm{i + 1}")(x)
            x = F.leaky_relu(x, 0.2)
        return self.logit(x).flatten()


def load(network: Generator | Discriminator, variables: Mapping) -> None:
    """Copy the weights of mmgen_jax.nn.dcgan: {"params", "batch_stats"}, nested dictionaries of arrays."""
    arrays = [*walk(variables["params"]), *walk(variables["batch_stats"])]
    state = dict(named(network, *leaf) for leaf in arrays)
    missing, unexpected = network.load_state_dict(state, strict=False)
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise ValueError(f"Weights of another network: {missing} are missing, {unexpected} unexpected.")


def named(network: nn.Module, *leaf) -> tuple[str, Tensor]:
    """PyTorch's name and layout of one of our arrays: (*path, array)."""
    *path, kind, array = leaf
    # The trunk and the head of ours are folders, a convolution lies in one of its own.
    path = [name for name in path if name not in ("trunk", "head", "conv")]
    array = np.asarray(array)
    if kind == "kernel":
        shape = network.get_submodule(path[-1]).weight.shape
        if path[-1] == "first":  # [Z, H W D]: a transposed convolution of a single pixel
            array = array.reshape(len(array), *shape[2:], shape[1]).transpose(0, 3, 1, 2)
        elif path[-1] == "logit":  # [H W D, 1]
            array = array.reshape(*shape[2:], shape[1], 1).transpose(3, 2, 0, 1)
        else:  # [H, W, in, out]; PyTorch's transposed convolution has the inputs first
            array = array.transpose((2, 3, 0, 1) if path[-1].startswith("up") else (3, 2, 0, 1))
    names = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
    return ".".join([*path, names.get(kind, kind)]), torch.tensor(np.ascontiguousarray(array))


def make_train_step(
    generator: Generator,
    discriminator: Discriminator,
    variant: str,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    adam: Mapping = ADAM,
) -> Callable:
    """An update of the discriminator, then one of the generator, with the non-saturating loss and Adam.

    Args:
      generator, discriminator: updated in place.
      variant: "tutorial": the generator's loss is differentiated by the discriminator's parameters too, and the result thrown
        away, as most published loops do; "eager": only by what is updated; "compiled": that through `torch.compile`, whose first
        call compiles.
      device: "cpu" or "cuda".
      dtype: of the computation through autocast; parameters stay float32.
      adam: what its optimizers take.

    Returns:
      A function (image float32 [B, C, S, S] in [-1, 1], z [B, Z]) -> the two losses, tensors without dimensions.
    """
    networks = (generator, discriminator)
    # One fused update is the fastest that PyTorch offers on both kinds of device.
    generator_adam, discriminator_adam = (
        torch.optim.Adam(network.to(device).train().parameters(), fused=True, **adam) for network in networks
    )
    precision = getattr(torch, dtype)

    def autocast() -> torch.autocast:
        return torch.autocast(device, precision, enabled=precision != torch.float32)

    def loss(logit: Tensor, target: float) -> Tensor:
        logit = logit.float()
        return F.binary_cross_entropy_with_logits(logit, torch.full_like(logit, target))

    def draw(z: Tensor) -> Tensor:
        with autocast():
            return generator(z)

    def discriminator_loss(image: Tensor, fake: Tensor) -> Tensor:
        with autocast():
            return loss(discriminator(image), 1.0) + loss(discriminator(fake), 0.0)

    def generator_loss(fake: Tensor) -> Tensor:
        with autocast():
            return loss(discriminator(fake), 1.0)

    if variant == "compiled":
        draw, discriminator_loss, generator_loss = map(
            torch.compile, (draw, discriminator_loss, generator_loss)
        )

    def train_step(image: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        fake = draw(z)
        of_discriminator = discriminator_loss(image, fake.detach())
        discriminator_adam.zero_grad(set_to_none=True)
        of_discriminator.backward()
        discriminator_adam.step()
        discriminator.requires_grad_(variant == "tutorial")
        of_generator = generator_loss(fake)
        generator_adam.zero_grad(set_to_none=True)
        of_generator.backward()
        generator_adam.step()
        discriminator.requires_grad_(True)
        return of_discriminator.detach(), of_generator.detach()

    return train_step


def unneeded(generator: Generator, discriminator: Discriminator, variant: str) -> float:
    """The share by which a variant's FLOPs are more than those of "eager", counted on a batch of two."""
    from torch.utils.flop_counter import FlopCounterMode

    def count(variant: str) -> int:
        step = make_train_step(*copy.deepcopy((generator, discriminator)), variant)
        z = torch.zeros(2, generator.first.in_channels)
        image = generator(z).detach()
        with FlopCounterMode(display=False) as counter:
            step(image, z)
        return counter.get_total_flops()

    return count(variant) / count("eager") - 1


def make_sample(generator: Generator, *, compiled: bool, device: str, dtype: str) -> Callable:
    """A function (z [B, Z]) -> uint8 [B, S, S, C], with the batch statistics of training."""
    precision = getattr(torch, dtype)
    generator.to(device).eval()

    def draw(z: Tensor) -> Tensor:
        with torch.autocast(device, precision, enabled=precision != torch.float32):
            x = generator(z)
        return ((x.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1)

    draw = torch.compile(draw) if compiled else draw

    @torch.inference_mode()
    def run(z: Tensor) -> Tensor:
        return draw(z)

    return waiting(run, device)


def pixels(image: np.ndarray) -> Tensor:
    """uint8 [B, S, S, C] -> float32 [B, C, S, S] in [-1, 1], channels last in memory."""
    return torch.tensor(image.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)


def weights(
    network: Generator | Discriminator, params: Mapping
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(name, PyTorch's array, ours in its layout) of every parameter, to compare them."""
    theirs = dict(network.named_parameters())
    for leaf in walk(params):
        name, ours = named(network, *leaf)
        yield name, theirs[name].detach().cpu().numpy(), ours.numpy()
