"""The command ``prepare``; its flags and help: ``arguments/prepare.py``."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pcdet_freeze.cli.common.flags import cfg_of
from pcdet_freeze.datasets.argoverse2 import prepare_argoverse2
from pcdet_freeze.datasets.custom import prepare_custom
from pcdet_freeze.datasets.kitti.prepare import prepare_kitti
from pcdet_freeze.datasets.nuscenes import prepare_nuscenes
from pcdet_freeze.datasets.once import prepare_once
from pcdet_freeze.datasets.pandaset import prepare_pandaset
from pcdet_freeze.datasets.semantic_kitti import prepare_semantic_kitti
from pcdet_freeze.datasets.waymo import prepare_waymo
from pcdet_freeze.errors import ConfigError

CLASSES: dict[str, list[str]] = {
    "waymo": ["Vehicle", "Pedestrian", "Cyclist"],
    "once": ["Car", "Bus", "Truck", "Pedestrian", "Cyclist"],
    "custom": [],
    "semantic_kitti": [],
}
"""classes of a set whose config has no CLASS_NAMES; those of other sets are KITTI_CLASSES"""
KITTI_CLASSES = ["Car", "Pedestrian", "Cyclist"]
PREPARE: dict[str, tuple[str, Callable[..., Any]]] = {
    "argoverse2": ("Argoverse2Dataset", prepare_argoverse2),
    "kitti": ("KittiDataset", prepare_kitti),
    "nuscenes": ("NuScenesDataset", prepare_nuscenes),
    "pandaset": ("PandaSetDataset", prepare_pandaset),
    "waymo": ("WaymoDataset", prepare_waymo),
    "once": ("ONCEDataset", prepare_once),
    "custom": ("CustomDataset", prepare_custom),
    "semantic_kitti": ("SemanticKittiDataset", prepare_semantic_kitti),
}
"""name on the command line -> DATASET in the config, and what prepares it"""


def run(args: argparse.Namespace) -> int:
    """Prepare the data set; returns 0. Raises PCDetFreezeError."""
    cfg = cfg_of(args)
    data_cfg = cfg.get("DATA_CONFIG", cfg)
    name, prepare = PREPARE[args.dataset]
    found = configs_of(data_cfg, name)
    if not found:
        raise ConfigError(f"`prepare {args.dataset}` needs DATASET: {name}; {args.cfg_file} has "
                          f"{data_cfg.get('DATASET')!r}")  # fmt: skip
    if args.out is not None and len(found) > 1:
        raise ConfigError(
            f"--out must be the folder of one set; {args.cfg_file} has {', '.join(found)}. Set INFO_ROOT of "
            "each instead"
        )
    classes = cfg.get("CLASS_NAMES", CLASSES.get(args.dataset, KITTI_CLASSES))
    with _console() as logger:
        reports = [
            prepare(part, classes, out_dir=args.out, workers=args.workers, logger=logger)
            for part in found.values()
        ]
    if args.out is not None:
        print(f"to train with these files: --set {next(iter(found))}.INFO_ROOT {args.out}")
    return 0 if all(report.frames for report in reports) else 1


def configs_of(data_cfg: Any, name: str) -> dict[str, Any]:
    """Key -> config, for the data set ``name``: DATA_CONFIG itself, or the sets of a joined one."""
    key = "DATA_CONFIG"
    if data_cfg.get("DATASET") == name:
        return {key: data_cfg}
    members = data_cfg.get("DATASETS") if data_cfg.get("DATASET") == "ConcatDataset" else None
    own = {
        f"{key}.DATASETS.{member}.{key}": (settings.get(key) or {}) if isinstance(settings, dict) else {}
        for member, settings in (members.items() if isinstance(members, dict) else ())
    }
    return {where: cfg for where, cfg in own.items() if cfg.get("DATASET") == name}


@contextmanager
def _console() -> Iterator[logging.Logger]:
    """A logger that writes to the present standard output; the next command may have another one."""
    logger, handler = logging.getLogger("pcdet_freeze.prepare"), logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield logger
    finally:
        logger.removeHandler(handler)
