"""T1 to T3 in detectors of OpenPCDet, which add the losses of their heads in their own code."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from standin_runs import CONFIGS, Standin, batch_of, seed
from torch import nn

from pcdet_freeze import FreezeError, openpcdet
from pcdet_freeze.freezing.eval_lock import requested_mode

IN_ORDER = ("dense_head", "vfe", "point_head", "roi_head", "backbone_3d")
"""modules with a loss, in the order in which the detectors add them"""
INLINE = ("transfusion", "bevfusion")
TRUNKS = {
    "caddn": ["backbone_2d"],
    "pv_rcnn_focal": ["backbone_2d"],
    **{name: ["backbone_3d", "backbone_2d"] for name in ("parta2", "pv_rcnn", "pv_rcnn_plusplus")},
}
"""modules that only the loss of dense_head reaches: they must be frozen with it (H11)"""
ONLY_LOSS = {"mppnet_e2e": "dense_head"}
"""modules whose loss the detector ignores"""


@pytest.fixture(autouse=True)
def plugin(standin: Standin) -> None:
    openpcdet.install()


def with_loss(model: nn.Module) -> list[str]:
    return [name for name in IN_ORDER if hasattr(getattr(model, name, None), "get_loss")]


def entries(config: str, head: str) -> list[str]:
    """A list that freezes ``head`` and the modules that no other loss reaches."""
    return [head, *(TRUNKS.get(config, []) if head == "dense_head" else [])]


def forward(model: nn.Module) -> tuple[torch.Tensor, dict[str, Any], dict[str, Any]]:
    """(loss, tb_dict, batch) of one training forward."""
    seed(1)
    batch = batch_of()
    result, tb_dict, _ = model(batch)
    return result["loss"], tb_dict, batch


def sum_of(model: nn.Module, names: list[str]) -> torch.Tensor:
    """The losses of the named modules in the last forward, added in order."""
    losses = [getattr(model, name).get_loss({})[0] for name in names]
    total = losses[0]
    for loss in losses[1:]:
        total = total + loss
    return total


CASES = [(config, head) for config in CONFIGS for head in IN_ORDER]


@pytest.mark.parametrize(("config", "head"), CASES)
def test_t1_the_loss_equals_the_sum_of_the_other_losses_bit_for_bit(
    standin: Standin, config: str, head: str
) -> None:
    """For each loss of each detector; without a remaining loss the error names the detector."""
    names = with_loss(standin.build(config))
    if head not in names:
        return
    rest = [name for name in names if name != head]
    if not rest or ONLY_LOSS.get(config) == head:
        with pytest.raises(FreezeError, match=r"loss.*NOT_TRAIN_IN_MULTI_TASK"):
            forward(standin.build(config, [head]))
        return
    model = standin.build(config, entries(config, head))
    loss, _, batch = forward(model)
    counted = [name for name in rest if ONLY_LOSS.get(config, name) == name]
    assert torch.equal(loss, sum_of(model, counted)) and loss.requires_grad
    assert torch.equal(batch["gt_boxes"], batch_of()["gt_boxes"]) or head != "dense_head"


@pytest.mark.parametrize("head", ["dense_head", "point_head", "roi_head"])
@pytest.mark.parametrize("config", ["pv_rcnn", "parta2"])
def test_t1_a_frozen_head_assigns_no_targets_and_needs_no_labels(
    standin: Standin, config: str, head: str
) -> None:
    model = standin.build(config, entries(config, head))
    forward(model)
    assert getattr(model, head).assigned == 0
    for other in {"dense_head", "point_head", "roi_head"} - {head}:
        assert getattr(model, other).assigned == 1


def test_t1_a_frozen_head_changes_no_labels_for_the_trainable_heads(standin: Standin) -> None:
    _, _, batch = forward(standin.build("voxel_rcnn"))
    assert not torch.equal(
        batch["gt_boxes"], batch_of()["gt_boxes"]
    )  # this head writes into them in training
    _, _, batch = forward(standin.build("voxel_rcnn", ["dense_head"]))
    assert torch.equal(batch["gt_boxes"], batch_of()["gt_boxes"])


def test_t1_a_frozen_head_does_not_overwrite_keys_of_the_batch(standin: Standin) -> None:
    head = standin.module("pcdet.models.parts").DenseHead
    plain = head.forward

    def replacing(self: nn.Module, batch_dict: dict[str, Any]) -> dict[str, Any]:
        batch_dict["gt_boxes"] = batch_dict["gt_boxes"] + 1
        return plain(self, batch_dict)

    head.forward = replacing
    _, _, batch = forward(standin.build("second_iou", ["dense_head"]))
    assert torch.equal(batch["gt_boxes"], batch_of()["gt_boxes"]) and "batch_box_preds" in batch


def test_t1_a_frozen_head_whose_outputs_are_used_runs_in_eval_mode_without_a_graph(
    standin: Standin,
) -> None:
    model = standin.build("second_iou", ["dense_head"])
    _, _, batch = forward(model)
    assert not batch["batch_box_preds"].requires_grad
    assert len(batch["rois"]) == 4 and model.roi_head.assigned == 1
    features = batch["spatial_features_2d"].detach()
    expected = model.dense_head.conv_box(features)
    assert torch.equal(batch["batch_box_preds"], expected)


def test_t1_the_training_flag_of_a_frozen_head_is_restored_after_each_forward(standin: Standin) -> None:
    model = standin.build("pv_rcnn", ["roi_head"])
    forward(model)
    assert all(requested_mode(module) for module in model.roi_head.modules())
    assert model.roi_head.training and not model.roi_head.shared_fc_layer[1].training


def test_t1_the_logged_loss_of_a_frozen_head_is_zero(standin: Standin) -> None:
    _, tb_dict, _ = forward(standin.build("caddn", ["vfe"]))
    assert tb_dict["loss_depth"] == 0.0 and "ddn_loss" not in tb_dict


def test_h9_a_frozen_backbone_with_a_loss_gives_no_loss_and_keeps_its_graph(standin: Standin) -> None:
    parts = standin.module("pcdet.models.parts")
    parts.MeanVFE = parts.PillarVFE  # something that trains in front of it
    model = standin.build("pv_rcnn_focal", ["backbone_3d"])
    _, tb_dict, batch = forward(model)
    assert "loss_box_of_pts" not in tb_dict and model.backbone_3d.training
    assert batch["encoded"].requires_grad


def test_t1_a_detector_may_call_a_frozen_head_directly(standin: Standin) -> None:
    model = standin.build("pv_rcnn_plusplus", ["roi_head"])
    loss, _, batch = forward(model)
    assert torch.equal(loss, sum_of(model, ["dense_head", "point_head"]))
    assert "batch_cls_preds" in batch  # as in eval


def test_t1_a_frozen_head_is_unchanged_in_eval_mode(standin: Standin) -> None:
    frozen, plain = (
        standin.build("pv_rcnn", ["dense_head", "roi_head"]).eval(),
        standin.build("pv_rcnn").eval(),
    )
    results = [model(batch_of())[0][0]["pred_scores"] for model in (frozen, plain)]
    assert torch.equal(*results) and results[0].requires_grad


def test_t2_a_partly_frozen_head_gives_its_loss(standin: Standin) -> None:
    model = standin.build("pv_rcnn", ["dense_head.conv_cls"])
    loss, _, _ = forward(model)
    assert torch.equal(loss, sum_of(model, ["dense_head", "point_head", "roi_head"]))
    assert model.dense_head.assigned == 1


def test_t1_parameters_false_keeps_every_loss(standin: Standin) -> None:
    model = standin.build("pv_rcnn", ["dense_head"], PARAMETERS=False)
    loss, _, _ = forward(model)
    assert torch.equal(loss, sum_of(model, ["dense_head", "point_head", "roi_head"]))


@pytest.mark.parametrize("config", [name for name in CONFIGS if name not in INLINE])
def test_t3_freezing_every_head_is_an_error_at_build(standin: Standin, config: str) -> None:
    model = standin.build(config)
    with pytest.raises(FreezeError, match=f"in {type(model).__name__} every head is fully frozen"):
        standin.build(config, with_loss(model))


@pytest.mark.parametrize("config", INLINE)
def test_t3_freezing_a_head_that_computes_its_loss_in_forward_is_an_error(
    standin: Standin, config: str
) -> None:
    kind = type(standin.build(config)).__name__
    with pytest.raises(FreezeError, match=f"in {kind} every head is fully frozen: dense_head"):
        standin.build(config, ["dense_head"])
    loss, _, _ = forward(standin.build(config, ["backbone_2d", "dense_head.decoder"]))
    assert loss.requires_grad


def test_t1_a_detector_that_needs_train_mode_outputs_of_a_frozen_head_is_an_error(standin: Standin) -> None:
    """One of two heads stores its loss in the batch: it is not silently frozen in part."""
    model = standin.build("transfusion", ["backbone_2d"])
    openpcdet.uninstall()
    model.lane_head = nn.Linear(8, 1)
    standin.module("pcdet.models.detectors").build_detector = lambda **_: model
    standin.module("pcdet.models").build_detector = lambda **_: model
    openpcdet.install()
    built = standin.build("transfusion", ["dense_head"])
    with pytest.raises(
        FreezeError, match=r"TransFusion cannot be trained with dense_head fully frozen.*'loss'"
    ):
        forward(built)


def test_t3_a_detector_that_ignores_the_remaining_loss_is_an_error(standin: Standin) -> None:
    model = standin.build("mppnet_e2e", ["dense_head"])
    with pytest.raises(FreezeError, match="loss of MPPNetE2E does not depend on any trainable parameter"):
        forward(model)


def test_t1_copies_and_pickles_of_a_frozen_detector_give_no_loss_of_frozen_heads(standin: Standin) -> None:
    model = standin.build("pv_rcnn", ["point_head"])
    twins = (copy.deepcopy(model), pickle.loads(pickle.dumps(model)))
    loss, _, _ = forward(model)
    for twin in twins:
        again, _, _ = forward(twin)
        assert torch.equal(again, loss)
        assert twin.point_head.assigned == 0 and model.point_head.assigned == 0
