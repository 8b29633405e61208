"""The command ``overfit``; its flags and help: ``arguments/overfit.py``."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_freeze.cli.digest import digests_of
from pcdet_freeze.datasets import build_dataset
from pcdet_freeze.datasets.frames import IGNORE
from pcdet_freeze.engine.run_context import RunOptions, folders_of
from pcdet_freeze.engine.testing.scoring import overlaps_of
from pcdet_freeze.engine.train_api import TrainResult, read_cfg, train
from pcdet_freeze.errors import ConfigError
from pcdet_freeze.evaluation.kitti import as_dict, evaluate
from pcdet_freeze.evaluation.stage_table import stage_table
from pcdet_freeze.utils.untrusted_files.inside import inside

STAGES = {"1 detection": "stage1_detect", "2 segmentation": "stage2_segment", "3 lanes": "stage3_lane"}
DETECTION = ("dense_head", "pred_boxes", "pred_scores", "pred_labels")
AP_SHARE, MIOU, F1 = 0.9, 80.0, 0.8
"""least share of the truth's own Car AP, least mIoU in percent, least lane F1"""
MANY_POINTS = 500
"""a class with fewer points in the test frames does not count in the mIoU"""
OVERLAP = 0.5
"""IoU of the AP that is compared, for a class that EVALUATION.IOU does not list"""


def run(args: argparse.Namespace) -> int:
    """Train, evaluate and compare; returns 1 where a bar is missed or the detections change."""
    inside(Path(), args.models, "--models", ConfigError)
    cfgs = {title: _cfg(args, stage) for title, stage in STAGES.items()}
    truth = read_truth(cfgs["3 lanes"], args.name)
    _delete_runs(cfgs.values(), args.output_dir)
    results: dict[str, TrainResult] = {}
    found: list[list[str]] = []
    for title, stage in STAGES.items():
        before = list(results.values())[-1].checkpoint if results else None
        results[title] = _train(args, stage, before)
        found.append(_detections(args, stage, results[title]))
    same = [digests == found[0] for digests in found]
    figures = {title: {**result.metrics, **result.results} for title, result in results.items()}
    verdict = ["", *("the same" if yes else "CHANGED" for yes in same[1:]), ""]
    columns = {**figures, "ground truth": truth.figures}
    last = [("detections, bit for bit", verdict)]
    if truth.key != Truth.key_of("Car", OVERLAP):  # for which the table has a row
        aps = [f"{column[truth.key]:.1f}" if truth.key in column else "-" for column in columns.values()]
        last.insert(0, (f"{truth.name} AP 3D R40, IoU {truth.overlap:g}", aps))
    print("\n" + stage_table(columns, last))
    bars = compare(figures["3 lanes"], truth)
    for line, _ in bars:
        print(line)
    missed = args.max_iters is None and not all(reached for _, reached in bars)
    return int(missed or not all(same))


def _cfg(args: argparse.Namespace, stage: str) -> Any:
    return read_cfg(f"{args.models}/{stage}.yaml", args.set_cfgs)


def _delete_runs(cfgs: Iterable[Any], output_dir: str) -> None:
    """Delete the folder of the run of each config, so that none resumes; nothing beside it."""
    for cfg in cfgs:
        shutil.rmtree(folders_of(cfg, RunOptions(output_dir=output_dir)).root, ignore_errors=True)


def _train(args: argparse.Namespace, stage: str, before: Path | None) -> TrainResult:
    """One stage from the beginning, with an evaluation at its end."""
    return train(
        _cfg(args, stage),
        pretrained=before,
        output_dir=args.output_dir,
        workers=0,
        device=args.device,
        max_iters=args.max_iters,
        fix_random_seed=True,
    )


def _detections(args: argparse.Namespace, stage: str, result: TrainResult) -> list[str]:
    """Digests of what the detector of a stage puts out for the test frames."""
    given = argparse.Namespace(
        ckpt=result.checkpoint, batch_size=1, device=args.device, trust_checkpoint=False
    )
    digests = digests_of(_cfg(args, stage), given)
    return [digests[name].hexdigest() for name in DETECTION]


@dataclass(frozen=True)
class Truth:
    """What the labels of the test frames are, and what they score against themselves."""

    name: str
    boxes: int
    """of the class, that count"""
    ap: float
    """percent, of the labels as detections"""
    points: Mapping[str, int]
    """labelled points of each semantic class"""
    limits: Sequence[float]
    """POINT_CLOUD_RANGE"""
    overlap: float = OVERLAP
    """least IoU of a detection that counts as found"""

    @staticmethod
    def key_of(name: str, overlap: float) -> str:
        """The metric that is compared."""
        return f"{name}_3d_{overlap:.2f}/moderate_R40"

    @property
    def key(self) -> str:
        """The metric that is compared."""
        return self.key_of(self.name, self.overlap)

    @property
    def figures(self) -> dict[str, float]:
        """The column of the table."""
        return {self.key: self.ap, "segmentation/mIoU": 100.0, "lane/F1": 1.0}

    @property
    def classes(self) -> list[str]:
        """Semantic classes with many points."""
        return [name for name, count in self.points.items() if count >= MANY_POINTS]


def read_truth(cfg: Any, name: str) -> Truth:
    """The labels of the test frames of ``cfg`` and their own AP for the class ``name``.

    Raises ConfigError for a class that CLASS_NAMES does not list.
    """
    if name not in cfg.CLASS_NAMES:
        raise ConfigError(f"--name must be one of CLASS_NAMES ({', '.join(cfg.CLASS_NAMES)}); got {name!r}")
    overlaps = overlaps_of(cfg)
    overlap = overlaps.get(name, OVERLAP)
    data = build_dataset(cfg.DATA_CONFIG, cfg.CLASS_NAMES, False)
    annos = [anno for anno in data.ground_truth_annos() if anno is not None]
    said = [{**anno, "score": np.linspace(1, 0.5, len(anno["name"]))} for anno in annos]
    values = as_dict(evaluate(annos, said, [name], overlaps)) if annos else {}
    ap = values.get(Truth.key_of(name, overlap), 0.0)
    boxes = sum(int(((anno["name"] == name) & (anno["occluded"] < 3)).sum()) for anno in annos)
    counts = np.zeros(len(data.semantic_class_names), np.int64)
    for index in range(len(data)):
        labels = data[index].get("point_labels", np.zeros(0, np.int64))
        counts += np.bincount(labels[labels != IGNORE], minlength=len(counts))
    points = dict(zip(data.semantic_class_names, counts.tolist(), strict=True))
    return Truth(name, boxes, ap, points, data.point_cloud_range.tolist(), overlap)


def compare(figures: Mapping[str, Any], truth: Truth) -> list[tuple[str, bool]]:
    """A line about each bar, and whether it is reached; ``figures``: metrics after the last stage."""
    ious = [figures.get(f"segmentation/IoU/{name}", 0.0) for name in truth.classes]
    x, y = ([f"{truth.limits[axis + end]:g}" for end in (0, 3)] for axis in (0, 1))
    where = f"x {x[0]} to {x[1]} m, y {y[0]} to {y[1]} m"
    rows = [
        (
            f"{truth.name} AP 3D R40, IoU {truth.overlap:g} ({truth.boxes} in {where}; "
            f"the truth scores {truth.ap:.1f})",
            figures.get(truth.key, 0.0),
            AP_SHARE * truth.ap,
        ),
        (
            f"mIoU of the {len(ious)} classes with {MANY_POINTS} points or more",
            float(np.mean(ious)) if ious else 0.0,
            MIOU,
        ),
        ("lane F1", figures.get("lane/F1", 0.0), F1),
    ]
    return [
        (f"{text}: {value:.4g}, bar {bar:.4g}: {'reached' if value >= bar else 'MISSED'}", value >= bar)
        for text, value, bar in rows
    ]
