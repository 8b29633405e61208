"""The forward of a frozen detector, with checks before and after it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from pcdet_freeze.errors import FreezeError, PCDetFreezeError
from pcdet_freeze.integrations.openpcdet.model import frozen_heads

SESSION = "_pcdet_freeze_session"
"""on a detector: its Session; None on a copy of the detector"""
_MISSING_OUTPUT = (AttributeError, IndexError, KeyError, TypeError, ValueError)
"""errors of a detector that uses what a head computes in train mode only"""


def checked_forward(detector: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Replaces the forward of a frozen detector and of its copies.

    Raises FreezeError if the detector needs what a frozen head computes in train mode only, or if its loss
    depends on no trainable parameter (T3).
    """
    forward = frozen_heads.original(detector, "forward")
    if not detector.training or not torch.is_grad_enabled():
        frozen_heads.set_batch_keys(frozen_heads.patch_frozen_heads(detector), None)
        return forward(*args, **kwargs)
    session = detector.__dict__.get(SESSION)
    fast: AbstractContextManager[Any] = nullcontext()
    if session is not None:
        session.before_forward()
        fast = session.prefix.forward()
    patched = frozen_heads.patch_frozen_heads(detector)
    frozen_heads.set_batch_keys(patched, next(iter((*args, *kwargs.values())), None))
    try:
        with fast:
            output = forward(*args, **kwargs)
        if session is not None:
            session.prefix.forward_ended()
    except PCDetFreezeError:
        raise
    except _MISSING_OUTPUT as error:
        if patched:
            raise FreezeError(_needs_head(detector, patched, error)) from error
        raise
    _require_gradient(detector, output)
    return output


def _needs_head(detector: nn.Module, patched: list[frozen_heads.Part], error: Exception) -> str:
    names = ", ".join(part.name for part in patched)
    return (
        f"{type(detector).__name__} cannot be trained with {names} fully frozen: a frozen head runs in eval "
        f"mode and gives no loss, and the detector then failed with {type(error).__name__}: {error}. Freeze "
        "only a part of the head (`!dense_head.conv_cls`), or remove it from MODEL.NOT_TRAIN_IN_MULTI_TASK."
    )


def _require_gradient(detector: nn.Module, output: Any) -> None:
    """T3 for a detector whose loss does not come from ``get_loss`` of its heads."""
    result = output[0] if isinstance(output, tuple) and output else output
    loss = result.get("loss") if isinstance(result, dict) else None
    if torch.is_tensor(loss) and not loss.requires_grad:
        raise FreezeError(
            f"The loss of {type(detector).__name__} does not depend on any trainable parameter. Remove an "
            "entry from MODEL.NOT_TRAIN_IN_MULTI_TASK."
        )
