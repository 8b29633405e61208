"""CPU tensors that say that they are on a GPU: copies to the host can be counted without one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

copies: list[int] = []
"""bytes of each copy to the host"""


class DeviceTensor(Tensor):
    """What torch computes from it is a DeviceTensor again, until it is copied to the host."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda", 0)

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        assert args[0] == "cpu", "only copies to the host are simulated"
        copies.append(self.numel() * self.element_size())
        return self.as_subclass(Tensor).clone()

    def cpu(self, *_: Any, **__: Any) -> Tensor:
        return self.to("cpu")

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert a cuda tensor to numpy")


def on_device(tensor: Tensor) -> Tensor:
    return tensor.detach().as_subclass(DeviceTensor)


def move_to_device(model: nn.Module) -> nn.Module:
    """Replace all parameters and buffers of ``model``."""
    for module in model.modules():
        for name, own in module._parameters.items():
            if own is not None:
                module._parameters[name] = nn.Parameter(on_device(own), own.requires_grad)
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else on_device(buffer)
    return model
