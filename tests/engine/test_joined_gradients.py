"""A frame of a joined set teaches the tasks that it has labels for, and gives others a gradient of zero."""

from __future__ import annotations

from typing import Any

import pytest
from concat_sets import FIRST, joined
from task_cases import task_model
from torch import nn

from pcdet_freeze.models import load_data_to_gpu

HEADS = {"boxes": "dense_head", "clouds": "segment_head", "lanes": "lane_head"}
FEATURES = {"dense_head": "spatial_features_2d", "segment_head": "seg_features_2d",
            "lane_head": "lane_features_2d"}  # fmt: skip


def batch_of(*sets: str) -> dict[str, Any]:
    dataset = joined()
    batch = dataset.collate_batch([dataset[FIRST[name] + n % 2] for n, name in enumerate(sets)])
    load_data_to_gpu(batch, "cpu")
    return batch


@pytest.mark.parametrize("name", HEADS)
def test_frames_without_the_label_of_a_task_give_its_head_a_gradient_of_exactly_zero(name: str) -> None:
    model = task_model("segment", "lane")
    model.train()(batch_of(*(other for other in HEADS if other != name)))[0]["loss"].backward()
    mine = [p.grad for p in getattr(model, HEADS[name]).parameters()]
    assert all(grad is not None and not grad.any() for grad in mine)
    for other in (other for other in HEADS if other != name):
        assert any(p.grad.any() for p in getattr(model, HEADS[other]).parameters())


@pytest.mark.parametrize("name", HEADS)
def test_in_a_mixed_batch_a_heads_gradient_is_zero_at_the_frames_of_other_sets(name: str) -> None:
    model, head = task_model("segment", "lane").train(), HEADS[name]
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.eval()  # statistics of a batch are those of all of its frames
    batch = model.run_modules(batch_of(*HEADS))
    batch[FEATURES[head]].retain_grad()
    model.get_head_losses()[0][head].backward()
    touched = [bool(grad.any()) for grad in batch[FEATURES[head]].grad]
    assert touched == [other == name for other in HEADS]


def test_the_loss_of_a_task_is_that_of_its_own_frames() -> None:
    model = task_model("segment", "lane").train()
    told = model(batch_of("boxes", "boxes"))[1]
    assert told["loss_rpn"] > 0 and told["loss_segment_head"] == told["loss_lane_head"] == 0
