"""CenterHead in a small CenterPoint: targets, losses, detections, config errors, unusual batches."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from center_cases import CLASS_NAMES, VFES, center_batch, center_config, center_model

from pcdet_freeze.errors import ConfigError, DataError

CAR = [8.1, 1.2, -1.0, 3.9, 1.6, 1.56, 0.3]


def targets_for(rows: list[list[float]], velocity: bool = False, **settings: Any) -> Any:
    """Targets of both heads for one sample."""
    config = center_config(velocity=velocity)
    config["DENSE_HEAD"]["TARGET_ASSIGNER_CONFIG"].update(settings)
    width = 10 if velocity else 8
    return center_model(config).dense_head.assign_targets(torch.tensor(rows).view(1, len(rows), width))


def test_a_box_becomes_a_peak_and_a_code_in_the_cell_of_its_centre() -> None:
    car, others = targets_for([[*CAR, 1]])
    assert car.inds[0, 0] == 9 * 16 + 8
    assert car.heatmaps[0, 0, 9, 8] == 1
    wanted = [0.1, 0.2, -1.0, *(math.log(v) for v in CAR[3:6]), math.cos(0.3), math.sin(0.3)]
    assert car.target_boxes[0, 0].tolist() == pytest.approx(wanted, abs=1e-5)
    assert car.masks.sum() == 1
    assert not others.masks.any()
    assert not others.heatmaps.any()


def test_velocity_is_the_last_part_of_the_code() -> None:
    car, _ = targets_for([[*CAR, 1.5, -0.5, 1]], velocity=True)
    assert car.target_boxes.shape == (1, 20, 10)
    assert car.target_boxes[0, 0, 8:].tolist() == [1.5, -0.5]


def test_classes_of_a_head_have_a_plane_each() -> None:
    _, others = targets_for([[4.0, 4.0, *CAR[2:], 3], [4.0, -4.0, *CAR[2:], 2]])
    assert [(plane == 1).sum().item() for plane in others.heatmaps[0]] == [1, 1]
    assert others.heatmaps[0, 0, 4, 4] == 1
    assert others.heatmaps[0, 1, 12, 4] == 1


def test_boxes_beyond_the_slots_of_padding_and_without_size_are_left_out() -> None:
    rows = [[*CAR, 1], [8.0, -4.0, *CAR[2:], 1], [2.0, 2.0, *CAR[2:], 1], [0.0] * 8]
    assert targets_for(rows, NUM_MAX_OBJS=2)[0].masks.tolist() == [[True, True]]
    flat = [[*CAR[:3], 0.0, *CAR[4:], 1]]
    car, _ = targets_for(flat)
    assert not car.masks.any()
    assert torch.isfinite(car.target_boxes).all()


@pytest.mark.parametrize(("x", "y", "cell"), [(-3.0, 0.5, 8 * 16), (99.0, 99.0, 255), (16.0, -8.0, 15)])
def test_a_centre_outside_the_map_is_moved_to_its_border(x: float, y: float, cell: int) -> None:
    car, _ = targets_for([[x, y, *CAR[2:], 1]])
    assert car.inds[0, 0] == cell
    assert car.heatmaps.flatten()[cell] == 1


def test_labels_are_never_written_to() -> None:
    given = center_batch()
    boxes = given["gt_boxes"].clone()
    center_model().train()(given)
    assert given["gt_boxes"].equal(boxes)


def test_an_unknown_velocity_gives_no_loss() -> None:
    model, given = center_model(center_config(velocity=True)).train(), center_batch()
    speed = torch.full((*given["gt_boxes"].shape[:2], 2), torch.nan)
    given["gt_boxes"] = torch.cat([given["gt_boxes"][..., :7], speed, given["gt_boxes"][..., 7:]], dim=-1)
    loss = model(given)[0]["loss"]
    loss.backward()
    assert torch.isfinite(loss)
    for head in model.dense_head.heads_list:
        assert not head.vel[-1].weight.grad.any()
        assert head.center[-1].weight.grad.any()


def test_a_head_with_velocity_needs_boxes_with_velocity() -> None:
    with pytest.raises(DataError, match=r"must be \(B, G, 10\).*PRED_VELOCITY"):
        center_model(center_config(velocity=True)).train()(center_batch())


@pytest.mark.parametrize("vfe", VFES)
def test_training_returns_the_loss_and_its_parts(vfe: str) -> None:
    model = center_model(center_config(vfe)).train()
    ret_dict, tb_dict, _ = model(center_batch())
    parts = [f"{kind}_loss_head_{i}" for i in range(2) for kind in ("hm", "loc")]
    assert list(tb_dict) == ["loss_rpn", *parts, "rpn_loss"]
    assert ret_dict["loss"].item() == pytest.approx(sum(tb_dict[part] for part in parts))
    ret_dict["loss"].backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_a_few_steps_of_training_find_the_boxes() -> None:
    config = center_config()
    for section in ("VFE", "BACKBONE_2D"):
        config[section]["BN_MOMENTUM"] = 0.1
    model = center_model(config).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        model(center_batch())[0]["loss"].backward()
        optimizer.step()
    pred_dicts, recall_dict = model.eval()(center_batch())
    assert recall_dict["rcnn_0.5"] == recall_dict["gt"] == 6
    best = {int(label): float(score) for label, score in zip(
        pred_dicts[0]["pred_labels"].flip(0), pred_dicts[0]["pred_scores"].flip(0), strict=True)}  # fmt: skip
    assert sorted(best) == [1, 2, 3]


def test_an_untrained_head_sees_next_to_nothing_everywhere() -> None:
    model = center_model().eval()
    with torch.no_grad():
        model(center_batch())
    chance = model.dense_head.forward_ret_dict["pred_dicts"][0]["hm"].sigmoid()
    assert chance.mean() == pytest.approx(0.1, abs=0.1)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("pillars", "boxes"), [((30, 0), True), ((0, 30), True), ((30, 20), False), ((1,), True), ((0, 0), False)]
)
@pytest.mark.parametrize("vfe", VFES)
def test_samples_can_be_empty_and_unlabelled(
    vfe: str, pillars: tuple[int, ...], boxes: bool, training: bool
) -> None:
    model, given = center_model(center_config(vfe)).train(training), center_batch(pillars, boxes)
    result = model(given)
    if training:
        result[0]["loss"].backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    else:
        assert [sorted(found) for found in result[0]] == [["pred_boxes", "pred_labels", "pred_scores"]] * len(
            pillars
        )
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_evaluation_needs_no_labels_and_training_without_them_is_an_error() -> None:
    given = center_batch()
    del given["gt_boxes"]
    assert center_model().eval()(dict(given))[1] == {}
    with pytest.raises(DataError, match="needs gt_boxes to train"):
        center_model().train()(given)


def test_copies_and_pickles_can_be_taken_after_a_training_forward() -> None:
    model = center_model().train()
    model(center_batch())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.dense_head.forward_ret_dict == {}
        assert twin.train()(center_batch())[1] == model(center_batch())[1]


def test_losses_count_in_float32_under_autocast() -> None:
    model = center_model().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ret_dict, tb_dict, _ = model(center_batch())
    assert ret_dict["loss"].dtype == torch.float32
    ret_dict["loss"].backward()
    assert tb_dict == pytest.approx(center_model().train()(center_batch())[1], rel=0.1)


FAULTS: dict[str, tuple[Any, str]] = {
    "a class in no head": (
        lambda h: h.update(CLASS_NAMES_EACH_HEAD=[["Car"], ["Cyclist"]]),
        "must name each class of CLASS_NAMES once",
    ),
    "a head without a class": (
        lambda h: h.update(CLASS_NAMES_EACH_HEAD=[CLASS_NAMES, ["Bus"]]),
        "at least one in each head",
    ),
    "another stride": (
        lambda h: h["TARGET_ASSIGNER_CONFIG"].update(FEATURE_MAP_STRIDE=4),
        "FEATURE_MAP_STRIDE 4 gives 8 x 8 cells, but spatial_features_2d has 16 x 16",
    ),
    "an unknown branch": (
        lambda h: h["SEPARATE_HEAD_CFG"].update(HEAD_ORDER=["center", "iou"]),
        "HEAD_ORDER must be center, center_z, dim, rot",
    ),
    "a branch that is not described": (
        lambda h: h["SEPARATE_HEAD_CFG"]["HEAD_DICT"].pop("rot"),
        "HEAD_DICT must describe the branches of HEAD_ORDER",
    ),
    "a branch of the wrong width": (
        lambda h: h["SEPARATE_HEAD_CFG"]["HEAD_DICT"]["dim"].update(out_channels=4),
        r"HEAD_DICT.dim.out_channels must be 3; got 4",
    ),
    "a wrong type in a branch": (
        lambda h: h["SEPARATE_HEAD_CFG"]["HEAD_DICT"]["dim"].update(out_channels="3"),
        "HEAD_DICT.dim.out_channels must be a whole number, 1 or more; got '3'",
    ),
    "weights of another code": (
        lambda h: h["LOSS_CONFIG"]["LOSS_WEIGHTS"].update(code_weights=[1.0] * 10),
        "code_weights must have 8 entries",
    ),
    "NMS class by class": (
        lambda h: h["POST_PROCESSING"]["NMS_CONFIG"].update(MULTI_CLASSES_NMS=True),
        r"POST_PROCESSING\.NMS_CONFIG\.MULTI_CLASSES_NMS must be false for CenterHead",
    ),
    "one head for any class": (
        lambda h: h.update(CLASS_AGNOSTIC=True),
        "CLASS_AGNOSTIC must be false: .*not implemented; got True",
    ),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_a_config_with_a_fault_is_one_clear_error(fault: str) -> None:
    change, message = FAULTS[fault]
    config = center_config()
    change(config["DENSE_HEAD"])
    with pytest.raises(ConfigError, match=message):
        center_model(config)


def test_scores_of_an_anchor_head_are_not_asked_of_a_head_that_selects_itself() -> None:
    config = center_config()
    config["POST_PROCESSING"]["SCORE_THRESH"] = 0.1
    with pytest.raises(ConfigError, match=r"MODEL.POST_PROCESSING.SCORE_THRESH is not a key"):
        center_model(config)
    del config["POST_PROCESSING"]
    with pytest.raises(ConfigError, match=r"MODEL\.POST_PROCESSING is required"):
        center_model(config)
