"""The command ``suggest``; its flags and help: ``arguments/suggest.py``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from typing import Any

from torch import nn

from pcdet_freeze import bench
from pcdet_freeze.bench.subject import build_subject
from pcdet_freeze.bench.timing import threads
from pcdet_freeze.cli.common.flags import cfg_of
from pcdet_freeze.datasets.file_formats.point_files import PointFiles
from pcdet_freeze.freezing.data_flow.suggestion import Suggestion, suggest, without
from pcdet_freeze.freezing.entries.paths import find
from pcdet_freeze.freezing.plan import KEY
from pcdet_freeze.models import build_network
from pcdet_freeze.utils.distributed import pick_device
from pcdet_freeze.utils.terminal import columns, paint, wrap

VARIANTS = ("none", "exact")


def run(args: argparse.Namespace) -> int:
    """Print the list and what it means; returns the exit code."""
    cfg = cfg_of(args)
    pick_device(args.device)  # raises here, and not after the model
    frames = PointFiles(cfg.DATA_CONFIG, cfg.CLASS_NAMES, [])  # of which the model needs the labels' form
    model = build_network(cfg.MODEL, len(cfg.CLASS_NAMES), frames)
    found = suggest(model, args.keep)
    needed_by = {entry: without(model, found, entry) for entry in found.entries}
    cost = None
    if args.rounds and found.losses:
        cost = _cost(cfg, found, args)
    if args.json:
        print(json.dumps({**asdict(found), "needed_by": needed_by, "cost": cost}, indent=1))
    else:
        print(text_of(model, found, needed_by, cost))
    return 0 if found.losses else 1


def _cost(cfg: Any, found: Suggestion, args: argparse.Namespace) -> float:
    """Time of a training step with the list, relative to one that trains everything."""
    cfg.MODEL[KEY] = list(found.entries)
    with threads(1), redirect_stdout(sys.stderr):  # the standard output may be JSON
        subject = build_subject(cfg, args.device, args.batch_size or cfg.OPTIMIZATION.BATCH_SIZE_PER_GPU)
        contenders = bench.build_contenders(subject.model, cfg, subject.batch, VARIANTS)
        rows = bench.compare_steps(contenders, args.rounds)
    return float(next(row["time_ratio"] for row in rows if row["variant"] == "exact"))


def text_of(
    model: nn.Module, found: Suggestion, needed_by: Mapping[str, Sequence[str]], cost: float | None
) -> str:
    """The line for the YAML file, what trains, what it costs, and what each entry is needed for."""
    limit = columns()
    lines = [
        "MODEL:",
        *wrap(found.yaml(), limit, " " * 8, " " * 4),
        "",
    ]  # which is valid YAML in several lines
    lines.append(f"keeps: {' and '.join(found.keep)}, bit for bit")
    if not found.certain:
        note = "note: a module does not declare what it reads and writes; all before it is in the list"
        lines += wrap(note, limit, "  ", "")
    lines += wrap(f"trains: {', '.join(_sized(model, found.trains)) or 'nothing'}", limit, "  ", "")
    if not found.losses:
        lines.append(
            paint("error: no head is left to train; keep fewer, or add the head of a new task", "red")
        )
    if cost is not None:
        lines.append(f"time of a training step: {cost:.2f} of one that trains everything")
    width = max(map(len, needed_by), default=0)
    lines += ["", "without one entry, these outputs change:"]
    for entry, heads in needed_by.items():
        lines += wrap(", ".join(heads), limit, " " * (width + 4), f"  {entry:<{width}}  ")
    if found.losses:
        lines += ["", *wrap(f"with one more: {_more(found)}", limit, "  ", "")]
    return "\n".join(lines)


def _more(found: Suggestion) -> str:
    others = [part for part in found.trains if part not in found.losses]
    if others:
        return f"{others[0]} does not train for {', '.join(found.losses)} either"
    return f"{found.losses[0]} gives no loss"


def _sized(model: nn.Module, parts: Sequence[str]) -> list[str]:
    """Each part with its number of parameters."""
    found = [(part, find(model, part.partition(" ")[0])) for part in parts]
    return [
        f"{part} ({sum(p.numel() for p in place[0].parameters()):,})"
        for part, place in found
        if place is not None
    ]
