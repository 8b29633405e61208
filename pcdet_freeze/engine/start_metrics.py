"""Metrics of the start of a run: those that are stored beside the pretrained checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pcdet_freeze.engine.checkpoint.io import epoch_of
from pcdet_freeze.engine.hooks.validation import BEST_FILE
from pcdet_freeze.report.record import FILE, read_plain

ADVICE = "OPTIMIZATION.EVALUATE_START: True evaluates it when the next run starts"
DECIDING = ("CLASS_NAMES", "EVALUATION", "DATA_CONFIG")
"""sections that metrics depend on"""
NO_MATTER = frozenset({"DATA_AUGMENTOR", "CACHE", "ON_BAD_FRAME", "TIMEOUT", "train"})
"""keys in them that concern the training data, or how frames are read"""


class StartMetrics(NamedTuple):
    """Metrics by name, and where they are from, or why there are none."""

    values: dict[str, float]
    source: str


def stored_metrics(pretrained: str | Path | None, cfg: Mapping[str, Any]) -> StartMetrics:
    """The metrics of a checkpoint that a training evaluated, where its test data are those of ``cfg``.

    A training writes them to ``eval/eval_with_train/epoch_N/<split>/result.json`` and its config to
    ``report.json``.
    """
    if pretrained is None:
        return StartMetrics({}, "Before: none, since the run began without a pretrained checkpoint.")
    path = Path(pretrained)
    run = path.resolve().parent.parent
    values = _result(run, _best_epoch(run) if path.name == BEST_FILE else epoch_of(path))
    if not values:
        return StartMetrics({}, f"Before: no metrics are stored beside {path}; {ADVICE}.")
    config = (read_plain(run / FILE) or {}).get("config")
    if not isinstance(config, dict):
        return StartMetrics(
            values, f"Before: stored beside {path}; whether its test data were the same is not recorded."
        )
    other = list(
        _differing({key: config.get(key) for key in DECIDING}, {key: cfg.get(key) for key in DECIDING})
    )
    if other:
        shown = ", ".join(other[:6]) + (" and others" if len(other) > 6 else "")
        return StartMetrics(
            {}, f"Before: the metrics stored beside {path} are of another data config ({shown}); {ADVICE}."
        )
    return StartMetrics(values, f"Before: the pretrained checkpoint {path}, evaluated by its own training.")


def _best_epoch(run: Path) -> int:
    """The epoch of ``checkpoint_best.pth``, as the finished run in ``run`` says; -1 where it does not."""
    best = (read_plain(run / "run.json") or {}).get("best")
    epoch = best.get("epoch") if isinstance(best, dict) else None
    return epoch if isinstance(epoch, int) else -1


def _result(run: Path, epoch: int) -> dict[str, float]:
    found = [
        read_plain(file) for file in sorted(run.glob(f"eval/eval_with_train/epoch_{epoch}/**/result.json"))
    ]
    return {
        str(key): float(value)
        for result in found
        for key, value in (result or {}).items()
        if isinstance(value, int | float)
    }


def _differing(then: Any, now: Any, above: str = "") -> Iterator[str]:
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys([*then, *now]):
            if key not in NO_MATTER:
                yield from _differing(then.get(key), now.get(key), f"{above}.{key}" if above else str(key))
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        for number, (a, b) in enumerate(zip(then, now, strict=True)):
            yield from _differing(a, b, f"{above}.{number}")
    elif then != now:
        yield above
