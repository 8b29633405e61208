"""Which lines of this package make the host wait for a device."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

import pcdet_freeze

PACKAGE = str(Path(pcdet_freeze.__file__).parent)
WAITING = {"item", "tolist", "cpu", "numpy", "equal", "nonzero", "argwhere", "unique", "unique_consecutive"}
WAITING |= {"masked_select", "bincount", "is_nonzero", "__bool__", "__float__", "__int__", "__index__"}


class PackageWaits(TorchFunctionMode):
    """Counts, by line, calls that wait for the device if their tensor is on one; it may be on the CPU here.

    Only calls in code of this package count, not those of a model that it calls.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lines: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        frame = _caller(sys._getframe(1))
        if _waits(getattr(func, "__name__", ""), args, kwargs or {}) and frame is not None:
            self.lines[f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {func.__name__}"] += 1
        return func(*args, **(kwargs or {}))


def _waits(name: str, args: Any, kwargs: dict[str, Any]) -> bool:
    if name == "to":
        return "cpu" in [str(value) for value in (*args[1:], *kwargs.values())]
    if name in ("__getitem__", "__setitem__"):
        parts = args[1] if isinstance(args[1], tuple) else (args[1],)
        return any(isinstance(part, torch.Tensor) and part.dtype == torch.bool for part in parts)
    return name in WAITING


def _caller(frame: FrameType | None) -> FrameType | None:
    """The innermost frame outside torch, if it is in this package."""
    while frame is not None and "/torch/" in frame.f_code.co_filename:
        frame = frame.f_back
    return frame if frame is not None and frame.f_code.co_filename.startswith(PACKAGE) else None
