"""A fourth task: one registered module, without other changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from task_cases import STAGE_3, bare, task_batch, task_config, task_model
from torch import Tensor, nn

from pcdet_freeze.freezing import freeze
from pcdet_freeze.models.partial_labels import labelled_frames
from pcdet_freeze.models.registry import TASK_HEADS


@TASK_HEADS.register
class HeightHead(nn.Module):
    """Height above the sensor of the objects in each cell."""

    reads = ("spatial_features_2d",)
    writes = ("heights",)
    reads_train = ("height_map",)

    def __init__(self, settings: Any, context: Any) -> None:
        super().__init__()
        self.out = nn.Conv2d(context.features_of("spatial_features_2d", "HeightHead").channels, 1, 1)
        self.kept: tuple[Tensor, Tensor] | None = None

    def forward(self, batch_dict: dict[str, Any]) -> dict[str, Any]:
        heights = batch_dict["heights"] = self.out(batch_dict["spatial_features_2d"])[:, 0]
        if self.training:
            frames = labelled_frames(batch_dict, "height_map", "HeightHead")
            keep = torch.ones(len(heights), dtype=torch.bool) if frames is None else frames
            self.kept = heights[keep], batch_dict.get("height_map", heights.detach())[keep]
        return batch_dict

    def get_loss(self, tb_dict: dict[str, float] | None = None) -> tuple[Tensor, dict[str, float]]:
        assert self.kept is not None
        found, wanted = self.kept
        return (found - wanted).abs().sum() / max(found.numel(), 1), tb_dict or {}

    def add_predictions(self, batch_dict: dict[str, Any], pred_dicts: list[dict[str, Any]]) -> None:
        for prediction, height in zip(pred_dicts, batch_dict["heights"], strict=True):
            prediction["pred_heights"] = height


@pytest.fixture
def model() -> Any:
    config = task_config("segment", "lane")
    config["HEIGHT_HEAD"] = {"NAME": "HeightHead"}
    config["LOSS_WEIGHTS"] = {"height_head": 0.5}
    config["LEARN_LOSS_WEIGHTS"] = True
    return task_model(config=config)


def four_batch() -> dict[str, Any]:
    return task_batch() | {"height_map": torch.ones(2, 16, 16)}


def test_a_fourth_task_trains_and_predicts_with_the_others(model: Any) -> None:
    model.measure_gradients = True
    tb_dict = model.train()(four_batch())[1]
    assert [name for name in tb_dict if name.startswith("loss_")][:4] == [
        *("loss_rpn", "loss_segment_head", "loss_lane_head", "loss_height_head")
    ]
    assert tb_dict["grad_norm_height_head"] > 0 and tb_dict["loss_weight_height_head"] == 1
    found = model.eval()(four_batch())[0][0]
    assert {"pred_boxes", "pred_point_labels", "pred_lane_map", "pred_heights"} <= found.keys()


def test_t1_the_other_three_tasks_stay_frozen_while_it_trains(model: Any) -> None:
    freeze(model, [*STAGE_3, "backbone_2d.laneblocks", "backbone_2d.mixsegnet", "lane_head"])
    given = bare(four_batch(), "gt_boxes", "point_labels", "lane_map")
    result, tb_dict, _ = model.train()(given)
    result["loss"].backward()
    assert [name for name in tb_dict if name.startswith("loss_")] == [
        "loss_height_head",
        "loss_weight_height_head",
    ]
    moved = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert moved == {"height_head"}
    assert "seg_features_2d" not in given and "spatial_features_2d" in given


def test_labels_of_a_fourth_task_can_be_missing(model: Any) -> None:
    result, tb_dict, _ = model.train()(bare(four_batch(), "height_map"))
    result["loss"].backward()
    assert tb_dict["loss_height_head"] == 0
    assert model.height_head.out.weight.grad is not None


def test_a_fourth_task_learns_from_the_frames_that_have_its_label(model: Any) -> None:
    flags = {"has_height_map": torch.tensor([True, False])}
    wanted = torch.stack([torch.ones(16, 16), torch.full((16, 16), 1e9)])
    tb_dict = [
        model.train()(four_batch() | flags | {"height_map": each})[1] for each in (wanted, wanted[[0, 0]])
    ]
    assert tb_dict[0]["loss_height_head"] == tb_dict[1]["loss_height_head"] > 0
