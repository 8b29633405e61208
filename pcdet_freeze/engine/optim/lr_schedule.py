"""Learning rate and momentum as pure functions of the iteration: a schedule has no state to resume."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch


class Schedule(ABC):
    """Sets learning rate and momentum of the optimizer's param groups before each iteration."""

    @abstractmethod
    def lr(self, iteration: int) -> float:
        """Learning rate at 0-based ``iteration``."""

    def momentum(self, iteration: int) -> float | None:
        """Adam's first beta at ``iteration``; None does not change it."""
        return None

    def apply(self, optimizer: torch.optim.Optimizer, iteration: int) -> float:
        """Set every param group for ``iteration`` and return the learning rate.

        The rate of a group with ``lr_scale`` is multiplied by it.
        """
        lr, momentum = self.lr(iteration), self.momentum(iteration)
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
            if momentum is not None:
                group["betas"] = (momentum, *group["betas"][1:])
        return lr


@dataclass(frozen=True)
class OneCycle(Schedule):
    """One cycle (Smith & Topin 2018) with cosine annealing in two phases, as in fastai.

    The rate rises from ``lr_max / div_factor`` to ``lr_max`` over the first ``pct_start`` of the iterations
    and falls to ``lr_max / div_factor / 1e4`` over the rest; the momentum goes from ``moms[0]`` to
    ``moms[1]`` and back.
    """

    lr_max: float
    moms: tuple[float, float]
    div_factor: float
    pct_start: float
    total_steps: int

    def lr(self, iteration: int) -> float:
        low = self.lr_max / self.div_factor
        return self._two_arcs(iteration, low, self.lr_max, low / 1e4)

    def momentum(self, iteration: int) -> float:
        return self._two_arcs(iteration, self.moms[0], self.moms[1], self.moms[0])

    def _two_arcs(self, iteration: int, start: float, middle: float, end: float) -> float:
        peak = int(self.total_steps * self.pct_start)
        if iteration < peak:
            return cosine_arc(start, middle, iteration / peak)
        return cosine_arc(middle, end, (iteration - peak) / max(self.total_steps - peak, 1))


@dataclass(frozen=True)
class StepDecay(Schedule):
    """``base * decay ** (milestones passed)``, at least ``floor``; first a cosine rise from ``warmup_lr``."""

    base: float
    milestones: tuple[int, ...]
    decay: float
    floor: float
    warmup_steps: int = 0
    warmup_lr: float = 0.0

    def lr(self, iteration: int) -> float:
        if iteration < self.warmup_steps:
            return cosine_arc(self.warmup_lr, self.base, iteration / self.warmup_steps)
        factor = 1.0
        for milestone in self.milestones:
            factor *= self.decay if iteration >= milestone else 1.0
        return self.base * max(factor, self.floor / self.base)


def cosine_arc(start: float, end: float, part: float) -> float:
    """Half a cosine from ``start`` (part 0) to ``end`` (part 1); ``end`` for parts above 1."""
    return end + (start - end) / 2 * (math.cos(math.pi * min(part, 1.0)) + 1)


def build_scheduler(
    optimizer: torch.optim.Optimizer, total_steps: int, steps_per_epoch: int, optim_cfg: Mapping[str, Any]
) -> Schedule:
    """Build the schedule of ``optim_cfg`` over ``total_steps`` iterations, and set the first rate."""
    schedule = (
        _one_cycle(total_steps, optim_cfg)
        if optim_cfg["OPTIMIZER"] == "adam_onecycle"
        else _step_decay(steps_per_epoch, optim_cfg)
    )
    schedule.apply(optimizer, 0)
    return schedule


def _one_cycle(total_steps: int, cfg: Mapping[str, Any]) -> Schedule:
    moms = (float(cfg["MOMS"][0]), float(cfg["MOMS"][1]))
    return OneCycle(cfg["LR"], moms, cfg["DIV_FACTOR"], cfg["PCT_START"], total_steps)


def _step_decay(steps_per_epoch: int, cfg: Mapping[str, Any]) -> Schedule:
    milestones = tuple(int(epoch * steps_per_epoch) for epoch in cfg["DECAY_STEP_LIST"])
    warmup = int(cfg.get("WARMUP_EPOCH", 1) * steps_per_epoch) if cfg.get("LR_WARMUP", False) else 0
    start = cfg["LR"] / cfg.get("DIV_FACTOR", 10)
    return StepDecay(cfg["LR"], milestones, cfg["LR_DECAY"], cfg["LR_CLIP"], warmup, start)
