"""Wrappers around a model: DistributedDataParallel, DataParallel, AveragedModel and ``torch.compile``.

A wrapper is known by its class. A module of a user's own whose only child happens to be called ``module`` is
no wrapper: that name is part of the child's path, as it is part of its ``state_dict`` keys.
"""

from __future__ import annotations

import sys

from torch import nn
from torch.optim.swa_utils import AveragedModel

WRAPPER_CHILDREN = ("module", "_orig_mod")
"""Names that wrappers give to the module inside them."""
AVERAGED = "n_averaged"
"""The one key of an AveragedModel's state that is not of the module inside it."""


def wrapped(module: nn.Module) -> tuple[str, nn.Module] | None:
    """(name, module) of the child that a wrapper wraps; None where ``module`` is no wrapper.

    Parallel and compiled modules count at any depth. ``AveragedModel`` does not: inside a model it is a
    teacher with state of its own. :func:`unwrap` sees through one around the whole model.
    """
    children = module._modules
    if len(children) != 1:
        return None
    ((name, child),) = children.items()
    if child is None or name not in WRAPPER_CHILDREN:
        return None
    is_wrapper = isinstance(module, nn.parallel.DistributedDataParallel | nn.DataParallel)
    return (name, child) if is_wrapper or is_compiled(module) else None


def is_compiled(module: nn.Module) -> bool:
    """Whether ``module`` is what ``torch.compile`` returned for another one."""
    if "_orig_mod" not in module._modules:
        return False
    compiler = sys.modules.get("torch._dynamo.eval_frame")  # not imported: it takes seconds
    return compiler is not None and isinstance(module, compiler.OptimizedModule)


def inner(module: nn.Module) -> nn.Module:
    """``module``, a part of a model, without its parallel and compiled wrappers."""
    while (found := wrapped(module)) is not None:
        module = found[1]
    return module


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside all its wrappers, ``AveragedModel`` included."""
    while True:
        model = inner(model)
        if not isinstance(model, AveragedModel):
            return model
        model = model.module
