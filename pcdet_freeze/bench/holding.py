"""What holding costs a step: a freeze against a model that was brought into the same state by hand."""

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

BY_HAND, HELD = "by hand", "held"
REPEAT = 50


def holding_cost(model: nn.Module, cfg: Any, batch: Batch, rounds: int) -> list[dict[str, Any]]:
    """Rows for ``by hand``, ``held`` and ``overhead``.

    The first two are whole steps, with the losses of their first two. They differ by far less than two runs
    of the same step do, so ``overhead`` times by itself all that a held step does beyond the other:
    ``model.train()``, the forward pre-hook, and the norm layers' own calls (on single values, so that nothing
    else counts). Its ``time_ratio`` is 1 + (sum of the differences) / (a step by hand).
    """
    start = copy.deepcopy(model)
    settle_statistics(start, batch)
    plan = FreezePlan.from_cfg(cfg)
    with frozen(start, plan) as handle:
        names = handle.norm_layers()
    models = {BY_HAND: start, HELD: copy.deepcopy(start)}
    prepare = {BY_HAND: _by_hand, HELD: _held}
    both = {n: contender(n, models[n], cfg, batch, prepare[n]) for n in models}
    device = both[HELD].trainer.device
    losses = {name: [one.step(), one.step()] for name, one in both.items()}
    seconds = interleave({name: one.step for name, one in both.items()}, rounds, device)
    rows = [{"variant": name, **timed(seconds, name, BY_HAND), "loss": losses[name]} for name in both]
    parts = _parts(models, names, max(rounds, 20), device)
    return [*rows, _overhead(parts, Spread.of(seconds[BY_HAND]).median)]


def _by_hand(model: nn.Module, cfg: Any) -> list[Hook]:
    """The same parameters without gradient; the same norm layers in eval, deaf to ``train()``."""
    plan = FreezePlan.from_cfg(cfg)
    with frozen(model, plan) as handle:
        names, parameters = handle.norm_layers(), handle.parameters()
    for parameter in parameters:
        parameter.requires_grad_(False)
    for name in names:
        layer: Any = model.get_submodule(name).eval()
        layer.train = lambda mode=True, layer=layer: layer
    return []


def _held(model: nn.Module, cfg: Any) -> list[Hook]:
    freeze(model, FreezePlan.from_cfg(cfg))
    return []


def _parts(
    models: dict[str, nn.Module], names: tuple[str, ...], rounds: int, device: torch.device
) -> dict[str, float]:
    """Seconds that a held step needs more, by what needs them."""

    def layers(model: nn.Module) -> None:
        with torch.no_grad():
            for layer, value in inputs[id(model)]:
                layer(value)

    inputs = {id(m): [_with_input(m.get_submodule(name)) for name in names] for m in models.values()}
    train = {name: model.train for name, model in models.items()}
    norm = {name: (lambda model=model: layers(model)) for name, model in models.items()}
    hook = {HELD: lambda: reapply_pre_hook(models[HELD], ())}
    return {
        "train_call_seconds": _more(interleave(train, rounds, device, REPEAT)),
        "norm_layers_seconds": _more(interleave(norm, rounds, device, REPEAT)),
        "pre_hook_seconds": Spread.of(interleave(hook, rounds, device, REPEAT)[HELD]).median,
    }


def _more(seconds: Rounds) -> float:
    differences = [held - hand for held, hand in zip(seconds[HELD], seconds[BY_HAND], strict=True)]
    return Spread.of(differences).median


def _with_input(layer: nn.Module) -> tuple[nn.Module, torch.Tensor]:
    """A norm layer, and single values (1, C[, 1...]) of its channels."""
    spatial = {"BatchNorm2d": 2, "BatchNorm3d": 3}.get(type(layer).__name__, 0)
    some: Any = next(tensor for tensor in layer.buffers() if tensor.dim() == 1)
    return layer, some.new_zeros((1, len(some), *[1] * spatial))


def _overhead(parts: dict[str, float], step: float) -> dict[str, Any]:
    more = sum(parts.values())
    return {"variant": "overhead", "time_ratio": 1 + more / step, "seconds": more, **parts}
