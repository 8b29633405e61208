"""A model of three tasks that answers what its batch tells it to, and frames labelled in part."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from pcdet_freeze.datasets.collate import collate
from pcdet_freeze.datasets.loader import EpochSampler

CLASSES = ["Car"]
TASKS_CFG = {"CLASS_NAMES": CLASSES, "MODEL": {"POST_PROCESSING": {"EVAL_METRIC": "kitti"}}}


class ThreeTaskFrames(Dataset):
    """Seven frames of 30 points; frame 1 has no point labels, frame 2 no lane map, frame 4 no boxes."""

    semantic_class_names = ("road", "car", "pole")
    point_cloud_range = np.array([0, -5, -3, 10, 5, 1], np.float32)
    unlabelled: dict[int, str] = {1: "point_labels", 2: "lane_map", 4: "gt_boxes"}  # noqa: RUF012

    def __len__(self) -> int:
        return 7

    def set_epoch(self, epoch: int) -> None: ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.RandomState(index)
        points = rng.uniform(0, 5, (30 + index, 4)).astype(np.float32)
        sample = {
            "points": points,
            "frame_id": f"{index:06d}",
            "gt_boxes": np.array([[5, index, 0, 4, 2, 1.5, 0.1, 1]], np.float32),
            "point_labels": rng.randint(0, 3, len(points)),
            "lane_map": np.where(rng.uniform(size=(20, 20)) < 0.1, 0, 255).astype(np.uint8),
        }
        sample.pop(self.unlabelled.get(index, ""), None)
        return sample

    def ground_truth_annos(self) -> list[dict[str, Any] | None]:
        return [
            None if "gt_boxes" not in self[i] else _anno(self[i]["gt_boxes"], f"{i:06d}") for i in range(7)
        ]

    def generate_prediction_dicts(self, batch: Any, predictions: Any, names: Any, folder: Any = None) -> Any:
        return [
            _anno(found["pred_boxes"].numpy(), str(frame), score=found["pred_scores"].numpy())
            for frame, found in zip(batch["frame_id"], predictions, strict=True)
        ]


def _anno(boxes: np.ndarray, frame_id: str, **more: Any) -> dict[str, Any]:
    n = len(boxes)
    return {
        "name": np.array(["Car"] * n), "truncated": np.zeros(n), "occluded": np.zeros(n, int),
        "alpha": np.zeros(n), "bbox": np.tile([0.0, 0.0, 50.0, 50.0], (n, 1)), "dimensions": boxes[:, 3:6],
        "location": boxes[:, :3], "rotation_y": boxes[:, 6], "frame_id": frame_id, **more,
    }  # fmt: skip


PARTS = {
    "boxes": ("pred_boxes", "pred_scores", "pred_labels"),
    "points": ("pred_point_labels",),
    "cells": ("pred_bev_labels",),
    "lanes": ("pred_lane_map", "pred_lanes"),
}


class ThreeTasks(nn.Module):
    """The true boxes, point labels by the height, cars in all cells, a straight lane: what ``tasks`` name."""

    def __init__(self, *tasks: str) -> None:
        super().__init__()
        self.tasks = tasks
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, batch: dict[str, Any]) -> Any:
        found = []
        for index in range(batch["batch_size"]):
            points = batch["points"][batch["points"][:, 0] == index]
            box = torch.tensor([[5.0, float(batch["frame_id"][index]), 0, 4, 2, 1.5, 0.1]])
            lane_map = torch.full((20, 20), 255, dtype=torch.uint8)
            lane_map[len(points) % 20] = 0
            found.append({
                "pred_boxes": box, "pred_scores": torch.ones(1), "pred_labels": torch.ones(1).long(),
                "pred_point_labels": (points[:, 3] % 3).long(),
                "pred_bev_labels": torch.ones(4, 4).long(),
                "pred_lane_map": lane_map, "pred_lanes": [torch.tensor([[0.0, 0.0], [9.0, 1.0]])],
            })  # fmt: skip
        kept = [key for task in self.tasks for key in PARTS[task]]
        recall = {"gt": 2 * batch["batch_size"], "rcnn_0.5": batch["batch_size"]}
        return [{key: one[key] for key in kept} for one in found], recall


def three_task_loader(batch_size: int, rank: int = 0, world_size: int = 1) -> DataLoader:
    """Frames as tools/test.py deals them out to its ranks."""
    dataset = ThreeTaskFrames()
    share = {"rank": rank, "world_size": world_size}
    sampler = EpochSampler(dataset, batch_size, shuffle=False, fill=False, **share)  # type: ignore[arg-type]
    return DataLoader(dataset, batch_size=batch_size, sampler=sampler, collate_fn=collate)
