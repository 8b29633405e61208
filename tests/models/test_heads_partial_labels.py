"""Frames with labels for some tasks only: a task learns from the frames that have its labels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from center_cases import center_batch, center_config, center_model
from task_cases import bare, grads, task_batch, task_model, unlabelled

LABELS = {"gt_boxes": "loss_rpn", "point_labels": "loss_segment_head", "lane_map": "loss_lane_head"}


def losses(model: Any, batch_dict: dict[str, Any]) -> dict[str, float]:
    return model.train()(dict(batch_dict))[1]


@pytest.mark.parametrize("label", LABELS)
def test_the_loss_of_a_mixed_batch_is_that_of_its_labelled_frames(label: str) -> None:
    model, both = task_model("segment", "lane"), task_batch((60, 50))
    model.eval()  # statistics of the batch must not tell the frames apart
    heads = {"gt_boxes": model.dense_head, "point_labels": model.segment_head, "lane_map": model.lane_head}
    heads[label].training = True
    for head in heads.values():
        head.point_layers.eval() if hasattr(head, "point_layers") else None
    mixed, found = unlabelled(both, label, 1), []
    for given in (mixed, first_of(both)):
        model_batch = dict(given)
        for module in model.module_list:
            module(model_batch)
        found.append(heads[label].get_loss()[0].item())
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def first_of(batch_dict: dict[str, Any]) -> dict[str, Any]:
    """The first sample of a batch."""
    made = dict(batch_dict) | {"batch_size": 1}
    pillars, points = batch_dict["voxel_coords"][:, 0] == 0, batch_dict["points"][:, 0] == 0
    for key in ("voxels", "voxel_coords", "voxel_num_points"):
        made[key] = batch_dict[key][pillars]
    for key in ("points", "point_labels"):
        made[key] = batch_dict[key][points]
    return made | {key: batch_dict[key][:1] for key in ("gt_boxes", "lane_map")}


@pytest.mark.parametrize("label", LABELS)
def test_boxes_in_an_unlabelled_frame_have_no_effect(label: str) -> None:
    given = unlabelled(task_batch(), label, 0)
    other = dict(given) | {label: given[label].clone()}
    rows = other["points"][:, 0] == 0 if label == "point_labels" else torch.tensor([True, False])
    other[label][rows] = 1
    found = [grads(task_model("segment", "lane"), each) for each in (given, other)]
    assert all(torch.equal(grad, found[1][name]) for name, grad in found[0].items())


@pytest.mark.parametrize("label", LABELS)
def test_a_batch_without_any_label_of_a_task_gives_zero_gradients_not_none(label: str) -> None:
    model = task_model("segment", "lane")
    missing = bare(task_batch(), label)
    assert losses(model, missing)[LABELS[label]] == 0
    found = grads(model, missing)
    assert found.keys() == dict(model.named_parameters()).keys()
    head = {"gt_boxes": "dense_head", "point_labels": "segment_head", "lane_map": "lane_head"}[label]
    assert not any(grad.any() for name, grad in found.items() if name.startswith(head))
    assert any(grad.any() for grad in found.values())


def test_flags_that_say_all_frames_are_labelled_change_nothing() -> None:
    flags = {f"has_{label}": torch.ones(2, dtype=torch.bool) for label in LABELS}
    plain, flagged = (grads(task_model("segment", "lane"), task_batch() | more) for more in ({}, flags))
    assert all(torch.equal(grad, flagged[name]) for name, grad in plain.items())


def test_centre_heads_learn_from_labelled_frames_only_too() -> None:
    model, given = center_model(), center_batch()
    model.train()(unlabelled_boxes(given, [True, False]))
    state = model.dense_head.forward_ret_dict
    assert [len(targets.heatmaps) for targets in state["targets"]] == [1] * len(state["targets"])
    loss = model.train()(unlabelled_boxes(given, [False, False]))[0]["loss"]
    loss.backward()
    assert loss == 0
    assert all(p.grad is not None for p in model.parameters())


def test_a_batch_without_boxes_fits_heads_with_velocities_too() -> None:
    model = center_model(center_config(velocity=True))
    loss = model.train()(bare(center_batch(), "gt_boxes"))[0]["loss"]
    loss.backward()
    assert loss == 0
    assert all(p.grad is not None for p in model.parameters())


def unlabelled_boxes(batch_dict: dict[str, Any], flags: list[bool]) -> dict[str, Any]:
    return dict(batch_dict) | {"has_gt_boxes": torch.tensor(flags)}
