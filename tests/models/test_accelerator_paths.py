"""The paths of a GPU, taken on the CPU: they avoid lists whose length the host would wait for."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from center_cases import center_batch, center_config, center_model
from several_heads_cases import built, labelled, several_config
from task_cases import grads, task_batch, task_config, task_model, unlabelled

from pcdet_freeze.ops.batch_voxels import voxelize_batch
from pcdet_freeze.ops.voxels import Voxelizer
from pcdet_freeze.utils import devices


def take_paths_of_a_gpu(patch: pytest.MonkeyPatch) -> None:
    for name, module in list(sys.modules.items()):
        if (
            name.startswith("pcdet_freeze.")
            and name != devices.__name__
            and hasattr(module, "is_accelerator")
        ):
            patch.setattr(module, "is_accelerator", lambda value: True)


def three_tasks() -> tuple[Any, dict[str, Any]]:
    given = task_batch((60, 50, 40))
    given["point_labels"][::3] = 255
    for label, frame in (("gt_boxes", 0), ("point_labels", 1), ("lane_map", 2)):
        given = unlabelled(given, label, frame)
    config = task_config("segment", "lane")
    config["POST_PROCESSING"] |= {"SCORE_THRESH": 0.001}
    config["POST_PROCESSING"]["NMS_CONFIG"] |= {"NMS_PRE_MAXSIZE": 60, "NMS_THRESH": 0.5}
    return task_model(config=config), given


def several() -> tuple[Any, dict[str, Any]]:
    return built(several_config("centers")), labelled([3], [1, 2])


def centre() -> tuple[Any, dict[str, Any]]:
    return center_model(center_config("PillarVFE")), center_batch()


@pytest.mark.parametrize("case", [three_tasks, centre, several])
def test_losses_and_gradients_are_those_of_the_cpu(monkeypatch: pytest.MonkeyPatch, case: Any) -> None:
    expected = grads(*case())
    take_paths_of_a_gpu(monkeypatch)
    for name, gradient in grads(*case()).items():
        assert torch.allclose(gradient, expected[name], rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("case", [three_tasks, centre, several])
def test_predictions_are_those_of_the_cpu(monkeypatch: pytest.MonkeyPatch, case: Any) -> None:
    model, given = case()
    with torch.no_grad():
        expected, recall = model.eval()(dict(given))
        take_paths_of_a_gpu(monkeypatch)
        found, recall_found = model(dict(given))
    assert recall_found == recall and len(expected[0]["pred_boxes"])
    for sample, other in zip(found, expected, strict=True):
        for key, value in sample.items():
            assert torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else True


def test_an_infinite_prediction_of_an_anchor_that_is_not_positive_gives_no_loss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    take_paths_of_a_gpu(monkeypatch)
    model, given = three_tasks()
    model.train()(dict(given))
    head = model.dense_head
    positive = (head.forward_ret_dict["box_cls_labels"] > 0).unsqueeze(-1)
    rows = head.rows
    head.rows = lambda outputs: torch.where(positive, rows(outputs), torch.inf)
    losses = head.get_box_reg_layer_loss()
    sum(losses.values()).backward()
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("max_voxels", [5, 1000])
def test_a_batch_is_voxelized_at_once_as_its_samples_are_bit_for_bit(max_voxels: int) -> None:
    random = np.random.RandomState(0)
    voxelizer = Voxelizer([0.5, 0.5, 4], [0, -5, -3, 10, 5, 1], 4, max_voxels, 4)
    clouds = [(random.rand(n, 4) * [14, 14, 6, 1] - [2, 7, 4, 0]).astype(np.float32) for n in (400, 0, 300)]
    rows = [np.insert(cloud, 0, number, axis=1) for number, cloud in enumerate(clouds)]
    voxels, coords, counts = voxelize_batch(voxelizer, torch.from_numpy(np.concatenate(rows)), 3)
    expected = [voxelizer(cloud) for cloud in clouds]
    assert np.array_equal(voxels, np.concatenate([each[0] for each in expected]))
    assert np.array_equal(coords[:, 1:], np.concatenate([each[1] for each in expected]))
    assert coords[:, 0].bincount(minlength=3).tolist() == [len(each[0]) for each in expected]
    assert np.array_equal(counts, np.concatenate([each[2] for each in expected]))
    assert devices.total_of(counts, 9) == counts.sum()


def test_a_batch_without_points_has_no_voxels() -> None:
    voxelizer = Voxelizer([0.5, 0.5, 4], [0, -5, -3, 10, 5, 1], 4, 9, 4)
    for points in (torch.zeros(0, 5), torch.full((3, 5), 99.0) * torch.tensor([0, 1, 1, 1, 1])):
        voxels, coords, counts = voxelize_batch(voxelizer, points, 2)
        assert voxels.shape == (0, 4, 4) and coords.shape == (0, 4) and counts.shape == (0,)


def test_a_sum_that_is_known_is_computed_again_once_the_counts_change() -> None:
    counts = devices.keep_total(torch.ones(2), 2)
    assert devices.total_of(counts, 9) == 2
    counts[0] = 5.0
    assert devices.total_of(counts, 9) == 6


def test_a_sum_that_is_not_known_counts_no_more_than_the_slots() -> None:
    assert devices.total_of(torch.tensor([3, 9, -1]), 5) == 8
