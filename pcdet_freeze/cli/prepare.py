"""Write the info files and the ground-truth database of a data set, in OpenPCDet's format."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from pcdet_freeze.cli.flags import add_cfg, add_set, cfg_of, whole
from pcdet_freeze.datasets.kitti.prepare import prepare_kitti
from pcdet_freeze.errors import ConfigError

KITTI_CLASSES = ["Car", "Pedestrian", "Cyclist"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("dataset", choices=["kitti"], help="which data set")
    add_cfg(parser)
    add_set(parser, last=False)
    parser.add_argument("--out", type=Path, help="folder to write to; default: INFO_ROOT, else DATA_PATH")
    parser.add_argument("--workers", type=whole(1), default=4, help="threads that read frames")


def run(args: argparse.Namespace) -> int:
    """Prepare the data set; returns 0. Raises PCDetFreezeError."""
    cfg = cfg_of(args)
    data_cfg = cfg.get("DATA_CONFIG", cfg)
    if data_cfg.get("DATASET") != "KittiDataset":
        raise ConfigError(f"`prepare kitti` needs DATASET: KittiDataset; {args.cfg_file} has "
                          f"{data_cfg.get('DATASET')!r}")  # fmt: skip
    report = prepare_kitti(
        data_cfg,
        cfg.get("CLASS_NAMES", KITTI_CLASSES),
        out_dir=args.out,
        workers=args.workers,
        logger=_console(),
    )
    if args.out is not None:
        print(f"to train with these files: --set DATA_CONFIG.INFO_ROOT {args.out}")
    return 0 if report.frames else 1


def _console() -> logging.Logger:
    logger = logging.getLogger("pcdet_freeze.prepare")
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    return logger
