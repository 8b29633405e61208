"""The evaluation of a joined set: all frames together, and each set by its own metrics."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from concat_sets import BOXES, SHIFT, joined, joined_cfg
from model_cases import CLASS_NAMES

from pcdet_freeze.datasets.concat import ConcatDataset
from pcdet_freeze.engine.testing.joined_scores import score_with_parts
from pcdet_freeze.engine.testing.scoring import FrameResult, TaskCounter

LOGGER = logging.getLogger("pcdet_freeze.test")
CFG = {"CLASS_NAMES": CLASS_NAMES, "MODEL": {"POST_PROCESSING": {"EVAL_METRIC": "kitti"}}}
AP = "Car_3d/moderate_R40"


def prediction(sample: dict[str, Any]) -> dict[str, Any]:
    """Boxes of the set boxes, the labels of the points, the lane map with one line less."""
    boxes = torch.from_numpy(BOXES).clone()
    boxes[:, 2] += SHIFT
    lane_map = sample.get("lane_map", np.full((32, 32), 255, np.uint8)).copy()
    lane_map[20] = 255
    labels = sample.get("point_labels", np.zeros(len(sample["points"]), np.int64))
    return {"pred_boxes": boxes, "pred_scores": torch.ones(2), "pred_labels": torch.tensor([1, 2]),
            "pred_lane_map": lane_map, "pred_point_labels": labels}  # fmt: skip


def scores_of(dataset: ConcatDataset) -> dict[str, float]:
    counter, frames = TaskCounter(dataset), []
    for index in range(len(dataset)):
        sample = dataset[index]
        batch, found = dataset.collate_batch([sample]), [prediction(sample)]
        anno = dataset.generate_prediction_dicts(batch, found, CLASS_NAMES)[0]
        frames.append(FrameResult(anno, counter.count(batch, found)[0]))
    return score_with_parts(CFG, dataset, frames, {}, counter, LOGGER)


@pytest.fixture(scope="module")
def scores() -> dict[str, float]:
    return scores_of(joined(training=False))


def test_a_set_with_the_classes_of_the_joined_one_has_the_mean_of_its_benchmark() -> None:
    cfg = joined_cfg(SEMANTIC_CLASSES=[])
    cfg.DATASETS.clouds.POINT_CLASS_MAP = {}
    dataset = ConcatDataset(cfg, CLASS_NAMES, training=False)
    clouds: Any = dataset.members[1].dataset
    clouds.label = lambda rng: {"point_labels": np.zeros(200, np.int64)}
    clouds.absent_classes_count = True
    found = scores_of(dataset)
    assert found["segmentation/mIoU"] == 100 and found["clouds/segmentation/mIoU"] == 50


def test_a_set_with_a_tool_of_its_own_is_scored_by_it() -> None:
    dataset = joined(training=False)
    asked: list[str] = []

    def tool(annos: list[dict[str, Any]]) -> tuple[str, dict[str, float]]:
        asked.extend(anno["frame_id"] for anno in annos)
        return "NDS 7", {"NDS": 7.0}

    boxes: Any = dataset.members[0].dataset
    boxes.official_scores = tool
    scores_of(dataset)
    assert asked == [f"{index:02d}" for index in range(6)]


@pytest.mark.parametrize("where", ["joined", "set"])
def test_a_class_that_is_not_labelled_is_not_scored(where: str) -> None:
    cfg = joined_cfg()
    place = cfg if where == "joined" else cfg.DATASETS.boxes.DATA_CONFIG
    place["LABELLED_CLASSES"] = ["Pedestrian"]
    found = scores_of(ConcatDataset(cfg, CLASS_NAMES, training=False))
    walker = AP.replace("Car", "Pedestrian")
    assert {walker, f"boxes/{walker}"} <= found.keys() and not {AP, f"boxes/{AP}"} & found.keys()


def test_a_set_has_the_metrics_of_its_labels(scores: dict[str, float]) -> None:
    parts = {key.partition("/")[0] for key in scores if key.count("/") > 1 and not key.startswith("segm")}
    assert parts == {"boxes", "clouds", "lanes"}
    assert f"boxes/{AP}" in scores and f"lanes/{AP}" not in scores
    assert "lanes/lane/F1" in scores and "boxes/lane/F1" not in scores
    assert "clouds/segmentation/mIoU" in scores and "lanes/segmentation/mIoU" not in scores


def test_where_one_set_has_a_label_its_metric_is_that_of_the_whole(scores: dict[str, float]) -> None:
    assert scores[AP] == scores[f"boxes/{AP}"] > 10  # with six labels the truth itself scores 15
    assert scores["lane/F1"] == scores["lanes/lane/F1"] == pytest.approx(2 / 3)
    assert scores["segmentation/mIoU"] == scores["clouds/segmentation/mIoU"] == 100
