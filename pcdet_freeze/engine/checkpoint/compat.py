"""Read model states of other programs: kernel-first weights of spconv 1.x, prefixes of wrappers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from pcdet_freeze.utils.wrappers import AVERAGED

PREFIXES = ("module.", "_orig_mod.")


def fit_layouts(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``state`` with sparse weights of spconv 1.x, (kernel..., in, out), as (out, kernel..., in).

    A tensor is permuted if its shape differs from the model's, matches it when permuted, and is not of a
    dense convolution of torch. All others are returned unchanged.
    """
    own = model.state_dict()
    dense = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.conv._ConvNd)
    }
    fitted = dict(state)
    for name, value in state.items():
        wanted = own[name].shape if name in own and name not in dense else value.shape
        if value.shape != wanted and value.ndim in (4, 5) and value.movedim(-1, 0).shape == wanted:
            fitted[name] = value.movedim(-1, 0).contiguous()
    return fitted


def without_wrapper_prefixes(
    model: nn.Module, state: Mapping[str, Tensor], source: str | Path
) -> dict[str, Tensor]:
    """Return ``state`` without the prefix of a wrapper that was saved along with its model.

    A prefix is removed if all keys start with it and no key of ``model`` does: ``module.`` of
    DistributedDataParallel, DataParallel and AveragedModel (whose ``n_averaged`` is dropped), ``_orig_mod.``
    of torch.compile. The log says so.
    """
    own, found, removed = model.state_dict(), dict(state), ""
    while prefix := _shared_prefix(found):
        if any(name.startswith(prefix) for name in own):
            break
        found = {name[len(prefix) :]: value for name, value in found.items() if name != AVERAGED}
        removed += prefix
    if removed:
        logging.getLogger("pcdet_freeze").info("%s: removed the prefix %r from all keys", source, removed)
    return found


def _shared_prefix(state: Mapping[str, Tensor]) -> str:
    names = [name for name in state if name != AVERAGED]
    shared = [prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in names)]
    return shared[0] if names and shared else ""
