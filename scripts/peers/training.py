"""A training step in PyTorch, for any of the peers."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def stepper(
    model: nn.Module, objective: Callable, *, compiled: bool, device: str, dtype: str, learning_rate: float
) -> Callable:
    """A function (*inputs) -> loss that moves `model` by one Adam step on each call.

    Args:
      model: called with the inputs; it trains in the mode that it is in.
      objective: a function (what the model gives, *inputs) -> scalar, computed in float32.
      compiled: through `torch.compile`; the first call compiles, which takes minutes on CPU.
      device: "cpu" or "cuda".
      dtype: of the computation through autocast; parameters stay float32.
      learning_rate: Adam's.

    Returns:
      A function of arrays or tensors; its loss is a tensor without dimensions. float(loss) waits for the device.
    """
    model.to(device)
    # One fused update is the fastest that PyTorch offers on both kinds of device.
    optimizer = torch.optim.Adam(model.parameters(), learning_rate, fused=True)
    precision = getattr(torch, dtype)

    def forward(*inputs: Tensor) -> Tensor:
        with torch.autocast(device, precision, enabled=precision != torch.float32):
            outputs = model(*inputs)
        return objective(outputs, *inputs)

    if compiled:
        forward = torch.compile(forward)

    def train_step(*inputs) -> Tensor:
        loss = forward(*(torch.as_tensor(x, device=device) for x in inputs))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return train_step
