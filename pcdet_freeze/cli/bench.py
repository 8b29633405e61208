"""The command ``bench``; its flags and help: ``arguments/bench.py``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from typing import Any

from torch import nn

from pcdet_freeze import bench
from pcdet_freeze.bench import tables
from pcdet_freeze.bench.baselines import baselines
from pcdet_freeze.bench.random_scenes import sizes_of
from pcdet_freeze.bench.subject import Subject, build_subject, subject_of_frames
from pcdet_freeze.bench.timing import threads
from pcdet_freeze.bench.variants import check_variants
from pcdet_freeze.bench.whole_runs import training_tables
from pcdet_freeze.cli.arguments.bench import DEFAULT_CFG, FULL, GRIDS, STDOUT
from pcdet_freeze.cli.common.json_file import require_writable, write_json
from pcdet_freeze.config import cfg_from_list, cfg_from_yaml_file
from pcdet_freeze.errors import ConfigError
from pcdet_freeze.evaluation import table
from pcdet_freeze.freezing import FreezePlan

DEFAULT_CFGS = {"baselines": "synthetic_models/stage3_lane.yaml"}
"""comparison -> packaged config, where it is not DEFAULT_CFG"""
Row = dict[str, Any]


def run(args: argparse.Namespace) -> int:
    """Measure, print the table, write the JSON; returns 0. Raises PCDetFreezeError."""
    full = args.grid == "full"  # its steps take seconds: these rounds end within ten minutes
    args.rounds = (5 if full else 7) if args.rounds is None else args.rounds
    args.variants = args.variants or ",".join(FULL if full else bench.BUILT)
    for name in ("rounds", "threads", "batch_size"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ConfigError(f"--{name} must be at least 1; got {getattr(args, name)}")
    if args.json not in (None, STDOUT):
        require_writable(args.json, "--json")  # before minutes of measuring
    if args.workers < 0:
        raise ConfigError(f"--workers must be at least 0; got {args.workers}")
    measure, text_of = COMPARISONS[args.what]
    shown = sys.stderr if args.json == STDOUT else sys.stdout
    with threads(args.threads), redirect_stdout(shown):
        rows = measure(args)
        print(text_of(rows))
    if args.json == STDOUT:
        print(json.dumps(rows, indent=2))
    elif args.json is not None:
        write_json(args.json, rows)
    return 0


def config_of(args: argparse.Namespace) -> Any:
    """The config file with what the command line changes."""
    cfg = cfg_from_yaml_file(args.cfg_file or DEFAULT_CFGS.get(args.what, DEFAULT_CFG))
    args.cfg = cfg
    if args.grid is not None:
        _set_grid(cfg, GRIDS[args.grid])
    cfg_from_list(args.set_cfgs, cfg)
    if args.points is not None:
        scenes = cfg.DATA_CONFIG.get("RANDOM_SCENES") or {}
        cfg.DATA_CONFIG["RANDOM_SCENES"] = {**scenes, "POINTS": args.points}
    if args.freeze is not None:
        cfg_from_list(["MODEL.NOT_TRAIN_IN_MULTI_TASK", args.freeze], cfg)
    return cfg


def _set_grid(cfg: Any, side: float) -> None:
    """Pillars of ``side`` metres in the config; their height stays."""
    steps = [step for step in cfg.DATA_CONFIG.get("DATA_PROCESSOR") or [] if "VOXEL_SIZE" in step]
    if not steps or steps[0]["VOXEL_SIZE"][2] < 1:
        raise ConfigError(
            "--grid sets the VOXEL_SIZE of pillars, but this config has none; use --set instead"
        )
    for step in steps:
        step["VOXEL_SIZE"] = [side, side, step["VOXEL_SIZE"][2]]


def subject_of(args: argparse.Namespace) -> Subject:
    """Build what is measured: random weights and random scenes, both from a fixed seed."""
    cfg = config_of(args)
    plan = FreezePlan.from_cfg(cfg)
    subject = build_subject(cfg, args.device, args.batch_size or cfg.OPTIMIZATION.BATCH_SIZE_PER_GPU)
    print(f"freeze: {', '.join(plan.entries) or 'nothing'}\n", flush=True)
    return subject


def _step(args: argparse.Namespace) -> list[Row]:
    asked = [name.strip() for name in f"{args.variants},{args.against}".split(",")]
    names = check_variants([name for name in asked if name])
    subject = (
        subject_of_frames(config_of(args), args.device, args.batch_size)
        if args.own_frames
        else subject_of(args)
    )
    return bench.compare_steps(
        bench.build_contenders(subject.model, subject.cfg, subject.batch, names), args.rounds
    )


def _hold(args: argparse.Namespace) -> list[Row]:
    subject = subject_of(args)
    return bench.measure_freeze_overhead(subject.model, subject.cfg, subject.batch, args.rounds)


def _guards(args: argparse.Namespace) -> list[Row]:
    subject = build_subject(config_of(args), args.device, args.batch_size or 1)
    return bench.measure_guard_cost(subject.model, subject.cfg, subject.batch, args.rounds)


def _certificate(args: argparse.Namespace) -> list[Row]:
    return bench.time_certificate(args.rounds)


def _loading(args: argparse.Namespace) -> list[Row]:
    cfg = config_of(args)
    size = args.batch_size or cfg.OPTIMIZATION.BATCH_SIZE_PER_GPU
    return bench.measure_data_loading(cfg, sizes_of(cfg.MODEL), size, args.workers, args.rounds)


def _operators(args: argparse.Namespace) -> list[Row]:
    subject = subject_of(args)
    head: Any = getattr(subject.model, "dense_head", None)
    return bench.measure_operators(head, subject.batch["gt_boxes"], args.rounds)


def _scaling(args: argparse.Namespace) -> list[Row]:
    cfg = config_of(args)
    if not FreezePlan.from_cfg(cfg):
        raise ConfigError(
            "--what scaling needs a list of what to freeze: give --freeze vfe,backbone_2d.blocks"
        )

    def build(own: Any, frames: int) -> tuple[nn.Module, dict[str, Any]]:
        subject = build_subject(own, args.device, frames)
        return subject.model, subject.batch

    return bench.measure_scaling(
        cfg, build, args.batch_size or cfg.OPTIMIZATION.BATCH_SIZE_PER_GPU, args.rounds
    )


def _whole_training(args: argparse.Namespace) -> bench.WholeTraining:
    """The training that is measured, in a process of its own."""
    frozen = FreezePlan.from_cfg(config_of(args)).entries  # faults of the config are found here
    given = [] if args.freeze is None else ["MODEL.NOT_TRAIN_IN_MULTI_TASK", args.freeze]
    if frozen and args.pretrained_model is None:
        given += ["MODEL.FREEZE.ALLOW_RANDOM", "True"]
    options = {
        "max_iters": args.iterations,
        "workers": args.workers,
        "batch_size": args.batch_size,
        "pretrained_model": args.pretrained_model,
        "device": args.device,
    }
    words = [*(args.set_cfgs or []), *given]
    return bench.WholeTraining(args.cfg_file or DEFAULT_CFG, words, options, args.threads)


def _evaluation(args: argparse.Namespace) -> list[Row]:
    return bench.measure_evaluation(config_of(args).MODEL.POST_PROCESSING, args.rounds)


def _training(args: argparse.Namespace) -> list[Row]:
    return bench.measure_parts(_whole_training(args))


def _allocator(args: argparse.Namespace) -> list[Row]:
    return bench.measure_allocator(_whole_training(args), args.rounds)


def _roofline(args: argparse.Namespace) -> list[Row]:
    cfg = config_of(args)
    names = [name for name in args.variants.split(",") if name not in ("cached", "compile")]

    def contenders(frames: int) -> list[bench.Contender]:
        subject = build_subject(cfg, args.device, frames)
        return bench.build_contenders(subject.model, subject.cfg, subject.batch, names)

    return bench.roofline(contenders)


def _empty_space(args: argparse.Namespace) -> list[Row]:
    subject = subject_of_frames(config_of(args), args.device, args.batch_size)
    return bench.measure_empty_space(subject.model, subject.batch)


def _cache_size(args: argparse.Namespace) -> list[Row]:
    subject = subject_of_frames(config_of(args), args.device, args.batch_size)
    return bench.measure_cache_size(subject.model, subject.batch, args.rounds)


def _baselines(args: argparse.Namespace) -> list[Row]:
    return [baselines(config_of(args), args.scenes)]


def _baseline_table(rows: Sequence[Row]) -> str:
    return table({}, rows[0])


COMPARISONS: dict[str, tuple[Callable[[argparse.Namespace], list[Row]], Callable[[Sequence[Row]], str]]] = {
    "allocator": (_allocator, training_tables.allocator_table),
    "baselines": (_baselines, _baseline_table),
    "step": (_step, tables.step_table),
    "cache_size": (_cache_size, tables.cache_size_table),
    "empty_space": (_empty_space, tables.empty_space_table),
    "hold": (_hold, tables.overhead_table),
    "guards": (_guards, tables.guard_table),
    "certificate": (_certificate, tables.certificate_table),
    "loading": (_loading, tables.loading_table),
    "evaluation": (_evaluation, training_tables.seconds_table),
    "operators": (_operators, tables.operator_table),
    "scaling": (_scaling, tables.scaling_table),
    "training": (_training, training_tables.parts_table),
    "roofline": (_roofline, tables.roofline_table),
}
