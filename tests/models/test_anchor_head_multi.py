"""AnchorHeadMulti on a toy model: order of anchors, labels of groups, config errors, freezing."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from model_cases import batch, model_config, small_model

from pcdet_freeze.errors import ConfigError, DataError
from pcdet_freeze.freezing import freeze

Change = Callable[[dict[str, Any]], Any]
SEPARATE = {
    "NUM_MIDDLE_CONV": 1,
    "NUM_MIDDLE_FILTER": 4,
    "REG_LIST": ["reg:2", "height:1", "size:3", "angle:2"],
}


def multi_config(separate: bool = False) -> dict[str, Any]:
    """Two classes with one head each on a shared convolution."""
    config = model_config()
    head = config["DENSE_HEAD"]
    head.update(NAME="AnchorHeadMulti", USE_MULTIHEAD=True, SEPARATE_MULTIHEAD=True, SHARED_CONV_NUM_FILTER=8)
    head["RPN_HEAD_CFGS"] = [{"HEAD_CLS_NAME": ["Car"]}, {"HEAD_CLS_NAME": ["Pedestrian"]}]
    if separate:
        head["SEPARATE_REG_CONFIG"] = dict(SEPARATE)
        head["USE_DIRECTION_CLASSIFIER"] = False
        head["TARGET_ASSIGNER_CONFIG"]["BOX_CODER_CONFIG"] = {"code_size": 7, "encode_angle_by_sincos": True}
        head["LOSS_CONFIG"]["LOSS_WEIGHTS"]["code_weights"] = [1.0] * 8
        head["LOSS_CONFIG"]["REG_LOSS_TYPE"] = "WeightedL1Loss"
    config["POST_PROCESSING"]["NMS_CONFIG"]["MULTI_CLASSES_NMS"] = True
    return config


def multi_model(change: Change = lambda config: None, separate: bool = False) -> Any:
    config = multi_config(separate)
    change(config["DENSE_HEAD"])
    return small_model(config)


def test_an_anchor_and_the_cell_that_answers_for_it_stand_at_the_same_place() -> None:
    head = multi_model().eval().dense_head
    with torch.no_grad():
        conv = head.rpn_heads[1].conv_cls
        conv.weight.zero_()
        conv.bias.copy_(torch.tensor([1.0, 2.0]))
        state = head.predict(torch.randn(1, head.given.channels, 16, 16))
    (car, _), (walker, labels) = head.logits(state)
    anchors = head.anchor_generator.all(torch.device("cpu"))[car.shape[1] :]
    # all anchors of the first heading, then all of the second; x runs fastest
    assert labels == [2] and walker.shape == (1, 512, 1)
    assert walker[0, :, 0].tolist() == [1.0] * 256 + [2.0] * 256
    assert anchors[:256, 6].unique().tolist() == [0] and anchors[0, 1] == anchors[1, 1] < anchors[16, 1]


@pytest.mark.parametrize("separate", [False, True])
def test_a_perfect_code_decodes_to_the_box(separate: bool) -> None:
    model, given = multi_model(separate=separate).train(), batch()
    head = model.dense_head
    model(given)
    targets = head.forward_ret_dict["box_reg_targets"]
    sizes = [c.shape[1] for c in head.forward_ret_dict["cls_preds"]]
    boxes = head.decode({"box_preds": list(targets.split(sizes, dim=1))})
    for sample, found in enumerate(boxes):
        positive = head.forward_ret_dict["box_cls_labels"][sample] > 0
        labels = head.forward_ret_dict["box_cls_labels"][sample, positive]
        for box, label in zip(found[positive], labels, strict=True):
            torch.testing.assert_close(box, given["gt_boxes"][sample, label - 1, :7], rtol=1e-4, atol=1e-4)


def test_detections_carry_the_labels_of_their_group() -> None:
    model = multi_model().eval()
    with torch.no_grad():
        for group, bias in zip(model.dense_head.rpn_heads, (2.0, 3.0), strict=True):
            group.conv_cls.bias.fill_(bias)
    found = model(batch())[0][0]
    assert found["pred_labels"].unique().tolist() == [1, 2]
    assert (found["pred_scores"][found["pred_labels"] == 2] > 0.9).all()


def test_one_nms_for_all_groups_keeps_their_labels_too() -> None:
    config = multi_config()
    config["POST_PROCESSING"]["NMS_CONFIG"]["MULTI_CLASSES_NMS"] = False
    model = small_model(config).eval()
    torch.nn.init.constant_(model.dense_head.rpn_heads[1].conv_cls.bias, 4.0)
    assert model(batch())[0][0]["pred_labels"].unique().tolist() == [2]


def test_without_separate_columns_every_group_has_all_classes() -> None:
    model = multi_model(lambda head: head.update(SEPARATE_MULTIHEAD=False))
    assert [len(g.conv_cls.bias) for g in model.dense_head.rpn_heads] == [4, 4]
    model.train()(batch())[0]["loss"].backward()
    assert [labels for _, labels in model.dense_head.logits(model.dense_head.forward_ret_dict)] == [
        [1, 2]
    ] * 2


def test_the_share_of_negatives_in_the_class_loss_follows_its_weight() -> None:
    def loss(weight: float) -> float:
        weights = {"pos_cls_weight": 0.0, "neg_cls_weight": weight}
        model = multi_model(lambda head: head["LOSS_CONFIG"]["LOSS_WEIGHTS"].update(weights)).train()
        return float(model(batch())[1]["rpn_loss_cls"])

    assert loss(0.0) == 0.0
    assert loss(2.0) == pytest.approx(2 * loss(1.0), rel=1e-6)


FAULTS: dict[str, tuple[Change, str]] = {
    "a class in no head": (
        lambda h: h.update(RPN_HEAD_CFGS=[{"HEAD_CLS_NAME": ["Car"]}]),
        "RPN_HEAD_CFGS must name each class of ANCHOR_GENERATOR_CONFIG once, in the same order "
        "(Car, Pedestrian); got Car",
    ),
    "heads in another order": (lambda h: h["RPN_HEAD_CFGS"].reverse(), "got Pedestrian, Car"),
    "columns that do not add up": (
        lambda h: h["SEPARATE_REG_CONFIG"].update(REG_LIST=["reg:2", "size:3"]),
        "REG_LIST must add up to the 8 columns of the box code; got 5",
    ),
    "an entry without columns": (
        lambda h: h["SEPARATE_REG_CONFIG"].update(REG_LIST=["reg"]),
        "SEPARATE_REG_CONFIG.REG_LIST[0] must be NAME:COLUMNS, such as size:3; got 'reg'",
    ),
    "weights for another code": (
        lambda h: h["LOSS_CONFIG"]["LOSS_WEIGHTS"].update(code_weights=[1.0] * 7),
        "code_weights must have 8 entries, one a column of the box code; got 7",
    ),
    "two ways to say where a box points": (
        lambda h: h.update(USE_DIRECTION_CLASSIFIER=True),
        "USE_DIRECTION_CLASSIFIER and encode_angle_by_sincos both encode the direction",
    ),
    "not multi": (lambda h: h.update(USE_MULTIHEAD=False), "USE_MULTIHEAD must be true for AnchorHeadMulti"),
    "an unknown coder": (
        lambda h: h["TARGET_ASSIGNER_CONFIG"].update(BOX_CODER="PointResidualCoder"),
        "BOX_CODER must be one of ResidualCoder, PreviousResidualDecoder",
    ),
}


@pytest.mark.parametrize("case", list(FAULTS))
def test_an_invalid_config_is_a_clear_error(case: str) -> None:
    change, message = FAULTS[case]
    with pytest.raises(ConfigError, match=re.escape(message)):
        multi_model(change, separate=True)


def test_boxes_with_a_velocity_need_a_code_with_one() -> None:
    given = batch()
    given["gt_boxes"] = torch.nn.functional.pad(given["gt_boxes"], (2, 0))
    with pytest.raises(DataError, match=r"boxes of 7 columns, so gt_boxes must have 8.*got 10"):
        multi_model().train()(given)


LISTS = {
    "all but one group": ["vfe", "backbone_2d", "dense_head.shared_conv", "dense_head.rpn_heads.0"],
    "the shared part": ["vfe", "backbone_2d.blocks"],
    "the groups' convolutions of boxes": ["dense_head.rpn_heads.*.conv_box"],
}


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("names", list(LISTS.values()), ids=list(LISTS))
def test_five_frozen_steps_keep_the_contract(separate: bool, names: list[str]) -> None:
    model = multi_model(separate=separate).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    handle = freeze(model, names)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(5):
        model.train()
        optimizer.zero_grad()
        model(batch())[0]["loss"].backward()
        optimizer.step()
    handle.verify()
    frozen = {f"{name}.{key}" for name in handle.names for key in model.get_submodule(name).state_dict()}
    for key, value in model.state_dict().items():
        if key in frozen:
            assert value.equal(before[key]), key
        # signs in the gradient of L1 may cancel in a bias
        elif key.endswith(("weight", "running_mean", "num_batches_tracked")):
            assert not value.equal(before[key]), key
