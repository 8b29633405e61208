"""Time of a step against the number of frozen parts, points, boxes and frames."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from pcdet_freeze.bench.other_packages import names_of
from pcdet_freeze.bench.random_scenes import BOXES, POINTS
from pcdet_freeze.bench.timing import interleave, timed
from pcdet_freeze.bench.variants import BUILT, Contender, contender, settle_statistics
from pcdet_freeze.engine.trainer import Batch

Build = Callable[[Any, int], tuple[nn.Module, Batch]]
"""config, frames in a batch -> model and batch"""
LIST = "NOT_TRAIN_IN_MULTI_TASK"
NONE, EXACT = "none", "exact"


def measure_scaling(cfg: Any, build: Build, batch_size: int, rounds: int) -> list[dict[str, Any]]:
    """Return rows of ``none`` and ``exact`` for each value of each axis.

    ``axis`` is 'frozen' (the first ``value`` parts of the list), 'points' or 'boxes' (in a frame), or
    'frames' (in a batch); ``time_ratio`` is to ``none`` at the same value; ``trainable`` counts parameters.
    """
    rows = _growing_list(cfg, *build(cfg, batch_size), rounds)
    for axis, value, own, frames in _variations(cfg, batch_size):
        model, batch = build(own, frames)
        settle_statistics(model, batch)
        both = [_contender(name, model, own, batch) for name in (NONE, EXACT)]
        rows += [{"axis": axis, "value": value, **row} for row in _timed(both, rounds)]
    return rows


def _variations(cfg: Any, batch_size: int) -> Iterator[tuple[str, int, Any, int]]:
    """Yield (axis, value, config with that value, frames)."""
    scenes = cfg.DATA_CONFIG.get("RANDOM_SCENES") or {}
    points, boxes = int(scenes.get("POINTS", POINTS)), int(scenes.get("BOXES", BOXES))
    for axis, key, values in (
        ("points", "POINTS", (points // 4, points // 2, points, 2 * points)),
        ("boxes", "BOXES", (boxes // 4, boxes, 4 * boxes)),
    ):
        for value in sorted({max(value, 1) for value in values}):
            own = copy.deepcopy(cfg)
            own.DATA_CONFIG.RANDOM_SCENES = {**scenes, key: value}
            yield axis, value, own, batch_size
    for frames in sorted({1, batch_size, 2 * batch_size}):
        yield "frames", frames, cfg, frames


def _growing_list(cfg: Any, model: nn.Module, batch: Batch, rounds: int) -> list[dict[str, Any]]:
    parts = parts_of(model, cfg)
    settle_statistics(model, batch)
    made = [_contender(NONE, model, cfg, batch)]
    for count in range(1, len(parts) + 1):
        own = copy.deepcopy(cfg)
        own.MODEL[LIST] = parts[:count]
        made.append(_contender(EXACT, model, own, batch))
    rows = _timed(made, rounds)
    return [
        {"axis": "frozen", "value": count, "list": parts[:count], **row} for count, row in enumerate(rows)
    ]


def parts_of(model: nn.Module, cfg: Any) -> list[str]:
    """Paths that the list names, in order; of a ModuleList or Sequential, the paths of its items."""
    found: list[str] = []
    for name in names_of(model, cfg):
        module = model.get_submodule(name)
        items = list(module.named_children()) if isinstance(module, nn.ModuleList | nn.Sequential) else []
        found += [f"{name}.{item}" for item, _ in items] or [name]
    return found


def _contender(name: str, model: nn.Module, cfg: Any, batch: Batch) -> Contender:
    return contender(name, copy.deepcopy(model), cfg, batch, BUILT[name])


def _timed(contenders: list[Contender], rounds: int) -> list[dict[str, Any]]:
    """One row for each contender, in order; ratios are to the first."""
    tasks = {str(index): one.step for index, one in enumerate(contenders)}
    for step in tasks.values():
        step()
    seconds = interleave(tasks, rounds, contenders[0].trainer.device)
    return [
        {"variant": one.name, "trainable": _trainable(one), **timed(seconds, str(index), "0")}
        for index, one in enumerate(contenders)
    ]


def _trainable(one: Contender) -> int:
    return sum(p.numel() for p in one.trainer.model.parameters() if p.requires_grad)
