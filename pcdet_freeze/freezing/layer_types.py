"""Types of layers that freezing treats specially: norm, dropout, attention, RNN, parametrization."""

from __future__ import annotations

import re

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.spectral_norm import SpectralNorm

RUNNING_BUFFERS = ("running_mean", "running_var", "running_std")
_DROP_NAME = re.compile(r"drop(out|path|block|connect|key|token)|stochastic_?depth|^drop\w?$", re.IGNORECASE)


def is_norm(module: nn.Module) -> bool:
    """Whether ``module`` is a norm layer with running statistics, of torch or of a user."""
    if any(module._buffers.get(name) is not None for name in RUNNING_BUFFERS):
        return True
    return isinstance(module, _NormBase) and bool(module.track_running_stats)


def is_dropout(module: nn.Module) -> bool:
    """Whether ``module`` draws random numbers in train mode only: dropout, RReLU, DropPath by any author.

    Layers from elsewhere are known by the name of their class (DropPath, StochasticDepth, DropBlock), if they
    have no weights: a head with the name DropoutHead is left alone.
    """
    if isinstance(module, _DropoutNd | nn.RReLU):
        return True
    names = (cls.__name__ for cls in type(module).__mro__)
    return any(_DROP_NAME.search(name) for name in names) and not has_state(module)


def is_attention(module: nn.Module) -> bool:
    """Whether ``module`` is torch's MultiheadAttention, which drops attention weights by its own flag."""
    return isinstance(module, nn.MultiheadAttention)


def is_recurrent(module: nn.Module) -> bool:
    """Whether ``module`` is an RNN, LSTM or GRU: it stays in train mode (cuDNN), its dropout goes to 0."""
    return isinstance(module, nn.RNNBase)


def is_hooked_spectral_norm(module: nn.Module) -> bool:
    """Whether the older, hook-based spectral norm updates buffers of ``module`` by its training flag."""
    return any(isinstance(hook, SpectralNorm) for hook in module._forward_pre_hooks.values())


def is_parametrization(parent: nn.Module | None) -> bool:
    """Whether a child of ``parent`` computes a weight (spectral norm updates its buffers in train mode)."""
    return isinstance(parent, ParametrizationList)


def needs_eval_lock(module: nn.Module, parent: nn.Module | None) -> bool:
    """Whether the type of ``module`` makes it behave differently in train mode."""
    return (
        is_norm(module)
        or is_dropout(module)
        or is_attention(module)
        or is_hooked_spectral_norm(module)
        or is_parametrization(parent)
    )


def has_state(module: nn.Module) -> bool:
    """Whether ``module`` has a parameter or buffer anywhere in it."""
    return any(True for _ in module.parameters()) or any(True for _ in module.buffers())


def is_uninitialised(module: nn.Module) -> bool:
    """Whether ``module`` is lazy and has not seen its first input."""
    own = [*module._parameters.values(), *module._buffers.values()]
    lazy = any(tensor is not None and is_lazy(tensor) for tensor in own)
    return lazy or (isinstance(module, LazyModuleMixin) and module.has_uninitialized_params())


def is_scripted(module: nn.Module) -> bool:
    """Whether ``module`` was compiled by TorchScript, whose flag Python cannot lock."""
    return isinstance(module, torch.jit.ScriptModule)
