"""A small training on a joined set of simulated scenes; run by torchrun, it writes OUT/<rank>.pt."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from pcdet_freeze import train
from pcdet_freeze.config import load_cfg
from pcdet_freeze.config.easy_dict import EasyDict
from pcdet_freeze.datasets.concat import ConcatDataset


def joined_cfg() -> EasyDict:
    """The three tasks of simulated scenes: boxes of eight scenes, other labels of three others."""
    cfg = load_cfg("synthetic_models/multi_task.yaml", [
        "DATA_CONFIG.SENSOR.BEAMS", "VLP-16", "DATA_CONFIG.MIN_CARS", "1", "DATA_CONFIG.NUM_SCENES.test", "2",
        "MODEL.BACKBONE_2D.LAYER_NUMS", "[1, 1, 1]", "MODEL.BACKBONE_2D.NUM_FILTERS", "[8, 8, 8]",
        "MODEL.BACKBONE_2D.NUM_UPSAMPLE_FILTERS", "[8, 8, 8]", "MODEL.BACKBONE_2D.MIXSEGNET.WIDTH", "16",
        "OPTIMIZATION.BATCH_SIZE_PER_GPU", "2",
    ])  # fmt: skip
    own = {key: value for key, value in cfg.DATA_CONFIG.items() if key != "DATA_PROCESSOR"}
    sets = {
        "scenes": {"LABELS": ["gt_boxes"], "DATA_CONFIG": {**own, "NUM_SCENES": {"train": 8, "test": 2}}},
        "roads": {
            "LABELS": ["point_labels", "lane_map"],
            "DATA_CONFIG": {**own, "SEED": {"train": 5, "test": 6}, "NUM_SCENES": {"train": 3, "test": 2}},
        },
    }
    shared = ("POINT_CLOUD_RANGE", "POINT_FEATURE_ENCODING", "DATA_PROCESSOR")
    cfg.DATA_CONFIG = EasyDict({
        "DATASET": "ConcatDataset", "DATASETS": sets, "BALANCE": "task", "FRAMES_PER_EPOCH": 6,
        **{key: cfg.DATA_CONFIG[key] for key in shared},
    })  # fmt: skip
    return cfg


class Read:
    """Names of the frames that this process trained on."""

    frames: list[str] = []  # noqa: RUF012


def main() -> None:
    prepare = ConcatDataset.prepare_data

    def noted(self: ConcatDataset, sample: dict, rng: object) -> dict:
        Read.frames.append(f"{sample['dataset']}/{sample['frame_id']}")
        return prepare(self, sample, rng)  # type: ignore[arg-type]

    ConcatDataset.prepare_data = noted  # type: ignore[method-assign,assignment]
    out = Path(sys.argv[1])
    result = train(
        joined_cfg(), output_dir=out, workers=0, device="cpu", fix_random_seed=True, epochs=1,
        num_epochs_to_eval=0, launcher="pytorch", no_savings=True,
    )  # fmt: skip
    state = {"state": result.model.state_dict(), "frames": Read.frames}
    torch.save(state, out / f"{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main()
