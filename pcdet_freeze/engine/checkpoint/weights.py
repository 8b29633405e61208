"""Load model states: all tensors on resume, those that fit from a pretrained model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pcdet_freeze.engine.checkpoint.compat import fit_layouts, without_wrapper_prefixes
from pcdet_freeze.engine.checkpoint.head_classes import other_classes, require_same_classes
from pcdet_freeze.errors import CheckpointError
from pcdet_freeze.freezing.verification.averages import trained_weights
from pcdet_freeze.utils.distributed import unwrap
from pcdet_freeze.utils.untrusted_files.safe_torch_load import load_checkpoint


@dataclass(frozen=True)
class Fit:
    """Which tensors of a file match those of a model by name and shape."""

    loaded: tuple[str, ...]
    """in both, of one shape"""
    missing: tuple[str, ...]
    """in the model only"""
    unexpected: tuple[str, ...]
    """in the file only"""
    misshaped: tuple[str, ...]
    """in both, of different shapes; each with both shapes"""

    def table(self, limit: int = 8) -> str:
        """Return one line a kind: the count and the first ``limit`` names."""
        rows = (("loaded", self.loaded), ("missing", self.missing))
        rows += (("unexpected", self.unexpected), ("other shape", self.misshaped))  # type: ignore[assignment]
        return "\n".join(
            f"  {title:<11} {len(names):>5}  {_some(names, limit)}".rstrip() for title, names in rows
        )


def compare_keys(model: nn.Module, state: Mapping[str, torch.Tensor]) -> Fit:
    """Compare names and shapes of ``state`` and ``model``; nothing is changed."""
    own = unwrap(model).state_dict()
    both = [name for name in own if name in state]
    bad = {name for name in both if own[name].shape != state[name].shape}
    return Fit(
        loaded=tuple(name for name in both if name not in bad),
        missing=tuple(name for name in own if name not in state),
        unexpected=tuple(name for name in state if name not in own),
        misshaped=tuple(
            f"{name} {tuple(state[name].shape)} for {tuple(own[name].shape)}" for name in both if name in bad
        ),
    )


def fit_state(
    model: nn.Module, state: Mapping[str, torch.Tensor], source: str | Path
) -> dict[str, torch.Tensor]:
    """Return ``state`` with the names and layouts of ``model``: no wrapper prefixes, weights of spconv 2."""
    return fit_layouts(unwrap(model), without_wrapper_prefixes(unwrap(model), state, source))


def load_model_state(model: nn.Module, state: Mapping[str, torch.Tensor], source: str | Path) -> None:
    """Load all of ``state``; raise CheckpointError, and change nothing, unless every tensor fits."""
    state = fit_state(model, state, source)
    fit = compare_keys(model, state)
    if fit.missing or fit.unexpected or fit.misshaped:
        raise CheckpointError(
            f"{source} must be a checkpoint of this model, but its tensors differ:\n{fit.table(4)}\n"
            "Use the config that it was trained with, or --pretrained_model to load only what fits."
        )
    unwrap(model).load_state_dict(dict(state), strict=True)


def load_pretrained(
    model: nn.Module,
    path: str | Path,
    logger: logging.Logger,
    *,
    allow_mismatch: bool = False,
    trust: bool = False,
    checkpoint: Mapping[str, Any] | None = None,
) -> Fit:
    """Load the tensors of ``path`` that fit by name and shape, and log a table of all.

    ``checkpoint`` is the content of ``path``, where it was read already.

    Raises CheckpointError, and changes nothing, if a shape differs (unless ``allow_mismatch``, which skips
    such a tensor), if a head was trained for other classes (unless ``allow_mismatch``) or if no tensor fits.
    """
    if checkpoint is None:
        checkpoint = load_checkpoint(path, trust)
    state = fit_state(model, trained_weights(checkpoint), path)
    fit = compare_keys(model, state)
    if allow_mismatch:
        for line in other_classes(model, checkpoint, fit.loaded):
            logger.warning("%s: %s", path, line)
    else:
        require_same_classes(model, checkpoint, state, path)
    table = f"Pretrained model {path}:\n{fit.table()}"
    if fit.misshaped and not allow_mismatch:
        raise CheckpointError(
            f"A pretrained tensor must have the shape of the model's, but some differ. {table}\n"
            "Use the config that it was trained with, rename the tensors, or skip them with --allow_mismatch."
        )
    if not fit.loaded:
        raise CheckpointError(f"A pretrained model must share tensors with the model, but none fits. {table}")
    unwrap(model).load_state_dict({name: state[name] for name in fit.loaded}, strict=False)
    logger.info("%s", table)
    return fit


def _some(names: tuple[str, ...], limit: int) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
