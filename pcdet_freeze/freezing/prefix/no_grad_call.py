"""Run a call of the frozen prefix under no_grad."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from pcdet_freeze.freezing.prefix.options import Options
from pcdet_freeze.utils.devices import autocast_is_on
from pcdet_freeze.utils.tensors import tensors_of

TF32 = 2.0**-11
"""relative rounding of the inputs of a product in TF32, which have 10 bits behind the point"""


class PrefixCall:
    """Runs ``forward`` of ``module`` under no_grad, in the dtype and memory format of ``options``.

    If an input requires grad (another call of the same module), ``forward`` runs as written. A dict of a
    module that does not declare what it ``reads`` may hold such tensors for other modules: ``forward`` then
    runs with gradients enabled. Outputs are float32, unless the caller runs under autocast, and a tensor is
    returned contiguous, unless a map was given in the channels_last memory format.
    """

    def __init__(self, module: nn.Module, forward: Any, options: Options) -> None:
        self.forward, self.options = forward, options
        reads = getattr(module, "reads", None)
        self.reads = reads if isinstance(reads, tuple) else None
        some = next(iter([*module.parameters(), *module.buffers()]), None)
        self.device = "cpu" if some is None else some.device.type

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        live = any(tensor.requires_grad for tensor in self._inputs(args, kwargs))
        if live and not self._reads_unknown(args):
            return self.forward(*args, **kwargs)
        before = _items(args)
        keep_dtype = self.options.is_exact or autocast_is_on(self.device)
        keep_layout = not self.options.channels_last or any(map(_is_channels_last, args))
        with nullcontext() if live else torch.no_grad(), self._precision():
            result = self.forward(*map(self._laid_out, args), **kwargs)
        if isinstance(result, Tensor):
            result = self._restored(result, keep_dtype)
            return result if keep_layout else result.contiguous()
        if isinstance(result, dict) and not keep_dtype:
            new = {key: value for key, value in result.items() if before.get(key) is not value}
            result.update({k: self._restored(v, False) for k, v in new.items() if isinstance(v, Tensor)})
        return result

    def _reads_unknown(self, args: Any) -> bool:
        return self.reads is None and len(args) == 1 and isinstance(args[0], Mapping)

    def _inputs(self, args: Any, kwargs: Any) -> Any:
        if self.reads is not None and len(args) == 1 and isinstance(args[0], Mapping):
            return tensors_of([args[0].get(key) for key in self.reads])
        return tensors_of((args, kwargs))

    def _precision(self) -> Any:
        if self.options.is_exact:
            return nullcontext()
        return torch.autocast(self.device, dtype=self.options.dtype)

    def _laid_out(self, value: Any) -> Any:
        is_map = self.options.channels_last and isinstance(value, Tensor) and value.dim() == 4
        return value.contiguous(memory_format=torch.channels_last) if is_map else value

    def _restored(self, value: Tensor, keep_dtype: bool) -> Tensor:
        if not keep_dtype and value.dtype == self.options.dtype:
            value = value.float()
        return value


def _is_channels_last(value: Any) -> bool:
    """Whether ``value`` is a map in that memory format, and in no other."""
    is_map = isinstance(value, Tensor) and value.dim() == 4 and not value.is_contiguous()
    return is_map and value.is_contiguous(memory_format=torch.channels_last)


def _items(args: tuple[Any, ...]) -> dict[Any, Any]:
    return dict(args[0]) if len(args) == 1 and isinstance(args[0], Mapping) else {}


def float32_rounding(model: nn.Module) -> float | None:
    """Relative rounding of the inputs of a product of ``model`` now; None where it is 16-bit arithmetic.

    2 ** -24 in float32 (or float64), TF32 with that, which torch has on for convolutions on a GPU.
    """
    if is_plain_float32(model):
        return 2.0**-24
    some = next(p for p in model.parameters() if p.is_floating_point())
    is_16_bit = some.dtype not in (torch.float32, torch.float64) or autocast_is_on(some.device.type)
    return None if is_16_bit or torch.get_float32_matmul_precision() == "medium" else TF32


def is_plain_float32(model: nn.Module) -> bool:
    """Whether ``model`` computes in float32 (or float64), without autocast and TF32."""
    some = next((p for p in model.parameters() if p.is_floating_point()), None)
    if some is None:
        return True
    if some.dtype not in (torch.float32, torch.float64) or autocast_is_on(some.device.type):
        return False
    if torch.get_float32_matmul_precision() != "highest":
        return False
    return some.device.type != "cuda" or not torch.backends.cudnn.allow_tf32
