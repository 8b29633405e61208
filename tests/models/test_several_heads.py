"""Several dense heads (MODEL.DENSE_HEADS): new classes beside a detector that stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from center_cases import center_batch
from several_heads_cases import (
    FROZEN,
    NAMES,
    NEW,
    OLD,
    anchor_section,
    built,
    center_section,
    labelled,
    pair,
    several_config,
    single_config,
)
from torch import Tensor

from pcdet_freeze.errors import ConfigError
from pcdet_freeze.freezing import freeze
from pcdet_freeze.freezing.data_flow.drift_lint import lint
from pcdet_freeze.freezing.data_flow.module_graph import training_steps
from pcdet_freeze.freezing.data_flow.suggestion import suggest
from pcdet_freeze.models import model_faults
from pcdet_freeze.models.post_processing import PostProcessingSettings, class_agnostic_nms, post_process

KINDS = ["anchors", "centers"]


def run(model: Any) -> dict[str, Any]:
    """The batch after the modules of ``model``, in eval mode."""
    with torch.no_grad():
        return model.run_modules(center_batch())


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return len(a) == len(b) and all(map(equal, a, b)) if isinstance(a, list) else a == b


@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("second", KINDS)
def test_p2_the_first_head_gives_the_bits_that_it_gives_alone(first: str, second: str) -> None:
    old, new = pair(second, first)
    before, after = run(old), run(new)
    assert set(old.dense_head.writes) <= set(before)
    assert all(equal(before[key], after[key]) for key in old.dense_head.writes)
    assert equal(old.dense_head.forward_ret_dict, new.dense_head.forward_ret_dict)


@pytest.mark.parametrize("first", KINDS)
def test_the_first_head_has_the_parameters_of_a_single_head(first: str) -> None:
    old, new = built(single_config(first), "Car", "Pedestrian"), built(several_config(first=first))
    further = {name for name in new.state_dict() if name.startswith("cyclist_head.")}
    assert set(new.state_dict()) - further == set(old.state_dict())


def test_the_boxes_of_both_heads_go_through_one_nms() -> None:
    _, new = pair()
    batch = run(new)
    found, _ = new.post_processing(batch)
    settings: PostProcessingSettings = new.post_processing_settings
    keys = ["", "_cyclist_head"]
    for sample, one in enumerate(found):
        scores = [batch[f"batch_cls_preds{key}"][sample].sigmoid().max(dim=1) for key in keys]
        labels = torch.cat([scores[0].indices + 1, scores[1].indices + 3])
        boxes = torch.cat([batch[f"batch_box_preds{key}"][sample] for key in keys])
        chosen, kept = class_agnostic_nms(
            boxes, torch.cat([best.values for best in scores]), settings.nms_config, settings.score_thresh
        )
        assert torch.equal(one["pred_boxes"], boxes[chosen]) and torch.equal(one["pred_scores"], kept)
        assert torch.equal(one["pred_labels"], labels[chosen]) and set(OLD + NEW) >= set(labels.tolist())


@pytest.mark.parametrize("second", KINDS)
def test_with_nms_class_by_class_the_detections_of_the_first_head_stay_after_the_merge(second: str) -> None:
    nms = {"NMS_CONFIG": single_config()["POST_PROCESSING"]["NMS_CONFIG"] | {"MULTI_CLASSES_NMS": True}}
    old, new = pair(second, **nms)
    old.post_processing_settings = new.post_processing_settings
    for before, after in zip(old(center_batch())[0], new(center_batch())[0], strict=True):
        first = after["pred_labels"] <= 2
        assert first.any() and (~first).any()
        assert all(torch.equal(before[key], after[key][first]) for key in before)


def test_boxes_that_a_head_selects_itself_are_merged_with_their_scores_and_labels() -> None:
    _, new = pair("centers")
    batch = run(new)
    ([one, _], _) = new.post_processing(batch)
    own = batch["final_box_dicts_cyclist_head"][0]
    cyclists = one["pred_labels"] == 3
    rows = {tuple(row) for row in torch.cat([own["pred_boxes"], own["pred_scores"][:, None]], dim=1).tolist()}
    kept = torch.cat([one["pred_boxes"], one["pred_scores"][:, None]], dim=1)[cyclists].tolist()
    assert kept and {tuple(row) for row in kept} <= rows


def test_a_head_that_selects_nothing_leaves_the_boxes_of_the_others() -> None:
    old, new = pair("centers")
    batch = run(new)
    for found in batch["final_box_dicts_cyclist_head"]:
        found.update({key: value[:0] for key, value in found.items()})
    alone = post_process(run(old), new.post_processing_settings)[0]
    assert equal(new.post_processing(batch)[0], alone)


def test_labels_are_those_of_the_config_in_any_order_of_its_classes() -> None:
    config = several_config("centers")
    model = built(config, "Cyclist", "Pedestrian", "Car").eval()
    model.load_state_dict(built(config).state_dict())
    plain = built(config).eval()
    number = {old + 1: ["Cyclist", "Pedestrian", "Car"].index(name) + 1 for old, name in enumerate(NAMES)}
    for moved, found in zip(model(center_batch())[0], plain(center_batch())[0], strict=True):
        assert torch.equal(moved["pred_boxes"], found["pred_boxes"])
        assert moved["pred_labels"].tolist() == [number[label] for label in found["pred_labels"].tolist()]


@pytest.mark.parametrize("second", KINDS)
def test_targets_of_a_head_are_those_of_its_classes_in_any_order(second: str) -> None:
    config, given, losses = several_config(second), center_batch(), []
    for names in (NAMES, ["Cyclist", "Car", "Pedestrian"]):
        model = built(config, *names).train()
        boxes = given["gt_boxes"].clone()
        for label, name in enumerate(NAMES, 1):
            boxes[given["gt_boxes"][..., -1] == label, -1] = names.index(name) + 1
        losses.append(model(given | {"gt_boxes": boxes})[1])
    assert losses[0] == losses[1]


def test_each_head_has_losses_of_its_own_in_the_log() -> None:
    model = built(several_config("centers")).train()
    result, figures, _ = model(center_batch())
    assert {"loss_rpn", "rpn_loss_cls", "rpn_loss"} <= set(figures)
    assert {"loss_cyclist_head", "hm_loss_head_0_cyclist_head", "rpn_loss_cyclist_head"} <= set(figures)
    total = figures["loss_rpn"] + figures["loss_cyclist_head"]
    assert result["loss"].item() == pytest.approx(total, rel=1e-6)


def gradients(model: Any, batch: dict[str, Any], head: str) -> list[Tensor]:
    model.zero_grad()
    model.train()(batch)[0]["loss"].backward()
    return [parameter.grad for parameter in getattr(model, head).parameters()]


@pytest.mark.parametrize("second", KINDS)
@pytest.mark.parametrize("frames", [([3], [3]), ([1, 2], [1, 2]), ([1], [2]), ([1, 2, 3], [1, 2, 3])])
def test_frames_without_labels_for_the_classes_of_a_head_give_it_a_gradient_of_exactly_zero(
    second: str, frames: tuple[list[int], ...]
) -> None:
    model = built(several_config(second))
    for head, classes in {"dense_head": OLD, "cyclist_head": NEW}.items():
        found = gradients(model, labelled(*frames), head)
        learns = any(set(classes) <= set(frame) for frame in frames)
        assert any(grad.any() for grad in found) == learns
        assert all(grad is not None for grad in found)


@pytest.mark.parametrize("second", KINDS)
def test_a_frame_without_labels_for_a_head_changes_no_gradient_of_it(second: str) -> None:
    model, given = built(several_config(second)), labelled(NEW, OLD)
    other = given | {"gt_boxes": given["gt_boxes"].clone()}
    other["gt_boxes"][1] = 0
    first, second_ = (gradients(model, each, "cyclist_head") for each in (given, other))
    assert all(torch.equal(a, b) for a, b in zip(first, second_, strict=True))


def test_t1_a_frozen_first_head_is_skipped_and_the_new_head_alone_gives_a_loss() -> None:
    model = built(several_config("centers"))
    freeze(model, FROZEN)
    steps = training_steps(model)
    assert steps["dense_head"].how.name == "SKIP" and steps["cyclist_head"].loss
    figures = model.train()(labelled(NEW, NEW))[1]
    assert "loss_cyclist_head" in figures and "loss_rpn" not in figures


def test_p3_the_lint_and_the_suggestion_know_each_head_by_its_name() -> None:
    model = built(several_config())
    assert suggest(model, ["dense_head"]).entries == ("vfe", "backbone_2d", "dense_head")
    assert suggest(model, ["cyclist_head"]).losses == ("dense_head",)
    freeze(model, ["vfe", "cyclist_head"])
    (drift,) = lint(model)
    assert drift.frozen == ("cyclist_head",) and drift.feeders == ("backbone_2d",)
    assert drift.what == "detections"


def test_a_list_of_heads_is_numbered_from_the_first() -> None:
    config = several_config()
    config["DENSE_HEADS"] = list(config["DENSE_HEADS"].values())
    model = built(config)
    assert model.module_names[-2:] == ("dense_head", "dense_head_2")
    assert model.dense_head_2.class_names == ("Cyclist",)


def test_null_removes_a_head_of_a_base_config() -> None:
    config = several_config() | {"DENSE_HEAD": None}
    config["DENSE_HEADS"]["truck_head"] = None
    assert built(config).module_names[-2:] == ("dense_head", "cyclist_head")


def test_heads_compute_under_autocast() -> None:
    model = built(several_config("centers")).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result, figures, _ = model(center_batch())
    assert result["loss"].dtype == torch.float32
    plain = built(several_config("centers")).train()(center_batch())[1]
    assert figures == pytest.approx(plain, rel=0.15, abs=0.05)


def heads(config: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = config["DENSE_HEADS"]
    return found


FAULTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a class that two heads have": (
        lambda c: heads(c).update(cyclist_head=anchor_section("Car", "Cyclist")),
        r"DENSE_HEADS\.cyclist_head\.CLASS_NAMES must be classes that no other head has; got Car",
    ),
    "a class that no head has": (
        lambda c: heads(c).update(dense_head=anchor_section("Car")),
        r"DENSE_HEADS must have a head for each of CLASS_NAMES; no head has Pedestrian",
    ),
    "a class that the config does not have": (
        lambda c: heads(c)["cyclist_head"].update(CLASS_NAMES=["Cyclists"]),
        r"got Cyclists; did you mean Cyclist",
    ),
    "a head without classes": (
        lambda c: heads(c)["cyclist_head"].pop("CLASS_NAMES"),
        r"DENSE_HEADS\.cyclist_head\.CLASS_NAMES is required",
    ),
    "both keys": (
        lambda c: c.update(single_config()),
        r"DENSE_HEADS takes the place of MODEL\.DENSE_HEAD, but both are given",
    ),
    "the name of another module": (
        lambda c: heads(c).update(segment_head=heads(c).pop("cyclist_head")),
        r"DENSE_HEADS\.segment_head must be the name of a head",
    ),
    "a name that is none of a head": (
        lambda c: heads(c).update(Cyclist=heads(c).pop("cyclist_head")),
        r"DENSE_HEADS\.Cyclist must be the name of a head",
    ),
    "nothing": (lambda c: c.update(DENSE_HEADS=[]), r"MODEL\.DENSE_HEADS must be a mapping"),
    "one head without brackets": (
        lambda c: c.update(DENSE_HEADS="dense_head"),
        r"MODEL\.DENSE_HEADS must be a mapping .* got 'dense_head'",
    ),
    "a key that a head does not have": (
        lambda c: heads(c)["cyclist_head"].update(CLASSES=1),
        r"MODEL\.DENSE_HEADS\.cyclist_head\.CLASSES is not a key",
    ),
    "logits where a head gives probabilities": (
        lambda c: (
            c["POST_PROCESSING"].update(OUTPUT_RAW_SCORE=True)
            or heads(c).update(cyclist_head=center_section("Cyclist"))
        ),
        r"OUTPUT_RAW_SCORE must be False, since DENSE_HEADS\.cyclist_head gives probabilities",
    ),
    "boxes of different columns": (
        lambda c: heads(c).update(cyclist_head=center_section("Cyclist", velocity=True)),
        r"must predict boxes of the same columns; got dense_head 7, cyclist_head 9",
    ),
    "no post-processing": (lambda c: c.pop("POST_PROCESSING"), r"MODEL\.POST_PROCESSING is required"),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_a_config_with_a_fault_is_one_clear_error(fault: str) -> None:
    change, message = FAULTS[fault]
    config = several_config()
    change(config)
    with pytest.raises(ConfigError, match=message):
        built(config)
    if "columns" not in fault:  # the others are seen without a data set
        assert len(model_faults(config, NAMES)) == 1
