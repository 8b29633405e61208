"""Resume a trainer from a checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from pcdet_freeze.engine.optim.optimizer_state import load_optimizer_state
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.errors import CheckpointError
from pcdet_freeze.freezing.checkpoint_meta import CHECKPOINT_KEY
from pcdet_freeze.utils import distributed


def resume(trainer: Trainer, state: Mapping[str, Any]) -> None:
    """Restore optimizer, counters, scaler and random generators of ``trainer`` from ``state``.

    The model state is loaded before this (``weights.load_model_state``). The optimizer state is mapped by
    parameter name, and the log lists what was kept, dropped and new. A checkpoint without CHECKPOINT_KEY (one
    of OpenPCDet's) resumes at the start of the epoch after its last finished one.

    Raises:
        CheckpointError: the run cannot be resumed; the message says what to do.
    """
    ours = state.get(CHECKPOINT_KEY, {})
    if state.get("optimizer_state") is None:
        raise CheckpointError(
            "A run can only resume from a checkpoint with an optimizer_state, but this one has none. "
            "To start from its weights use --pretrained_model."
        )
    missing = [key for key in ("epoch", "it") if state.get(key) is None]
    if missing:
        raise CheckpointError(
            f"A run can only resume from a checkpoint with its position, but this one has no "
            f"{' and no '.join(missing)}. To start from its weights use --pretrained_model."
        )
    names, kind = ours.get("optimizer_names"), ours.get("optimizer_kind")
    found = load_optimizer_state(trainer.model, trainer.optimizer, state["optimizer_state"], names, kind)
    level = logging.INFO if found.is_whole else logging.WARNING
    trainer.logger.log(level, "Optimizer state, by parameter name:\n%s", found.table())
    trainer.epoch, trainer.iteration = int(state["epoch"]), int(state["it"])
    if ours:
        _resume_position(trainer, ours)


def _resume_position(trainer: Trainer, ours: Mapping[str, Any]) -> None:
    sampler, states = ours["sampler"], ours["rng"]
    if sampler["offset"] and sampler["length"] != trainer.epoch_length:
        raise CheckpointError(
            "A run can only resume in the middle of an epoch of the same length "
            f"({sampler['length']} iterations), but this one has {trainer.epoch_length}. Use the same data, "
            "--batch_size and number of processes, or a checkpoint from the end of an epoch."
        )
    trainer.offset = sampler["offset"]
    trainer.guard.skipped = ours.get("skipped_steps", 0)
    if ours["scaler"] and trainer.scaler.is_enabled():
        trainer.scaler.load_state_dict(ours["scaler"])
    if len(states) != distributed.world_size():
        trainer.logger.warning(
            "Written by %d processes, resumed by %d: the order of the data and the random generators differ, "
            "so this resume is not bit-exact.",
            len(states),
            distributed.world_size(),
        )
    trainer.resumed_rng = states[distributed.rank()] if distributed.rank() < len(states) else None
