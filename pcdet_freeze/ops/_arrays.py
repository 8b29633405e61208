"""Helpers of the operators: shape checks, numpy <-> torch."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch

from pcdet_freeze.errors import DataError

Array = TypeVar("Array", np.ndarray, torch.Tensor)


def check_columns(name: str, array: Any, columns: int, exact: bool = False) -> None:
    """Raise DataError unless ``array`` is a numpy array or tensor of shape (N, columns or more)."""
    if not isinstance(array, (np.ndarray, torch.Tensor)):
        raise DataError(f"{name} must be a numpy array or a torch tensor; got {type(array).__name__}")
    fits = array.ndim == 2 and (array.shape[1] == columns or (array.shape[1] > columns and not exact))
    if not fits:
        wanted = f"(N, {columns})" if exact else f"(N, {columns}) or wider"
        raise DataError(
            f"{name} must have shape {wanted}, N may be 0; got {tuple(array.shape)}. Reshape or slice it."
        )


def check_same_kind(name_a: str, a: Any, name_b: str, b: Any) -> None:
    """Raise DataError unless both are numpy arrays, or both tensors on one device."""
    if isinstance(a, torch.Tensor) != isinstance(b, torch.Tensor):
        raise DataError(
            f"{name_a} and {name_b} must both be numpy arrays or both torch tensors; got "
            f"{type(a).__name__} and {type(b).__name__}. Convert one of them."
        )
    if isinstance(a, torch.Tensor) and a.device != b.device:
        raise DataError(f"{name_a} and {name_b} must be on the same device; got {a.device} and {b.device}")


def to_float64(array: np.ndarray | torch.Tensor, columns: int | None = None) -> np.ndarray:
    """Contiguous float64 numpy copy or view of the first ``columns`` columns of a CPU array."""
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu().double().numpy()
    return np.ascontiguousarray(array[:, :columns] if columns else array, dtype=np.float64)


def to_tensor(array: np.ndarray | torch.Tensor) -> torch.Tensor:
    """A detached tensor; numpy arrays are copied only if torch cannot share their memory."""
    if isinstance(array, torch.Tensor):
        return array.detach()
    array = np.ascontiguousarray(array)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def floating_like(result: np.ndarray | torch.Tensor, like: Array) -> Array:
    """``result`` with the type, device and floating dtype of ``like`` (float64 if that is an integer)."""
    if isinstance(like, torch.Tensor):
        dtype = like.dtype if like.dtype.is_floating_point else torch.float64
        return to_tensor(result).to(device=like.device, dtype=dtype)
    array = result.cpu().numpy() if isinstance(result, torch.Tensor) else result
    return array.astype(like.dtype if like.dtype.kind == "f" else np.float64, copy=False)
