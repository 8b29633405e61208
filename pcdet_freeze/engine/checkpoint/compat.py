"""Read checkpoints of other programs: numpy scalars, kernel-first sparse weights, wrapper prefixes."""

from __future__ import annotations

import logging
import re
import zipfile
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# a number of numpy's is written as a call of this function, which moved with numpy 2
_SCALAR_NAMES = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
_NUMBER_TYPES = "?bhilqBHILQefd"
PREFIXES = ("module.", "_orig_mod.")
AVERAGED = "n_averaged"
"""the one key of an AveragedModel that has no prefix"""
_TAKES_NAMES = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 6)
"""whether the allow-list accepts a function under another name"""


def numpy_scalars() -> AbstractContextManager[Any]:
    """Context in which ``torch.load(weights_only=True)`` also reads numpy scalars, and nothing else.

    torch before 2.5 has no such allow-list and refuses them like any other object.
    """
    safe_globals = getattr(torch.serialization, "safe_globals", None)
    return nullcontext() if safe_globals is None else safe_globals(_allowed())


def _allowed() -> list[Any]:
    scalar = type(np.float64(0)).__reduce__(np.float64(0))[0]
    dtypes = [np.dtype(code) for code in _NUMBER_TYPES]
    return [
        *([(scalar, name) for name in _SCALAR_NAMES] if _TAKES_NAMES else [scalar]),
        np.dtype,
        *dict.fromkeys(type(dtype) for dtype in dtypes),
    ]


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


_OBJECT = re.compile(r"GLOBAL (\S+)")
_ZIP, _PICKLE = b"PK", b"\x80"
_OTHER = "Name another one with --ckpt, or remove it."


def why_unreadable(path: Path, error: BaseException) -> str:
    """What is wrong with the file ``path``, which gave ``error`` when it was read, and what to do."""
    if found := _OBJECT.search(str(error)):
        return (
            f"it holds a Python object ({found[1]}), which could run code. Where you trust its author, add "
            f"--trust_checkpoint. {_OTHER}"
        )
    try:
        with path.open("rb") as file:
            head = file.read(2)
    except OSError as denied:
        return f"{denied}. {_OTHER}"
    if not head:
        return f"it is empty. {_OTHER}"
    if head == _ZIP and not zipfile.is_zipfile(path):
        return f"its end is missing, so it was cut off. {_OTHER}"
    if head != _ZIP and head[:1] != _PICKLE:
        return f"torch.save did not write it. {_OTHER}"
    return f"it was cut off or damaged ({_detail(error)}). {_OTHER}"


def _detail(error: BaseException) -> str:
    """The first line that says something; of torch's unpickler, what comes after its advice."""
    text = str(error).rpartition("WeightsUnpickler error:")[2].strip()
    return text.splitlines()[0].rstrip(". ") if text else type(error).__name__
