"""Keep losses and gradients that are not finite out of the weights (OPTIMIZATION.ON_NONFINITE).

On a CPU the verdict is read before the update. On any other device reading it would make the host wait in
every step. There the verdict stays on the device and decides there whether the update takes effect; the host
reads it one step late, before the next update, before a checkpoint and at the end of an epoch.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pcdet_freeze.engine.kept_tensors import KeptTensors, step_tensors, take_back_counters, zero_unless
from pcdet_freeze.engine.optim.gradient_norms import GradientNorms
from pcdet_freeze.errors import PCDetFreezeError
from pcdet_freeze.utils import distributed
from pcdet_freeze.utils.devices import wait_for


class NonFiniteLossError(PCDetFreezeError, ArithmeticError):
    """A loss or gradient that is NaN or infinite; the weights were not updated with it."""


class Training(Protocol):
    """What the guard needs of a trainer."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    logger: logging.Logger


@dataclass
class StepRecord:
    """What is needed to name the cause where a step is not finite. Tensors are on the device."""

    iteration: int
    """iterations done before this one"""
    epoch: int
    """1-based"""
    loss: Tensor
    """()"""
    norms: GradientNorms
    finite: Tensor
    """() bool, the verdict; equal on all ranks"""
    frames: list[str] = field(default_factory=list)
    parts: Mapping[str, Any] = field(default_factory=dict)
    """``tb_dict`` of the step"""
    deferred: bool = False
    """the update has been made, without effect where ``finite`` is False"""


@dataclass
class FiniteGuard:
    """Makes the updates of a training that are finite.

    Args:
        skip: leave a step that is not finite out, and go on; else raise.
        limit: number of steps of a run that may be left out; None: any number.
        deferred: read the verdict one step late; None: on any device but a CPU.

    Attributes:
        skipped: steps of this run that were left out, those before a resume included.
        pending: the step whose verdict was not read yet.
        failed: the step that ended the run.
        statistics: running statistics before the present step.
    """

    skip: bool = False
    limit: int | None = None
    deferred: bool | None = None
    skipped: int = 0
    pending: StepRecord | None = None
    failed: StepRecord | None = None
    statistics: KeptTensors | None = None

    @classmethod
    def from_cfg(cls, optim_cfg: Mapping[str, Any]) -> FiniteGuard:
        """The guard of OPTIMIZATION.ON_NONFINITE and NONFINITE_LIMIT."""
        skip = optim_cfg.get("ON_NONFINITE", "raise") == "skip"
        return cls(skip=skip, limit=optim_cfg.get("NONFINITE_LIMIT", DEFAULT_LIMIT))

    def begin(self, model: nn.Module) -> None:
        """A forward follows, which updates running statistics: keep them where a step may be left out."""
        self.statistics = KeptTensors(running_statistics(model)) if self.skip else None

    def update(
        self, record: StepRecord, training: Training, step: Callable[[], object], at_once: bool = False
    ) -> None:
        """Call ``step``, which makes the optimizer's step, so that it has an effect only if it is finite.

        Args:
            at_once: read the verdict before the update in any case.

        Raises:
            NonFiniteLossError: on all ranks: this step, or the one before, is not finite.
        """
        self.settle(training)
        late = record.finite.device.type != "cpu" if self.deferred is None else self.deferred
        record.deferred = late and not at_once
        if record.deferred:
            self._update_if_finite(record, training.optimizer, step)
            self.pending = record
            return
        self.pending = record
        if self.settle(training):
            step()
        elif self.statistics is not None:
            self.statistics.restore()

    def _update_if_finite(
        self, record: StepRecord, optimizer: torch.optim.Optimizer, step: Callable[[], object]
    ) -> None:
        """Make the step, and take it back on the device if it is not finite.

        The copies exist during the step only, when the activations have been freed.
        """
        tensors = step_tensors(optimizer)
        before, known = KeptTensors(tensors), {id(tensor) for tensor in tensors}
        step()
        before.restore_unless(record.finite)
        # the first step creates the state, which starts with zeros in each of our optimizers
        zero_unless(record.finite, (t for t in step_tensors(optimizer) if id(t) not in known))
        if self.statistics is not None:
            self.statistics.restore_unless(record.finite)

    def settle(self, training: Training) -> bool:
        """Read the verdict of the pending step; returns whether it was finite, or none was pending."""
        record, self.pending = self.pending, None
        if record is None or wait_for([record.finite])[0]:
            return True
        if record.deferred:
            take_back_counters(training.optimizer, record.norms.parameters)
        message, self.failed = describe(record, training.model), record
        if not self.skip:
            raise NonFiniteLossError(f"{message} The weights were not updated with it. {_ADVICE}")
        self.skipped += 1
        training.logger.warning("%s The step was left out (number %d of this run).", message, self.skipped)
        if self.limit is not None and self.skipped > self.limit:
            raise NonFiniteLossError(
                f"At most {self.limit} steps of a run may be left out (OPTIMIZATION.NONFINITE_LIMIT), but "
                f"this is number {self.skipped}. {message} {_ADVICE}"
            )
        self.failed = None
        return False


DEFAULT_LIMIT = 100
"""that of OPTIMIZATION.NONFINITE_LIMIT"""
_ADVICE = "Earlier checkpoints remain valid. Lower OPTIMIZATION.LR, or look at these frames."


def verdict(loss: Tensor, norms: GradientNorms | None, across_ranks: bool) -> Tensor:
    """() bool on the device: whether ``loss`` and gradients are finite, on all ranks.

    Args:
        norms: None: the gradients do not count, since a GradScaler looks at them.
    """
    finite = torch.isfinite(loss.detach())
    if norms is not None and norms.parameters:
        finite = finite & torch.isfinite(norms.total)
    if across_ranks:
        flag = finite.int()
        dist.all_reduce(flag, op=dist.ReduceOp.MIN)
        finite = flag.bool()
    return finite


def running_statistics(model: nn.Module) -> list[Tensor]:
    """Buffers of norm layers that a training forward updates."""
    layers = (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase) and m.training)
    return [buffer for layer in layers for buffer in layer.buffers(recurse=False)]


def describe(record: StepRecord, model: nn.Module) -> str:
    """Loss or gradient, tensors and frames of all ranks. Collective: all ranks have the same verdict."""
    value = float(record.loss)
    parts = {name: number for name, number in record.parts.items() if not is_finite(number)}
    loss, gradient = (not math.isfinite(value)), _tensors(record.norms, model)
    what = f"its loss is {value} (not finite in it: {parts or 'none of the logged parts'})" if loss else ""
    told = [(loss, value, record.frames, what, gradient)]
    ranks = [found[0] for found in distributed.gather(told)]
    culprits = [number for number, found in enumerate(ranks) if found[0]] or list(range(len(ranks)))
    several = len(ranks) > 1
    lines = []
    for number in culprits:
        _, _, frames, what, gradient = ranks[number]
        text = "; ".join(filter(None, [what, gradient and f"not finite: gradient of {gradient}"]))
        lines.append(f"{f'rank {number}: ' if several else ''}{text}; frames: {frames}")
    kind = "loss" if any(found[0] for found in ranks) else "gradient norm"
    worst = ranks[culprits[0]][1] if kind == "loss" else float(record.norms.total)
    where = f"at iteration {record.iteration} (epoch {record.epoch})"
    return f"The {kind} must be finite, but is {worst} {where}: {'; '.join(lines)}."


def _tensors(norms: GradientNorms, model: nn.Module, limit: int = 8) -> str:
    """Names of the parameters whose gradient is not finite."""
    names = {id(parameter): name for name, parameter in distributed.unwrap(model).named_parameters()}
    wrong = [
        names.get(id(parameter), "?")
        for parameter, norm in zip(norms.parameters, norms.each.tolist(), strict=True)
        if not math.isfinite(norm)
    ]
    return ", ".join(wrong[:limit]) + (f" and {len(wrong) - limit} more" if len(wrong) > limit else "")


def is_finite(number: Any) -> bool:
    """Whether a logged value is finite; a value of another kind counts as finite."""
    return math.isfinite(float(number)) if isinstance(number, (int, float, Tensor)) else True


def count_steps(model: nn.Module, number: int) -> None:
    """Count ``number`` steps in ``model``, as OpenPCDet's detectors do; a negative one takes them back."""
    count = getattr(model, "update_global_step", None)
    if count is not None and number > 0:
        count()
    elif count is not None and number < 0:
        model.global_step.add_(number)  # type: ignore[operator]
