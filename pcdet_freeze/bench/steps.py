"""Compare a training step of each variant: exact figures, then interleaved rounds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from pcdet_freeze.bench import exact_figures
from pcdet_freeze.bench.timing import Rounds, Spread, interleave, ratios, timed
from pcdet_freeze.bench.variants import RAGGED, Contender
from pcdet_freeze.utils.memory import optimizer_tensors, peak_bytes
from pcdet_freeze.utils.rng import set_seed

Row = dict[str, Any]
RATIOS = {
    "flops_ratio": "flops",
    "saved_bytes_ratio": "saved_bytes",
    "peak_memory_ratio": "peak_bytes",
    "checkpoint_ratio": "checkpoint_bytes",
    "optimizer_ratio": "optimizer_bytes",
}


@dataclass(frozen=True)
class Figures:
    """Exact figures of a variant's step; they are equal in every run."""

    loss: float
    """of the first step"""
    trainable: int
    """number of trainable parameters"""
    flops: int
    saved_bytes: int
    peak_bytes: int
    checkpoint_bytes: int
    optimizer_bytes: int


def figures_of(contender: Contender) -> Figures:
    """Take four steps: the first creates the optimizer state, the others are counted."""
    set_seed(0)
    loss = contender.step()
    with exact_figures.uncompiled():
        return _counted(contender, loss)


def _counted(contender: Contender, loss: float) -> Figures:
    trainer, batch = contender.trainer, contender.batch
    fixed = [*trainer.model.parameters(), *trainer.model.buffers(), *batch.values()]
    flops = exact_figures.count_flops(contender.step)
    saved = exact_figures.count_saved_bytes(contender.step, fixed)
    # gradients of the previous step do not belong to this one
    trainer.optimizer.zero_grad(set_to_none=True)
    own = [*fixed, *optimizer_tensors(trainer.optimizer)]
    return Figures(
        loss,
        sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        flops,
        saved,
        peak_bytes(contender.step, own, trainer.device),
        exact_figures.checkpoint_bytes(trainer),
        exact_figures.optimizer_bytes(trainer.optimizer),
    )


def compare_steps(contenders: Sequence[Contender], rounds: int) -> list[Row]:
    """Return one row for each contender, in order; ratios are to the first.

    ``time_ratio`` is the median over the rounds of the ratio to the first variant in the same round;
    ``seconds`` is the median of a step. Both have quartiles. ``time_ratios`` are the ratios to ``bn_only``
    and to the fastest variant in which every parameter is trainable. Where ``none_ragged`` is among the
    variants, ``to_ragged`` holds all ratios to it.

    A variant that should run compiled or from a cache, and did not in a timed step, has no times; its
    ``untimed`` gives the reason.
    """
    figures = {contender.name: figures_of(contender) for contender in contenders}
    base, device = contenders[0].name, contenders[0].trainer.device
    for contender in contenders:
        contender.step()  # warm up: the counted steps ran uncompiled
    plain = {contender.name: contender.plain_calls() for contender in contenders}
    seconds = interleave({contender.name: contender.step for contender in contenders}, rounds, device)
    untimed = {contender.name: _untimed(contender, plain[contender.name]) for contender in contenders}
    full = [name for name, own in figures.items() if own.trainable == figures[base].trainable]
    fastest = min(full, key=lambda name: Spread.of(seconds[name]).median)
    others = dict.fromkeys([fastest, *(["bn_only"] if "bn_only" in figures else [])])
    return [
        {
            "variant": name,
            **_times(seconds, name, base, others, untimed[name]),
            **_to_ragged(seconds, name, figures, untimed[name]),
            "fastest_unfrozen": fastest,
            **_ratios(own, figures[base]),
            **asdict(own),
            "device": device.type,
            "threads": torch.get_num_threads(),
        }
        for name, own in figures.items()
    ]


def _untimed(contender: Contender, before: int) -> str:
    """Why the timed steps did not run as the variant asks; empty where they did."""
    fell_back = contender.plain_calls() - before
    asked = contender.uncompiled() or contender.uncached()
    return asked or (f"{fell_back} calls ran uncompiled" if fell_back else "")


def _times(seconds: Rounds, name: str, base: str, others: Iterable[str], untimed: str) -> Row:
    found: Row = {
        **timed(seconds, name, base),
        "time_ratios": {other: ratios(seconds, name, other).median for other in others},
    }
    if not untimed:
        return found
    nothing: Row = {key: None for key in found if key != "rounds"}
    return {**found, **nothing, "untimed": untimed}


def _to_ragged(seconds: Rounds, name: str, figures: Mapping[str, Figures], untimed: str) -> Row:
    """Ratios of the variant ``name`` to an unfrozen step without padding."""
    if RAGGED not in figures:
        return {}
    times = {} if untimed else timed(seconds, name, RAGGED)
    return {"to_ragged": {**times, **_ratios(figures[name], figures[RAGGED])}}


def _ratios(own: Figures, base: Figures) -> dict[str, float]:
    return {ratio: _part(getattr(own, key), getattr(base, key)) for ratio, key in RATIOS.items()}


def _part(value: int, base: int) -> float:
    """``value / base``; 1 where both are 0 (optimizer state of SGD without momentum)."""
    return 1.0 if value == base else value / base
