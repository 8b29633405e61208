"""Overhead of a freeze in a training step, against a model that was put into the same state by hand."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from pcdet_freeze.bench.timing import Rounds, Spread, interleave, timed
from pcdet_freeze.bench.variants import contender, settle_statistics
from pcdet_freeze.engine.hooks.base import Hook
from pcdet_freeze.engine.trainer import Batch
from pcdet_freeze.freezing import FreezePlan, freeze, frozen
from pcdet_freeze.freezing.reapply_hook import reapply_pre_hook

BY_HAND, FROZEN = "by hand", "frozen"
REPEAT = 50


def measure_freeze_overhead(model: nn.Module, cfg: Any, batch: Batch, rounds: int) -> list[dict[str, Any]]:
    """Return the rows ``by hand``, ``frozen`` and ``overhead``.

    The first two are whole steps, with the losses of the first two steps. They differ by less than two runs
    of one step do, so ``overhead`` times separately what a step of the frozen model does in addition:
    ``model.train()``, the forward pre-hook, and the calls of the norm layers (on single values, so that
    nothing else counts). Its ``time_ratio`` is 1 + (sum of the differences) / (seconds of a step by hand).
    """
    start = copy.deepcopy(model)
    settle_statistics(start, batch)
    plan = FreezePlan.from_cfg(cfg)
    with frozen(start, plan) as handle:
        names = handle.norm_layers()
    models = {BY_HAND: start, FROZEN: copy.deepcopy(start)}
    prepare = {BY_HAND: _by_hand, FROZEN: _frozen}
    both = {n: contender(n, models[n], cfg, batch, prepare[n]) for n in models}
    device = both[FROZEN].trainer.device
    losses = {name: [one.step(), one.step()] for name, one in both.items()}
    seconds = interleave({name: one.step for name, one in both.items()}, rounds, device)
    rows = [{"variant": name, **timed(seconds, name, BY_HAND), "loss": losses[name]} for name in both]
    parts = _parts(models, names, max(rounds, 20), device)
    return [*rows, _overhead(parts, Spread.of(seconds[BY_HAND]).median)]


def _by_hand(model: nn.Module, cfg: Any) -> list[Hook]:
    """Set requires_grad=False, and norm layers to eval mode with a ``train()`` that does nothing."""
    plan = FreezePlan.from_cfg(cfg)
    with frozen(model, plan) as handle:
        names, parameters = handle.norm_layers(), handle.parameters()
    for parameter in parameters:
        parameter.requires_grad_(False)
    for name in names:
        layer: Any = model.get_submodule(name).eval()
        layer.train = lambda mode=True, layer=layer: layer
    return []


def _frozen(model: nn.Module, cfg: Any) -> list[Hook]:
    freeze(model, FreezePlan.from_cfg(cfg))
    return []


def _parts(
    models: dict[str, nn.Module], names: tuple[str, ...], rounds: int, device: torch.device
) -> dict[str, float]:
    """Additional seconds of a step of the frozen model, by cause."""

    def layers(model: nn.Module) -> None:
        with torch.no_grad():
            for layer, value in inputs[id(model)]:
                layer(value)

    inputs = {id(m): [_with_input(m.get_submodule(name)) for name in names] for m in models.values()}
    train = {name: model.train for name, model in models.items()}
    norm = {name: (lambda model=model: layers(model)) for name, model in models.items()}
    hook = {FROZEN: lambda: reapply_pre_hook(models[FROZEN], ())}
    return {
        "train_call_seconds": _more(interleave(train, rounds, device, REPEAT)),
        "norm_layers_seconds": _more(interleave(norm, rounds, device, REPEAT)),
        "pre_hook_seconds": Spread.of(interleave(hook, rounds, device, REPEAT)[FROZEN]).median,
    }


def _more(seconds: Rounds) -> float:
    differences = [frozen - hand for frozen, hand in zip(seconds[FROZEN], seconds[BY_HAND], strict=True)]
    return Spread.of(differences).median


def _with_input(layer: nn.Module) -> tuple[nn.Module, torch.Tensor]:
    """A norm layer, and an input (1, C[, 1...]) with one value a channel."""
    spatial = {"BatchNorm2d": 2, "BatchNorm3d": 3}.get(type(layer).__name__, 0)
    some: Any = next(tensor for tensor in layer.buffers() if tensor.dim() == 1)
    return layer, some.new_zeros((1, len(some), *[1] * spatial))


def _overhead(parts: dict[str, float], step: float) -> dict[str, Any]:
    more = sum(parts.values())
    return {"variant": "overhead", "time_ratio": 1 + more / step, "seconds": more, **parts}
