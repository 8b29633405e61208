"""The command ``three-stages``; its flags and help: ``arguments/three_stages.py``."""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from pcdet_freeze.cli.common.exit_code import INTERRUPTED
from pcdet_freeze.cli.common.heartbeat import Heartbeat
from pcdet_freeze.errors import PCDetFreezeError
from pcdet_freeze.evaluation.stage_table import stage_table
from pcdet_freeze.report.record import PAGE, load_record
from pcdet_freeze.report.stages_page import stages_page
from pcdet_freeze.utils.output_files import write_text

STAGES = {"1 detection": "stage1_detect", "2 segmentation": "stage2_segment", "3 lanes": "stage3_lane"}
DETECTION = ("dense_head", "pred_boxes", "pred_scores", "pred_labels")
QUICK = ["DATA_CONFIG.NUM_SCENES.train", "8", "DATA_CONFIG.NUM_SCENES.test", "4"]
LENGTHS = {"stage1_detect": 500, "stage2_segment": 380, "stage3_lane": 320}
"""iterations of each stage, of BATCH_SIZE scenes"""
BATCH_SIZE = 2
KEYS: dict[str, list[str]] = {
    "stage1_detect": [],
    "stage2_segment": ["MODEL.SEGMENT_HEAD.MAX_POINTS", "16384"],
    "stage3_lane": ["OPTIMIZATION.PCT_START", "0.2", "OPTIMIZATION.DIV_FACTOR", "4"],
}
"""config keys that make a stage short; they change its training, not its model"""
Figures = dict[str, Any]


class StepError(PCDetFreezeError):
    """A command that one of the steps needs has failed; its own message stands above."""


def run(args: argparse.Namespace) -> int:
    """Stages, control, verify, table; exit code 1 where the detector changed, or never could have."""
    out, begin, few = Path(args.output_dir).resolve(), time.monotonic(), QUICK if args.quick else []
    scenes = out / "scenes"
    for folder in (out / "synthetic_models", scenes):
        shutil.rmtree(folder, ignore_errors=True)
    few = [*few, "DATA_CONFIG.CACHE", str(scenes)]
    try:
        with Heartbeat() as heartbeat:
            columns, same, changed = _all_steps(out, few, args.quick, heartbeat)
    finally:
        shutil.rmtree(scenes, ignore_errors=True)

    verdict = ["", *("the same" if yes else "CHANGED" for yes in same[:2]), ""]
    lines = [stage_table(columns, [("the detector's outputs, bit for bit", verdict)])]
    lines += [f"4 iterations of stage 2 without the list: {'THE SAME' if same[2] else 'they change'}", ""]
    lines += [f"three-stages: {time.monotonic() - begin:.0f} s without installation"]
    figures = "\n".join(lines)
    print(f"\n{figures}\nreport: {_write_report(out, figures)}")
    found = args.quick or columns["1 detection"]["boxes"]
    return int(changed or same != [True, True, False] or not found)


def _write_report(out: Path, figures: str) -> Path:
    """One page with the table and the report of each stage."""
    records = [load_record(out / "synthetic_models" / cfg / "demo") for cfg in STAGES.values()]
    about = "Each stage trains one task, and freezes the tasks before it. Everything is in this file."
    write_text(out / PAGE, stages_page("Detection, then segmentation, then lanes", about, figures, records))
    return out / PAGE


def _all_steps(
    out: Path, keys: list[str], quick: bool, heartbeat: Heartbeat
) -> tuple[dict[str, Figures], list[bool], bool]:
    """Columns of the table; whether the detector of stage 2, stage 3, the control is that of stage 1; whether
    ``verify`` found a change."""
    done: dict[str, Figures] = {}
    for name, cfg in STAGES.items():
        heartbeat.begin(f"stage {name}")
        start = list(done.values())[-1]["ckpt"] if done else None
        length = ["--batch_size", str(BATCH_SIZE), "--max_iters", str(4 if quick else LENGTHS[cfg])]
        done[name] = train_stage(out, cfg, "demo", start, [*length, *set_words([*KEYS[cfg], *keys])])
    runs = list(done.values())
    heartbeat.begin("control and comparison")
    free = ["--batch_size", str(BATCH_SIZE), "--max_iters", "4", "--num_epochs_to_eval", "0", "--no_check"]
    free += set_words(["MODEL.NOT_TRAIN_IN_MULTI_TASK", "[]", *keys])
    control = _train(out, "stage2_segment", "control", runs[0]["ckpt"], free)
    # the config of stage 1 has the detector alone
    alone = evaluate_stage(out, STAGES["1 detection"], ["--pretrained_model", control], BATCH_SIZE, keys)
    changed = [step("verify", a["ckpt"], b["ckpt"], check=False) for a, b in pairwise(runs)]
    baselines = out / "baselines.json"
    step("bench", "--what", "baselines", "--cfg_file", path(STAGES["3 lanes"]), "--json", str(baselines),
         *set_words(keys))  # fmt: skip
    same = [figures["detector"] == runs[0]["detector"] for figures in (*runs[1:], alone)]
    return {**done, "no network": json.loads(baselines.read_text())[0]}, same, any(changed)


def step(name: str, *words: str, check: bool = True) -> int:
    """Print a command as a user would type it, run it in this process, and return its exit code.

    Raises StepError where it failed and ``check`` is set.
    """
    line = " ".join(f'"{word}"' if word[:1] in "[{" else word for word in (name, *words))
    print(f"\n$ pcdet-freeze {line}\n", flush=True)
    command = importlib.import_module(f"pcdet_freeze.cli.{name}")
    parser = argparse.ArgumentParser(prog=f"pcdet-freeze {name}")
    importlib.import_module(f"pcdet_freeze.cli.arguments.{name}").add_arguments(parser)
    code = int(command.run(parser.parse_args(words)))
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code and check:
        raise StepError(f"Every step must succeed, but `pcdet-freeze {name}` ended with exit code {code}.")
    return code


def path(cfg: str) -> str:
    """Name of the packaged config."""
    return f"synthetic_models/{cfg}.yaml"


def set_words(keys: list[str]) -> list[str]:
    """``--set KEY VALUE ...``, or nothing."""
    return ["--set", *keys] if keys else []


def train_stage(out: Path, cfg: str, tag: str, start: str | None, options: list[str]) -> Figures:
    """Train from the checkpoint ``start``; returns metrics, last checkpoint, digests of the detector."""
    ckpt = _train(out, cfg, tag, start, options)
    folder = out / "synthetic_models" / cfg / tag
    return json.loads((folder / "run.json").read_text()) | {"ckpt": ckpt} | _results(folder)


def _train(out: Path, cfg: str, tag: str, start: str | None, options: list[str]) -> str:
    """Train from the checkpoint ``start``; returns the last checkpoint."""
    given = ["--pretrained_model", start] if start else []
    step("train", "--cfg_file", path(cfg), "--output_dir", str(out), "--extra_tag", tag, "--fix_random_seed",
         "--workers", "1", "--logger_iter_interval", "10", "--no_savings", "--digest", *given,
         *options)  # fmt: skip
    checkpoints = (out / "synthetic_models" / cfg / tag).glob("ckpt/checkpoint_epoch_*.pth")
    return str(max(checkpoints, key=lambda file: file.stat().st_mtime))


def evaluate_stage(out: Path, cfg: str, weights: list[str], batch_size: int, few: list[str]) -> Figures:
    """The figures of ``train_stage`` for a checkpoint that is there; it took no iteration.

    Args:
        weights: ``--ckpt`` and the checkpoint, or ``--pretrained_model`` where only some tensors fit.
    """
    step("test", "--cfg_file", path(cfg), "--output_dir", str(out), "--extra_tag", "given", *weights,
         "--workers", "1", "--digest", "--batch_size", str(batch_size), *set_words(few))  # fmt: skip
    none = {"iterations": 0, "seconds_per_iteration": {"batch": 0.0}, "ckpt": weights[-1]}
    return none | _results(out / "synthetic_models" / cfg / "given")


def _results(folder: Path) -> Figures:
    """Metrics of the evaluation below ``folder``, its digests of the detector, number of boxes."""
    (result,) = folder.glob("eval/**/result.json")
    found = json.loads(result.with_name("digest.json").read_text())
    boxes = found["pred_boxes"]["count"]
    return json.loads(result.read_text()) | {"detector": [found[name] for name in DETECTION], "boxes": boxes}
