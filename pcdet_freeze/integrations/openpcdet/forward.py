"""The training forward of a frozen detector: its own, between what must hold before and after it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pcdet_freeze.errors import FreezeError, PCDetFreezeError
from pcdet_freeze.integrations.openpcdet import frozen_heads

SESSION = "_pcdet_freeze_session"
"""on a detector: its Session; None on a copy of it"""
_TROUBLE = (AttributeError, IndexError, KeyError, TypeError, ValueError)
"""what a detector's code raises where it misses something that a quiet head did not leave"""


def checked_forward(detector: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The forward of a frozen detector, and of its copies, in place of its own.

    Raises FreezeError, which names the detector, where its code cannot do without what a frozen head leaves
    in training only, and where its loss depends on nothing that trains (T3).
    """
    forward = frozen_heads.plain(detector, "forward")
    if not detector.training or not torch.is_grad_enabled():
        frozen_heads.note_given(frozen_heads.quieten(detector), None)
        return forward(*args, **kwargs)
    session = detector.__dict__.get(SESSION)
    if session is not None:
        session.before_forward()
    quiet = frozen_heads.quieten(detector)
    frozen_heads.note_given(quiet, next(iter((*args, *kwargs.values())), None))
    try:
        output = forward(*args, **kwargs)
    except PCDetFreezeError:
        raise
    except _TROUBLE as error:
        if quiet:
            raise FreezeError(_cannot(detector, quiet, error)) from error
        raise
    _require_gradient(detector, output)
    return output


def _cannot(detector: nn.Module, quiet: list[frozen_heads.Part], error: Exception) -> str:
    names = ", ".join(part.name for part in quiet)
    return (
        f"{type(detector).__name__} cannot be trained with {names} frozen whole: a frozen head runs as in "
        f"eval and gives no loss, and then its own code failed with {type(error).__name__}: {error}. Freeze "
        "a part of the head (`!dense_head.conv_cls`), or take it out of MODEL.NOT_TRAIN_IN_MULTI_TASK."
    )


def _require_gradient(detector: nn.Module, output: Any) -> None:
    """T3, for a detector that takes its loss from elsewhere than its heads' ``get_loss``."""
    result = output[0] if isinstance(output, tuple) and output else output
    loss = result.get("loss") if isinstance(result, dict) else None
    if torch.is_tensor(loss) and not loss.requires_grad:
        raise FreezeError(
            "A loss must be left that reaches something trainable, but the loss of "
            f"{type(detector).__name__} depends on no trainable parameter. Take an entry out of "
            "MODEL.NOT_TRAIN_IN_MULTI_TASK."
        )
