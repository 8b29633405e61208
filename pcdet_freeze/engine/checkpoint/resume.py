"""Resume a trainer from a checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from numbers import Integral
from typing import Any

from pcdet_freeze.engine.optim.optimizer_state import load_optimizer_state
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.errors import CheckpointError, PCDetFreezeError
from pcdet_freeze.freezing.verification.checkpoint_meta import CHECKPOINT_KEY
from pcdet_freeze.utils import distributed
from pcdet_freeze.utils.rng import set_rng_state, untouched_rng


def resume(trainer: Trainer, state: Mapping[str, Any]) -> None:
    """Restore optimizer, counters, scaler and random generators of ``trainer`` from ``state``.

    The model state is loaded before this (``weights.load_model_state``). The optimizer state is mapped by
    parameter name, and the log lists what was kept, dropped and new. A checkpoint without CHECKPOINT_KEY (one
    of OpenPCDet's) resumes at the start of the epoch after its last finished one.

    Raises:
        CheckpointError: the run cannot be resumed; the message says what to do.
    """
    try:
        _resume(trainer, state)
    except PCDetFreezeError:
        raise
    except (AttributeError, TypeError, ValueError, LookupError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(
            f"A run can only resume from a checkpoint that is whole, but a part of this one is damaged "
            f"({type(error).__name__}: {error}). Remove it, or name another one with --ckpt."
        ) from error


def _resume(trainer: Trainer, state: Mapping[str, Any]) -> None:
    ours = state.get(CHECKPOINT_KEY, {})
    if state.get("optimizer_state") is None:
        raise CheckpointError(
            "A run can only resume from a checkpoint with an optimizer_state, but this one has none. "
            "To start from its weights use --pretrained_model."
        )
    missing = [key for key in ("epoch", "it") if state.get(key) is None]
    wrong = [key for key in ("epoch", "it") if not _is_count(state.get(key, 0))]
    if wrong and not missing:
        raise CheckpointError(
            f"The position in a checkpoint must be whole numbers, 0 or more, but its {wrong[0]} is "
            f"{state[wrong[0]]!r:.80}. Remove it, or name another one with --ckpt."
        )
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


def _is_count(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and 0 <= int(value) < 2**63


def _resume_position(trainer: Trainer, ours: Mapping[str, Any]) -> None:
    sampler, states = ours["sampler"], ours["rng"]
    if sampler["offset"]:
        _check_same_epoch(trainer, sampler)
    trainer.offset = sampler["offset"]
    trainer.guard.skipped = ours.get("skipped_steps", 0)
    trainer.resumed = ours
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
    if trainer.resumed_rng is not None:
        with untouched_rng():  # it is set when the run starts; damage is an error now
            set_rng_state(trainer.resumed_rng)


def _check_same_epoch(trainer: Trainer, sampler: Mapping[str, Any]) -> None:
    """An offset counts iterations: it is the same place only where each has the same batches."""
    length, batches, accumulate = trainer.epoch_length, len(trainer.loader), trainer.accumulate
    if sampler["length"] != length:
        fault = f"of the same length ({sampler['length']} iterations), but this one has {length}"
    elif sampler.get("batches", batches) != batches:  # files of older versions do not have it
        fault = f"of as many batches ({sampler['batches']}), but this one has {batches}"
    elif sampler.get("accumulate", accumulate) != accumulate:
        fault = f"with the same ACCUMULATE ({sampler['accumulate']}), but this run has {accumulate}"
    else:
        return
    raise CheckpointError(
        f"A run can only resume in the middle of an epoch {fault}. Use the same data, --batch_size, "
        "OPTIMIZATION.ACCUMULATE and number of processes, or a checkpoint from the end of an epoch."
    )
