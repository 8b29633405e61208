"""The command ``check-data``; its flags and help: ``arguments/check_data.py``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pcdet_freeze.cli.common.flags import cfg_of
from pcdet_freeze.cli.common.json_file import require_folder
from pcdet_freeze.datasets import build_dataset
from pcdet_freeze.engine.check_config import check_config
from pcdet_freeze.engine.data_check.at_start import columns_in
from pcdet_freeze.engine.data_check.expected import expected_of
from pcdet_freeze.engine.data_check.read import survey_all
from pcdet_freeze.engine.data_check.report import DataReport, as_text, judge, to_plain, worst_frames
from pcdet_freeze.errors import PCDetFreezeError
from pcdet_freeze.utils.terminal import columns
from pcdet_freeze.visualization.bev import require_matplotlib
from pcdet_freeze.visualization.data_check import draw_checked


def run(args: argparse.Namespace) -> int:
    """Print the report; returns 1 where a training would be pointless."""
    cfg = cfg_of(args, check=False)
    check_config(cfg)
    seen = columns_in(args.pretrained_model, args.trust_checkpoint)
    if args.pictures:
        require_folder(args.out, "--out")
    dataset = build_dataset(cfg.DATA_CONFIG, cfg.CLASS_NAMES, training=args.split == "train")
    report = judge(survey_all(dataset, args.workers), expected_of(cfg, dataset, seen))
    pictures, note = _draw(report, dataset, args)
    if args.json:
        plain = {"cfg_file": args.cfg_file, "split": args.split, **to_plain(report)}
        print(json.dumps({**plain, "pictures": list(map(str, pictures))}, indent=1))
    else:
        print("\n".join([as_text(report, columns()), *(f"picture: {path}" for path in pictures), *note]))
    return int(report.pointless)


def _draw(report: DataReport, dataset: object, args: argparse.Namespace) -> tuple[list[Path], list[str]]:
    """The pictures of the worst frames where something was found, and a line that says why there are none."""
    worst = worst_frames(report, args.pictures) if report.findings else []
    if not worst:
        return [], []
    try:
        require_matplotlib()
    except PCDetFreezeError as error:
        return [], [str(error)]
    return draw_checked(dataset, worst, report.expected.class_names, args.out), []
