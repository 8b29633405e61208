"""The table of ``explain``: what a training would do with each module (P6); printed by ``cli/explain.py``."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from pcdet_freeze.engine.optim.optimizer import build_optimizer, parameter_names
from pcdet_freeze.errors import FreezeError
from pcdet_freeze.freezing import FreezeHandle, freeze, is_frozen, is_fully_frozen, layer_types, unfreeze
from pcdet_freeze.freezing.checks.loss_reachability import Reachability, trace_losses
from pcdet_freeze.freezing.data_flow.drift_lint import lint
from pcdet_freeze.freezing.data_flow.module_graph import explain_steps, require_loss, stages, training_steps
from pcdet_freeze.freezing.entries.paths import children, is_within
from pcdet_freeze.freezing.eval_lock import is_locked
from pcdet_freeze.freezing.lr_scale import describe_lr_scale, lr_scaled_groups
from pcdet_freeze.freezing.schedule import Phase, timeline
from pcdet_freeze.freezing.state import get_module_state
from pcdet_freeze.utils.distributed import unwrap


@dataclass(frozen=True)
class Row:
    """One module with all its submodules."""

    module: str
    type: str
    parameters: int
    frozen: str
    """'yes'; 'locked': norm layers in eval mode, parameters trainable (PARAMETERS: False); 'partly'; 'no'"""
    entries: tuple[str, ...]
    """entries of the list that freeze it or a part of it"""
    norm_locked: int
    """norm layers locked in eval mode"""
    norm_train: int
    """norm layers in train mode"""
    dropout_off: int
    dropout_on: int
    groups: tuple[int, ...]
    """optimizer groups with its parameters"""
    head: str
    """'loss' or 'no loss' for a head; else empty"""
    losses: tuple[str, ...]
    """heads whose loss depends on a trainable parameter in it"""
    unreached: tuple[str, ...]
    """trainable parameters and norm layers in it that no loss depends on"""


@dataclass(frozen=True)
class Explanation:
    """The whole table."""

    summary: str
    rows: tuple[Row, ...]
    heads: tuple[str, ...]
    """heads that give a loss"""
    schedule: tuple[str, ...]
    """what later phases unfreeze, one line per entry; the rows show the first phase"""
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    problems: tuple[str, ...]
    """errors that would stop a training before its first step"""

    def to_plain(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


def explain(
    handle: FreezeHandle,
    optim_cfg: Mapping[str, Any],
    batch_dict: dict[str, Any] | None,
    depth: int = 2,
    optimizer: torch.optim.Optimizer | None = None,
) -> Explanation:
    """Explain the frozen model of ``handle``; only a copy of it is run.

    Args:
        optim_cfg: ``cfg.OPTIMIZATION``.
        batch_dict: one batch on the model's device; it is not changed. None: loss reachability is unknown.
        depth: number of module levels; 2: children of the detector and their children.
        optimizer: None: the one of ``optim_cfg``.
    """
    model, problems = handle.model, []
    phases: tuple[Phase, ...] = ()
    try:
        phases = timeline(handle.plan, model, optim_cfg.get("NUM_EPOCHS"))
    except FreezeError as error:
        problems.append(str(error))
    try:
        optimizer = optimizer or build_optimizer(model, optim_cfg, lr_scaled_groups(handle.plan, model))
    except FreezeError as error:
        problems.append(str(error))
    try:
        require_loss(model)
        reach = Reachability() if batch_dict is None else trace_losses(model, batch_dict)
    except FreezeError as error:
        reach = Reachability()
        problems.append(str(error))
    problems += [_unreached_message(part) for part in reach.unreached(model)]
    problems += [] if batch_dict is None else _later_problems(model, phases, batch_dict)
    groups = _groups(model, optimizer)
    paths = [(path, module) for path, module in _down_to("", unwrap(model), depth) if path]
    return Explanation(
        handle.summary(),
        tuple(_row(path, module, handle, groups, reach) for path, module in paths),
        reach.heads,
        tuple(line for phase in phases for line in phase.lines()),
        (*handle.notes, *describe_lr_scale(handle.plan, model), *explain_steps(model)),
        tuple(str(drift) for drift in lint(model)),
        tuple(problems),
    )


def _later_problems(model: nn.Module, phases: Sequence[Phase], batch_dict: dict[str, Any]) -> Iterator[str]:
    """Errors that would stop a training when a phase of its schedule begins."""
    for phase in phases[1:]:
        twin = copy.deepcopy(unwrap(model))
        unfreeze(twin)
        freeze(twin, phase.plan, certify=False)
        for part in trace_losses(twin, batch_dict).unreached(twin):
            yield f"after EPOCH {phase.begins}: {_unreached_message(part)}"


def _unreached_message(part: str) -> str:
    return (
        f"{part} is trainable, but no loss depends on it: it would learn nothing, and its running statistics "
        f"would drift. Add it to MODEL.NOT_TRAIN_IN_MULTI_TASK"
    )


def _down_to(path: str, module: nn.Module, depth: int) -> Iterator[tuple[str, nn.Module]]:
    yield path, module
    if depth > 0:
        for child_path, child in children(path, module):
            yield from _down_to(child_path, unwrap(child), depth - 1)


def _groups(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> dict[str, int]:
    """Parameter name -> number of its group."""
    if optimizer is None:
        return {}
    names = parameter_names(model, optimizer)
    return {name: number for number, group in enumerate(names) for name in group}


def _row(
    path: str, module: nn.Module, handle: FreezeHandle, groups: Mapping[str, int], reach: Reachability
) -> Row:
    norms = [is_locked(part) for part in module.modules() if layer_types.is_norm(part)]
    drops = [off for part in module.modules() if (off := dropout_is_off(part)) is not None]
    inside = reach.inside(path)
    return Row(
        path,
        type(module).__name__,
        sum(parameter.numel() for parameter in module.parameters()),
        _frozen(module),
        _entries(path, handle),
        sum(norms),
        len(norms) - sum(norms),
        sum(drops),
        len(drops) - sum(drops),
        tuple(sorted({number for name, number in groups.items() if is_within(name, path)})),
        _head(path, handle.model),
        tuple(head for head in reach.heads if any(head in heads for heads in inside.values())),
        tuple(name for name, heads in inside.items() if not heads),
    )


def _frozen(module: nn.Module) -> str:
    if is_fully_frozen(module):
        return "yes"
    if is_frozen(module):
        return "locked"
    return (
        "partly" if any(is_frozen(part) for part in module.modules() if layer_types.has_state(part)) else "no"
    )


def _entries(path: str, handle: FreezeHandle) -> tuple[str, ...]:
    """The entry that freezes ``path``, or the entries that freeze parts of it."""
    whole = handle.resolution.entry_of(path)
    if whole:
        return (whole,)
    named = handle.resolution.named.items()
    return tuple(entry for entry, paths in named if any(is_within(top, path) for top in paths))


def _head(path: str, model: nn.Module) -> str:
    heads = {stage.name for stage in stages(model) if stage.has_loss}
    if path not in heads:
        return ""
    return "loss" if training_steps(model)[path].loss else "no loss"


def dropout_is_off(module: nn.Module) -> bool | None:
    """Whether a dropout layer is switched off by the freeze; None for other layers.

    Attention and recurrent layers count as dropout layers if their dropout is above zero.
    """
    if layer_types.is_dropout(module):
        return is_locked(module)
    if not (layer_types.is_attention(module) or layer_types.is_recurrent(module)):
        return None
    record = get_module_state(module)
    now = float(module.dropout)  # type: ignore[arg-type]
    before = record.dropout if record is not None and record.dropout is not None else now
    return is_locked(module) or now == 0 if before else None
