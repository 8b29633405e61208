"""Frozen heads (T1), partially frozen heads (T2), nothing left to train (T3), in complete detectors."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from model_cases import batch, model_config, small_model
from toy_parts import TASK_HEADS, ToyLaneHead, toy, toy_batch

from pcdet_freeze.errors import FreezeError
from pcdet_freeze.freezing import FreezePlan, freeze, frozen, unfreeze
from pcdet_freeze.freezing.data_flow.module_graph import explain_steps, require_loss, training_steps
from pcdet_freeze.models.detectors import Detector3DTemplate

HEADS = ("DENSE_HEAD", "LANE_HEAD")
TRAINED, EVALUATED = (True, True), (False, False)


def step(model: Any, *labels: str) -> dict[str, Any]:
    """One training forward and backward; returns ``tb_dict``."""
    result, tb_dict, _ = model.train()(toy_batch(*labels))
    result["loss"].backward()
    return tb_dict


def grads(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_t1_a_frozen_head_adds_no_loss_and_needs_no_labels() -> None:
    model = toy(*HEADS)
    freeze(model, ["dense_head"])
    assert list(step(model, "lane_label")) == ["loss_lane_head"]
    assert not any(name.startswith("dense_head") for name in grads(model))


def test_t1_a_frozen_head_without_readers_does_not_run_in_training() -> None:
    model = toy(*HEADS)
    freeze(model, ["dense_head"])
    step(model, "lane_label")
    assert model.dense_head.calls == []
    assert model.lane_head.calls == [TRAINED]


def test_t1_in_eval_mode_a_frozen_head_always_runs() -> None:
    model = toy(*HEADS)
    freeze(model, ["dense_head"])
    given = toy_batch()
    model.eval()(given)
    assert model.dense_head.calls == [(False, True)]
    assert {"proposals", "lanes"} <= set(given)


def test_t1_the_other_gradients_are_those_of_a_model_without_the_head() -> None:
    model, without = toy(*HEADS), toy("LANE_HEAD")
    without.load_state_dict(model.state_dict(), strict=False)
    freeze(model, ["dense_head"])
    for each in (model, without):
        each.lane_head.net[0].p = 0.0
        step(each, "lane_label")
    assert grads(model).keys() == grads(without).keys()
    assert all(torch.equal(grad, grads(without)[name]) for name, grad in grads(model).items())


def test_t1_a_frozen_head_read_by_a_trainable_head_runs_in_eval_mode_without_a_graph() -> None:
    model = toy("DENSE_HEAD", "ROI_HEAD")
    freeze(model, ["dense_head"])
    model.train()
    step(model, "label")
    assert model.dense_head.calls == [EVALUATED]
    assert model.roi_head.calls == [TRAINED]
    assert not model.dense_head.kept["value"].requires_grad


def test_t1_a_frozen_head_that_runs_leaves_labels_and_undeclared_keys_alone() -> None:
    model = toy("DENSE_HEAD", "ROI_HEAD")
    freeze(model, ["dense_head"])
    given = toy_batch("label")
    label = given["label"]
    model.train()(given)
    assert given["label"] is label
    assert "scratch" not in given and "proposals" in given
    assert model.roi_head.kept["target"] is label


def test_t1_a_frozen_head_is_in_train_mode_again_after_it_ran_as_in_eval() -> None:
    model = toy("DENSE_HEAD", "ROI_HEAD").train()
    handle = freeze(model, ["dense_head"])
    model(toy_batch("label"))
    assert model.dense_head.training and model.dense_head.out.training
    handle.release()
    assert model.dense_head.net[0].training


def test_t1_two_consecutive_frozen_heads_are_both_skipped() -> None:
    model = toy("DENSE_HEAD", "ROI_HEAD", "LANE_HEAD")
    freeze(model, ["dense_head", "roi_head"])
    step(model, "lane_label")
    assert model.dense_head.calls == model.roi_head.calls == []


def test_t1_a_frozen_trunk_without_trainable_readers_is_skipped_with_stateless_modules() -> None:
    model = toy("MAP_TO_BEV", *HEADS)
    freeze(model, ["dense_head"])
    step(model, "lane_label")
    assert model.map_to_bev_module.calls == []
    assert model.vfe.calls == [TRAINED]


def test_t1_without_frozen_modules_everything_runs() -> None:
    model = toy("MAP_TO_BEV", *HEADS)
    step(model, "label", "lane_label")
    assert model.map_to_bev_module.calls == [TRAINED]
    assert explain_steps(model) == []


def test_t1_a_head_with_unknown_readers_runs_and_the_reason_is_logged() -> None:
    model = toy("DENSE_HEAD", "MUTE_HEAD")
    freeze(model, ["dense_head"])
    step(model, "label")
    assert model.dense_head.calls == [EVALUATED]
    (line,) = explain_steps(model)
    assert line.startswith("dense_head gives no loss; in training it runs in eval mode")
    assert "mute_head does not declare what it reads" in line


def test_t1_a_frozen_head_without_declarations_runs_but_changes_no_label() -> None:
    model = toy("LANE_HEAD", "MUTE_HEAD")
    freeze(model, ["mute_head"])
    given = toy_batch("lane_label", "label")
    label = given["label"]
    model.train()(given)
    assert model.mute_head.calls == [EVALUATED]
    assert given["label"] is label and "mute" in given
    assert "does not declare what it writes" in explain_steps(model)[0]


def test_t1_a_detector_with_its_own_loss_skips_nothing_unless_it_declares_reads_train() -> None:
    class OwnLoss(Detector3DTemplate):
        def get_training_loss(self) -> Any:
            return super().get_training_loss()

    class ToldLoss(OwnLoss):
        reads_train = ("lanes",)

    for cls, calls in ((OwnLoss, [EVALUATED]), (ToldLoss, [])):
        model = toy(*HEADS)
        model.__class__ = cls
        freeze(model, ["dense_head"])
        step(model, "lane_label")
        assert model.dense_head.calls == calls
    assert Detector3DTemplate.reads_train == ()


def test_t1_with_parameters_false_a_named_head_keeps_its_loss() -> None:
    model = toy(*HEADS)
    freeze(model, FreezePlan(("dense_head",), parameters=False))
    assert list(step(model, "label", "lane_label")) == ["loss_rpn", "loss_lane_head"]


@pytest.mark.parametrize("entries", [["dense_head.out"], ["dense_head", "!dense_head.out"]])
def test_t2_a_partially_frozen_head_still_adds_its_loss(entries: list[str]) -> None:
    model = toy(*HEADS)
    freeze(model, entries)
    assert list(step(model, "label", "lane_label")) == ["loss_rpn", "loss_lane_head"]
    assert model.dense_head.calls == [TRAINED]


def test_t1_a_head_whose_parts_are_named_is_not_frozen_as_a_whole() -> None:
    model = toy(*HEADS)
    freeze(model, ["dense_head.*"])
    assert training_steps(model)["dense_head"].loss


def test_t1_the_decision_follows_every_freeze_unfreeze_and_copy() -> None:
    model = toy(*HEADS)
    both, one = ["loss_rpn", "loss_lane_head"], ["loss_lane_head"]
    with frozen(model, ["dense_head"]):
        assert list(step(model, "label", "lane_label")) == one
        twin = copy.deepcopy(model)
    assert list(step(model, "label", "lane_label")) == both
    assert list(step(twin, "label", "lane_label")) == one
    unfreeze(twin, ["dense_head.out"])
    assert list(step(twin, "label", "lane_label")) == both
    freeze(model, ["lane_head"])
    assert list(step(model, "label", "lane_label")) == ["loss_rpn"]


def test_t1_the_decision_is_cached_until_something_changes() -> None:
    model = toy(*HEADS)
    freeze(model, ["dense_head"])
    first = training_steps(model)
    assert training_steps(model) is first
    freeze(model, ["vfe"])
    assert training_steps(model) is not first


def test_t1_a_head_that_replaces_a_frozen_one_is_frozen_and_judged_anew() -> None:
    model = toy("DENSE_HEAD", "LANE_HEAD")
    freeze(model, ["lane_head"])
    step(model, "label")
    model.lane_head = ToyLaneHead({}, None)
    assert list(step(model, "label")) == ["loss_rpn"]
    assert model.lane_head.calls == []


def test_t1_a_saved_and_loaded_model_still_skips_its_frozen_head() -> None:
    model = toy(*HEADS)
    freeze(model, ["dense_head"])
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert list(step(loaded, "lane_label")) == ["loss_lane_head"]


def test_t1_a_learned_loss_weight_of_the_head_is_frozen_with_it() -> None:
    model = toy(*HEADS)
    model.dense_head.log_weight = torch.nn.Parameter(torch.zeros(()))
    freeze(model, ["dense_head"])
    assert not model.dense_head.log_weight.requires_grad


def test_t3_no_loss_left_is_an_error_that_names_the_heads() -> None:
    model = toy(*HEADS)
    freeze(model, ["dense_head", "lane_head"])
    with pytest.raises(FreezeError, match=r"all heads are fully frozen: dense_head, lane_head"):
        require_loss(model)
    with pytest.raises(FreezeError, match="At least one head must give a loss"):
        model.train()(toy_batch())


def with_lane_head() -> Any:
    """The small PointPillar with a second head on its map."""
    config = model_config()
    config["LANE_HEAD"] = {"NAME": "MapMean"}
    return small_model(config)


@TASK_HEADS.register
class MapMean(torch.nn.Module):
    """A head on the BEV map that needs no label."""

    reads, writes, reads_train = ("spatial_features_2d",), ("lanes",), ()

    def __init__(self, settings: Any, context: Any) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(16, 1, 1)

    def forward(self, batch_dict: dict[str, Any]) -> dict[str, Any]:
        batch_dict["lanes"] = self.last = self.conv(batch_dict["spatial_features_2d"])
        return batch_dict

    def get_loss(self, tb_dict: dict[str, float]) -> tuple[torch.Tensor, dict[str, float]]:
        return self.last.square().mean(), tb_dict

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "last"}


def test_t1_a_frozen_anchor_head_trains_on_without_gt_boxes_and_assigns_no_targets() -> None:
    model = with_lane_head()
    freeze(model, ["dense_head"])
    given = batch()
    del given["gt_boxes"]
    result, tb_dict, _ = model.train()(given)
    result["loss"].backward()
    assert list(tb_dict) == ["loss_lane_head"]
    assert model.dense_head.forward_ret_dict == {}
    assert all(p.grad is not None for n, p in model.named_parameters() if not n.startswith("dense_head"))


def test_t1_a_frozen_anchor_head_detects_as_before_when_all_before_it_is_frozen() -> None:
    model = with_lane_head()
    before, after = batch(), batch()
    model.eval()(before)
    freeze(model, ["vfe", "backbone_2d", "dense_head"])
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        model.train()(batch())[0]["loss"].backward()
        optimizer.step()
    model.eval()(after)
    assert torch.equal(before["batch_box_preds"], after["batch_box_preds"])
    assert not torch.equal(before["lanes"], after["lanes"])


def test_t2_an_anchor_head_with_a_frozen_convolution_adds_its_loss() -> None:
    model = small_model()
    freeze(model, ["dense_head.conv_cls"])
    assert "loss_rpn" in model.train()(batch())[1]


def test_t1_predictions_of_a_frozen_anchor_head_reach_a_trainable_refiner() -> None:
    config = model_config()
    config["ROI_HEAD"] = {"NAME": "BoxRefiner"}
    model = small_model(config)
    freeze(model, ["dense_head"])
    given = batch()
    boxes = given["gt_boxes"].clone()
    result, tb_dict, _ = model.train()(given)
    result["loss"].backward()
    assert list(tb_dict) == ["loss_rcnn"]
    assert given["gt_boxes"].equal(boxes)
    assert model.roi_head.scale.grad is not None
    assert not given["batch_box_preds"].requires_grad


@TASK_HEADS.register
class BoxRefiner(torch.nn.Module):
    reads, writes, reads_train = ("batch_box_preds",), ("batch_box_preds",), ("gt_boxes",)

    def __init__(self, settings: Any, context: Any) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(7))

    def forward(self, batch_dict: dict[str, Any]) -> dict[str, Any]:
        self.value = (batch_dict["batch_box_preds"] * self.scale).mean() - batch_dict["gt_boxes"].mean()
        return batch_dict

    def get_loss(self, tb_dict: dict[str, float]) -> tuple[torch.Tensor, dict[str, float]]:
        return self.value.square(), tb_dict
