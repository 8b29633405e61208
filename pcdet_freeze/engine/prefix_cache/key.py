"""The key of a cache: everything that its outputs depend on, as plain data; its digest names the folder."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

import pcdet_freeze
from pcdet_freeze.config import plain
from pcdet_freeze.engine.prefix_cache.store import ABOUT
from pcdet_freeze.freezing.prefix.boundary import Boundary, Slot
from pcdet_freeze.freezing.prefix.options import Options
from pcdet_freeze.freezing.prefix.planner import Plan
from pcdet_freeze.freezing.verification.certificate import digests_of
from pcdet_freeze.freezing.verification.digest import value_digest
from pcdet_freeze.models.detectors.topology import sections_of
from pcdet_freeze.utils.devices import autocast_is_on

PACKAGES = ("torch", "spconv", "numpy")
"""names of distributions, or what comes before a hyphen in them"""


def cache_key(
    model: nn.Module, boundary: Boundary, plan: Plan, options: Options, dtype: str, data: Mapping[str, Any]
) -> dict[str, Any]:
    """Return everything that determines the values in a cache, except the sample and its variant (the row).

    Args:
        model: without wrappers, as it is in a training forward.
        boundary, plan, options: the outputs, and how they are computed.
        dtype: storage dtype of float32 values.
        data: ``DatasetTemplate.cache_key``.
    """
    device = next((p.device.type for p in model.parameters()), "cpu")
    key = {
        "frozen state": state_digest(model, boundary),
        "modules": {path: repr(model.get_submodule(path)) for path in boundary.paths},
        "config": _sections(model, boundary),
        "outputs": [_output(slot) for slot in boundary.slots],
        "dtype": dtype,
        "folding": {
            "folds": plan.folds,
            "quick": plan.quick,
            "fuse": options.fuse,
            **({"reached": plan.reached} if plan.reached else {}),
        },
        "computed in": [str(options.dtype), options.channels_last, list(plan.compiled), _precision(device)],
        "device": device,
        "versions": _versions(),
        "data": data,
    }
    return json.loads(json.dumps(plain(key), sort_keys=True, default=str))


def key_digest(key: Mapping[str, Any]) -> str:
    """16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


def state_digest(model: nn.Module, boundary: Boundary) -> str:
    """Return a digest of all parameters, buffers and extra states of the cached modules."""
    found, tensors = {}, {}
    for path in boundary.paths:
        for name, module in model.get_submodule(path).named_modules():
            for own, tensor in [*module._parameters.items(), *module._buffers.items()]:
                if tensor is not None:
                    tensors[f"{path}.{name}.{own}"] = tensor
            if type(module).get_extra_state is not nn.Module.get_extra_state:
                found[f"{path}.{name}"] = value_digest(module.get_extra_state())
    found |= digests_of(tensors)
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def differences(folder: Path, key: Mapping[str, Any]) -> list[str]:
    """Return what differs between ``key`` and the nearest cache in ``folder``; empty if there is none."""
    others = [_read(path) for path in sorted(folder.glob(f"*/{ABOUT}"))]
    lists = [_changed(key, other) for other in others if other]
    return min(lists, key=len, default=[])


def _changed(key: Mapping[str, Any], other: Mapping[str, Any], within: str = "") -> list[str]:
    """Return dotted names of the values that differ in ``other``."""
    found = []
    for name, value in key.items():
        theirs = other.get(name)
        if isinstance(value, Mapping) and isinstance(theirs, Mapping):
            found += _changed(value, theirs, f"{within}{name}.")
        elif value != theirs:
            found.append(within + name)
    return found + [within + name for name in other if name not in key]


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):  # not a cache of this package, or deleted meanwhile
        return {}
    return found if isinstance(found, dict) else {}


def _output(slot: Slot) -> list[Any]:
    form = ["channels_last"] if slot.channels_last else []  # other kernels, which round otherwise
    return [slot.path, slot.call, slot.key, list(slot.shape), str(slot.dtype), *form]


def _sections(model: nn.Module, boundary: Boundary) -> dict[str, Any]:
    """Return the config sections of the cached modules."""
    config = getattr(model, "model_cfg", None)
    tops = {path.split(".")[0] for path in boundary.paths}
    if not isinstance(config, Mapping):
        return {}
    return {slot.section: section for slot, section in sections_of(config) if slot.attribute in tops}


def _precision(device: str) -> list[Any]:
    tf32 = [torch.get_float32_matmul_precision()]
    if device == "cuda":
        tf32.append(str(torch.backends.cudnn.allow_tf32))
    return [autocast_is_on(device), *tf32]


def _versions() -> dict[str, str]:
    installed = {found.metadata["Name"]: found.version for found in importlib.metadata.distributions()}
    wanted = [name for name in installed if name in PACKAGES or str(name).split("-")[0] in PACKAGES]
    # not from the distribution: an editable installation keeps the metadata of the day it was made
    return {"pcdet-freeze": pcdet_freeze.__version__} | {name: installed[name] for name in sorted(wanted)}
