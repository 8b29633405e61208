"""LaneHead: predictions, loss, polylines in metres, invalid lane maps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from model_cases import CLASS_NAMES, dataset
from task_cases import LANES, bare, task_batch, task_config, task_model, unlabelled, without_detection

from pcdet_freeze.errors import ConfigError, DataError
from pcdet_freeze.models import build_network
from pcdet_freeze.models.task_heads.lane_polylines import lane_polylines
from pcdet_freeze.models.task_heads.losses import lane_class_loss, soft_dice_loss

LIMITS = (0.0, -8.0, -3.0, 16.0, 8.0, 1.0)


def head_config(**settings: Any) -> dict[str, Any]:
    config = task_config("lane", detect=False)
    config["LANE_HEAD"] |= settings
    return config


def model_of(**settings: Any) -> Any:
    return task_model(config=head_config(**settings))


def loss_of(model: Any, batch_dict: dict[str, Any]) -> torch.Tensor:
    return model.train()(dict(batch_dict))[0]["loss"]


def polylines(lane_map: torch.Tensor, step: float = 1.0) -> list[torch.Tensor]:
    return lane_polylines(lane_map, torch.ones(lane_map.shape), LIMITS, LANES, 4, step)


def empty_map() -> torch.Tensor:
    return torch.full((32, 32), 255, dtype=torch.uint8)


def test_every_cell_gets_a_lane_or_none_and_a_confidence() -> None:
    found, _ = model_of().eval()(task_batch())
    for each in found:
        assert each["pred_lane_map"].shape == each["pred_lane_conf"].shape == (32, 32)
        assert each["pred_lane_map"].dtype == torch.uint8
        assert torch.equal(each["pred_lane_map"] != 255, each["pred_lane_conf"] >= 0.5)
        assert set(each["pred_lane_map"].unique().tolist()) <= {*range(LANES), 255}


def test_a_few_steps_of_training_find_the_lanes() -> None:
    config = head_config()
    config["BACKBONE_2D"]["BN_MOMENTUM"] = 0.1
    model, given = task_model(config=config), task_batch()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(50):
        optimizer.zero_grad()
        loss_of(model, given).backward()
        optimizer.step()
    found = model.eval()(dict(given))[0][0]["pred_lane_map"]
    assert ((found != 255) == (given["lane_map"][0] != 255)).float().mean() > 0.98


def test_the_loss_is_dice_of_the_confidence_and_cross_entropy_of_the_lanes() -> None:
    model, given = model_of(LOSS_CONFIG={"BACKGROUND_WEIGHT": 0.5, "CLS_WEIGHT": 2.0}), task_batch()
    loss = loss_of(model, given)
    state = model.lane_head.forward_ret_dict
    lane = given["lane_map"] != 255
    classes = torch.where(lane, given["lane_map"].long(), LANES)
    entropy = torch.nn.functional.cross_entropy(state["cls"], classes, torch.tensor([1.0, 1.0, 1.0, 0.5]))
    dice = soft_dice_loss(state["conf"][:, 0].sigmoid(), lane.float())
    assert loss.item() == pytest.approx((dice + 2 * entropy).item(), rel=1e-5)


def test_the_dice_loss_is_zero_for_the_truth_and_one_for_its_opposite() -> None:
    wanted = torch.tensor([1.0, 1.0, 0.0, 0.0])
    assert soft_dice_loss(wanted, wanted).item() == pytest.approx(0)
    assert soft_dice_loss(1 - wanted, wanted, smooth=0).item() == pytest.approx(1)
    assert soft_dice_loss(torch.zeros(4), torch.zeros(4)).item() == pytest.approx(0)


def test_the_class_loss_of_no_cell_is_zero_with_a_graph() -> None:
    logits = torch.zeros(0, 4, 8, 8, requires_grad=True)
    loss = lane_class_loss(logits, torch.zeros(0, 8, 8, dtype=torch.long), 0.2)
    assert loss == 0 and loss.requires_grad


def test_a_frame_without_a_lane_map_does_not_count() -> None:
    model, given = model_of(), task_batch()
    part = unlabelled(given, "lane_map", 0)
    other = dict(part) | {"lane_map": part["lane_map"].clone()}
    other["lane_map"][0] = 99
    assert torch.equal(loss_of(model, part), loss_of(model, other))
    assert not torch.equal(loss_of(model, part), loss_of(model, given))


def test_without_any_lane_map_the_loss_is_zero_and_still_reaches_everything() -> None:
    model = model_of()
    loss = loss_of(model, bare(task_batch(), "lane_map"))
    loss.backward()
    assert loss == 0
    assert all(p.grad is not None and not p.grad.any() for p in without_detection(model))


def test_a_frame_without_lanes_is_a_frame_to_learn_from() -> None:
    assert math.isfinite(loss_of(model_of(), task_batch(lines=0)).item())


def test_a_straight_lane_becomes_a_polyline_through_its_cells() -> None:
    lane_map = empty_map()
    lane_map[10, 4:28] = 1
    (line,) = polylines(lane_map)
    assert line.dtype == torch.float32
    assert line[:, 1].tolist() == pytest.approx([-8 + 10.5 * 0.5] * len(line))
    assert line[0, 0] == pytest.approx(2.5) and line[-1, 0] == pytest.approx(13.5)


def test_a_bent_lane_keeps_its_shape_and_its_gaps() -> None:
    lane_map, column = empty_map(), torch.arange(32)
    row = (8 + (column - 16).square() / 32).round().long()
    lane_map[row[column % 8 < 5], column[column % 8 < 5]] = 0
    (line,) = polylines(lane_map)
    wanted = -8 + 0.5 * (8.5 + ((line[:, 0] / 0.5 - 0.5) - 16).square() / 32)
    assert (line[:, 1] - wanted).abs().max() < 0.5
    assert line[:, 0].diff().min() > 0


def test_a_lane_along_y_runs_with_rising_y() -> None:
    lane_map = empty_map()
    lane_map[2:30, 7] = 2
    (line,) = polylines(lane_map)
    assert line[:, 1].diff().min() > 0
    assert line[:, 0].tolist() == pytest.approx([3.75] * len(line))


def test_each_lane_gives_one_polyline_in_the_order_of_their_numbers() -> None:
    lane_map = empty_map()
    lane_map[20], lane_map[10], lane_map[5, :3] = 0, 1, 2
    assert [float(line[0, 1].round(decimals=2)) for line in polylines(lane_map)] == [2.25, -2.75]
    assert polylines(empty_map()) == []


def test_confident_cells_pull_the_vertices() -> None:
    lane_map, confidence = empty_map(), torch.full((32, 32), 0.25)
    lane_map[10], lane_map[11] = 0, 0
    confidence[11] = 0.75
    (line,) = lane_polylines(lane_map, confidence, LIMITS, LANES, 4, 1.0)
    assert line[:, 1].tolist() == pytest.approx([-8 + 0.5 * 11.25] * len(line))


def test_a_lane_map_may_be_finer_than_the_grid() -> None:
    given = task_batch()
    given["lane_map"] = given["lane_map"].repeat_interleave(2, 1).repeat_interleave(2, 2)
    model = model_of(MAP_SIZE=[64, 64])
    loss_of(model, given)
    assert model.eval()(given)[0][0]["pred_lane_map"].shape == (64, 64)


def test_the_size_is_that_of_the_data_sets_maps_where_it_tells() -> None:
    data = dataset()
    data.lane_map_shape = (48, 40)
    assert build_network(head_config(), len(CLASS_NAMES), data).lane_head.map_size == (48, 40)
    with pytest.raises(ConfigError, match=r"MAP_SIZE must be the size of .*\[48, 40\].*got \[64, 64\]"):
        build_network(head_config(MAP_SIZE=[64, 64]), len(CLASS_NAMES), data)


def test_a_lane_map_of_another_size_is_an_error() -> None:
    given = task_batch() | {"lane_map": torch.full((2, 24, 32), 255, dtype=torch.uint8)}
    with pytest.raises(DataError, match=r"32 rows \(y\) and 32 columns \(x\),.* got \(2, 24"):
        loss_of(model_of(), given)


def test_a_lane_out_of_range_is_an_error_that_names_it_and_its_frame() -> None:
    given = task_batch() | {"frame_id": ["a7", "b9"]}
    given["lane_map"][1, 4, 4] = LANES
    with pytest.raises(
        DataError, match=r"must contain 0..2 or 255 \(no lane\); got \[3\] in the frames b9: raise"
    ):
        loss_of(model_of(), given)


def test_a_batch_without_lane_keys_is_an_error() -> None:
    given = task_batch()
    del given["lane_map"]
    with pytest.raises(DataError, match="needs lane_map to train"):
        loss_of(model_of(), given)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"NUM_LANES": 0}, "NUM_LANES must be a number from 1 to 254; got 0"),
        ({"MAP_SIZE": [32]}, r"MAP_SIZE must be \[rows, columns\]"),
        ({"CONF_THRESH": 0.0}, "CONF_THRESH must be a number above 0, up to 1; got 0.0"),
        ({"POLYLINE_STEP": 0.0}, "POLYLINE_STEP must be a number above 0; got 0.0"),
        ({"LOSS_CONFIG": {"CONF_WEIGHT": -1.0}}, "CONF_WEIGHT must be a number, 0 or more; got -1.0"),
    ],
)
def test_a_fault_in_the_settings_is_one_clear_error(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model_of(**settings)
