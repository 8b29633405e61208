"""Averages of the weights in a checkpoint (OPTIMIZATION.EMA), beside the weights that a resume needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pcdet_freeze.errors import CheckpointError
from pcdet_freeze.freezing.verification.checkpoint_meta import CHECKPOINT_KEY

KEY = "ema"
"""key in the data of a checkpoint: decay, updates (number of steps), state (averages that differ from the
weights)"""


def stored_averages(ours: Mapping[str, Any]) -> tuple[int, dict[str, Tensor]]:
    """Number of updates, and averages by name; CheckpointError for damage."""
    found = ours.get(KEY)
    state = found.get("state") if isinstance(found, Mapping) else None
    updates = found.get("updates") if isinstance(found, Mapping) else None
    sound = isinstance(state, Mapping) and isinstance(updates, int) and updates >= 0
    if not sound or not all(isinstance(value, Tensor) for value in state.values()):  # type: ignore[union-attr]
        raise CheckpointError(
            "The averages of a checkpoint (OPTIMIZATION.EMA) must be what this package wrote, but cannot be "
            "read. Use another checkpoint."
        )
    return updates, dict(state)  # type: ignore[return-value, arg-type]


def trained_weights(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights to evaluate, and to start a stage from: the averages if there are any."""
    ours, weights = checkpoint.get(CHECKPOINT_KEY), dict(checkpoint["model_state"])
    if not isinstance(ours, Mapping) or KEY not in ours:
        return weights
    averages = stored_averages(ours)[1]
    strange = [
        name for name in averages if name not in weights or averages[name].shape != weights[name].shape
    ]
    if strange:
        raise CheckpointError(
            f"The averages of a checkpoint (OPTIMIZATION.EMA) must be of its own weights; got {strange[0]}. "
            "Use another checkpoint."
        )
    return weights | averages
