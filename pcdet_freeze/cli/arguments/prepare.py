"""Write the info files and the ground-truth database of a data set, in OpenPCDet's format.

The data folder is DATA_PATH in the config of a data set, and DATA_CONFIG.DATA_PATH in the config of a model.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pcdet_freeze.cli.common.flags import add_cfg, add_set, whole
from pcdet_freeze.cli.common.help import Examples

DATASETS = ("argoverse2", "kitti", "nuscenes", "pandaset", "waymo", "once", "custom", "semantic_kitti")
EXAMPLES: Examples = (
    ("KITTI", "kitti --cfg_file dataset_configs/kitti_dataset.yaml --set DATA_PATH /data/kitti"),
    (
        "your own data (docs/your_data.md describes the files)",
        "custom --cfg_file dataset_configs/custom_dataset.yaml --set DATA_PATH data/mine",
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument(
        "dataset", choices=DATASETS, metavar="NAME", help=f"of the data set: {', '.join(DATASETS)}"
    )
    add_cfg(parser)
    add_set(parser, last=False)
    parser.add_argument("--out", type=Path, help="folder to write to; default: INFO_ROOT, else DATA_PATH")
    parser.add_argument("--workers", type=whole(1), default=4, help="threads that read frames")
