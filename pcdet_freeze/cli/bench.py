"""Measure what freezing saves and costs in a training step: time, FLOPs, memory, checkpoint size."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from torch import nn

from pcdet_freeze import bench
from pcdet_freeze.bench import tables
from pcdet_freeze.bench.baselines import baselines
from pcdet_freeze.bench.other_packages import AGAINST
from pcdet_freeze.bench.random_scenes import sizes_of
from pcdet_freeze.bench.subject import Subject, build_subject, subject_of_frames
from pcdet_freeze.bench.timing import threads
from pcdet_freeze.bench.variants import check_variants
from pcdet_freeze.bench.whole_runs import training_tables
from pcdet_freeze.cli.common.flags import CFG_HELP, add_set, whole
from pcdet_freeze.cli.common.json_file import require_writable, write_json
from pcdet_freeze.config import cfg_from_list, cfg_from_yaml_file
from pcdet_freeze.errors import ConfigError
from pcdet_freeze.evaluation import table
from pcdet_freeze.freezing import FreezePlan

DEFAULT_CFG = "bench/pointpillar.yaml"
DEFAULT_CFGS = {"baselines": "synthetic_models/stage3_lane.yaml"}
"""comparison -> packaged config, where it is not DEFAULT_CFG"""
STDOUT = Path("-")
GRIDS = {"full": 0.16, "half": 0.32}
"""name -> metres along the sides of a pillar"""
FULL = ("none", "unfrozen", "bn_only", "requires_grad", "exact", "contiguous", "bf16_prefix", "cached")
"""variants that are measured by default on the full grid"""
Row = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to measure, on which model, how often."""
    parser.add_argument("--what", choices=sorted(COMPARISONS), default="step",
                        help="step: variants of a training step; hold: cost of eval-mode norm layers; "
                        "guards: cost of what docs/reliability.md promises; "
                        "certificate: its time for 60 M parameters; loading: frames a second of "
                        "the loader processes; operators: anchor targets and rotated IoU; scaling: more "
                        "or less frozen, more or fewer points, boxes and frames; baselines: segmentation and "
                        "lanes without a network; training: where the time of a whole training goes; "
                        "allocator: whole trainings with and without freed memory kept; evaluation: KITTI "
                        "AP of stored detections, post-processing of a frame; roofline: frames a second on "
                        "a GPU at best; empty_space: cells that no pillar reaches, and cache_size: bytes of "
                        "a cached frame, both on the test frames of the config")  # fmt: skip
    parser.add_argument("--cfg_file", help=f"{CFG_HELP}; default: {DEFAULT_CFG}")
    parser.add_argument(
        "--freeze",
        metavar="LIST",
        help="comma-separated modules to freeze; overrides MODEL.NOT_TRAIN_IN_MULTI_TASK",
    )
    parser.add_argument("--grid", choices=sorted(GRIDS), help="pillars of KITTI's size (full), or twice as "
                        "wide (half); default: those of the config")  # fmt: skip
    parser.add_argument("--variants", metavar="a,b",
                        help=f"which of {', '.join(bench.BUILT)}; `none` is always included. Default: all, "
                        f"and with --grid full {', '.join(FULL)}")  # fmt: skip
    parser.add_argument("--against", default="", metavar="a,b",
                        help=f"also what other packages call freezing: {', '.join(AGAINST)}")  # fmt: skip
    parser.add_argument("--rounds", type=int, help="interleaved rounds; default: 7, with --grid full 5")
    parser.add_argument("--batch_size", type=int, help="frames; default: OPTIMIZATION.BATCH_SIZE_PER_GPU")
    parser.add_argument("--points", type=whole(1), help="points in a random scene; default: 27500, or those "
                        "of DATA_CONFIG.RANDOM_SCENES")  # fmt: skip
    parser.add_argument("--own_frames", action="store_true", help="the first test frames of the config's "
                        "data set, with their labels, in place of random scenes (--what step)")  # fmt: skip
    parser.add_argument("--workers", type=int, default=2, help="processes that load data (--what loading)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch's operators")
    parser.add_argument("--json", nargs="?", type=Path, const=STDOUT, metavar="FILE",
                        help="the rows as data, to FILE; without one to the standard output")  # fmt: skip
    parser.add_argument("--iterations", type=whole(1), default=60,
                        help="length of a whole training (--what training, allocator)")  # fmt: skip
    parser.add_argument("--pretrained_model",
                        help="checkpoint that it starts from, where frozen modules need one")  # fmt: skip
    parser.add_argument("--scenes", type=whole(1), default=40,
                        help="training frames that --what baselines is fitted on")  # fmt: skip
    add_set(parser, last=False)


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
