"""Post-processing of raw boxes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from pcdet_freeze.models.post_processing import (
    NMSSettings,
    PostProcessingSettings,
    class_agnostic_nms,
    post_process,
)
from pcdet_freeze.utils.settings.sections import read_section

NMS = NMSSettings(nms_type="nms_gpu", nms_thresh=0.1, nms_pre_maxsize=100, nms_post_maxsize=10)


def boxes_at(*xs: float) -> torch.Tensor:
    return torch.tensor([[x, 0.0, 0.0, 4.0, 2.0, 1.5, 0.0] for x in xs])


def settings(**changes: Any) -> PostProcessingSettings:
    nms = NMSSettings(**{**vars(NMS), **changes.pop("nms", {})})
    return PostProcessingSettings(nms, score_thresh=0.1, recall_thresh_list=(0.5,), **changes)


def test_overlapping_boxes_give_way_to_the_best_and_low_scores_go() -> None:
    boxes, scores = boxes_at(0, 1, 20, 40), torch.tensor([0.5, 0.9, 0.8, 0.05])
    chosen, kept = class_agnostic_nms(boxes, scores, NMS, 0.1)
    assert chosen.tolist() == [1, 2]
    assert kept.tolist() == pytest.approx([0.9, 0.8])


@pytest.mark.parametrize("nms_type", ["nms_gpu", "nms_normal_gpu"])
def test_no_more_than_the_post_maximum_is_kept(nms_type: str) -> None:
    limited = NMSSettings(nms_type, 0.1, nms_pre_maxsize=100, nms_post_maxsize=2)
    chosen, _ = class_agnostic_nms(boxes_at(0, 10, 20), torch.tensor([0.3, 0.4, 0.5]), limited, 0.1)
    assert chosen.tolist() == [2, 1]


def test_only_the_best_before_nms_take_part() -> None:
    limited = NMSSettings("nms_gpu", 0.1, nms_pre_maxsize=2, nms_post_maxsize=10)
    chosen, _ = class_agnostic_nms(boxes_at(0, 10, 20), torch.tensor([0.3, 0.4, 0.5]), limited, 0.1)
    assert chosen.tolist() == [2, 1]


def test_no_box_above_the_threshold_gives_no_detections() -> None:
    chosen, kept = class_agnostic_nms(boxes_at(0, 10), torch.tensor([0.05, 0.01]), NMS, 0.1)
    assert chosen.shape == kept.shape == (0,)


def test_classes_can_be_thinned_out_one_by_one() -> None:
    scores = torch.tensor([[0.9, 0.2], [0.8, 0.7]])
    batch = {"batch_size": 1, "batch_box_preds": boxes_at(0, 1)[None], "batch_cls_preds": scores[None]}
    one_by_one = PostProcessingSettings(replace(NMS, multi_classes_nms=True), 0.1)
    ([found], _) = post_process({**batch, "cls_preds_normalized": True}, one_by_one)
    assert found["pred_boxes"][:, 0].tolist() == [0, 1]
    assert found["pred_labels"].tolist() == [1, 2]
    assert found["pred_scores"].tolist() == pytest.approx([0.9, 0.7])


def raw_batch() -> dict[str, Any]:
    gt_boxes = torch.zeros(2, 2, 8)
    gt_boxes[0, 0] = torch.tensor([0.2, 0, 0, 4, 2, 1.5, 0, 2])
    return {
        "batch_size": 2,
        "batch_box_preds": boxes_at(0, 20).repeat(2, 1, 1),
        "batch_cls_preds": torch.tensor([[[-1.0, 2.0], [1.0, -5.0]], [[-9.0, -9.0], [-9.0, -9.0]]]),
        "gt_boxes": gt_boxes,
    }


def test_labels_count_from_one_and_scores_are_probabilities() -> None:
    (first, second), recall = post_process(raw_batch(), settings())
    assert first["pred_labels"].tolist() == [2, 1]
    assert first["pred_labels"].dtype == torch.int64
    torch.testing.assert_close(first["pred_scores"], torch.tensor([2.0, 1.0]).sigmoid())
    assert second["pred_boxes"].shape == (0, 7)
    assert recall == {"gt": 1, "roi_0.5": 0, "rcnn_0.5": 1}


def test_logits_can_be_given_as_scores() -> None:
    (first, _), _ = post_process(raw_batch(), settings(output_raw_score=True))
    assert first["pred_scores"].tolist() == [2.0, 1.0]


def test_normalised_scores_are_taken_as_they_are() -> None:
    batch = {**raw_batch(), "cls_preds_normalized": True}
    batch["batch_cls_preds"] = batch["batch_cls_preds"].sigmoid()
    plain, _ = post_process(raw_batch(), settings())
    found, _ = post_process(batch, settings())
    assert found[0]["pred_scores"].equal(plain[0]["pred_scores"])


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("raw_score", [False, True])
@pytest.mark.parametrize("thresh", [0.0, 0.3, 0.9])
def test_detections_are_those_of_all_anchors_bit_for_bit(groups: int, raw_score: bool, thresh: float) -> None:
    torch.manual_seed(0)
    raws = [torch.randn(1, 300, 2).round(decimals=1) for _ in range(groups)]  # with equal scores
    for raw in raws:
        raw[0, ::17, 0] = torch.nan
    boxes = torch.rand(1, 300 * groups, 7) * torch.tensor([60, 60, 1, 4, 2, 2, 6]) + 0.1
    given = {"multihead_label_mapping": [torch.tensor([1, 2]), torch.tensor([3, 4])][:groups]}
    batch = {"batch_size": 1, "batch_cls_preds": raws if groups > 1 else raws[0], "batch_box_preds": boxes}
    (found,), _ = post_process(
        batch | given, replace(settings(output_raw_score=raw_score), score_thresh=thresh)
    )

    all_raw, offset = torch.cat(raws, 1)[0], torch.arange(groups).repeat_interleave(300) * 2
    best, winner = all_raw.sigmoid().max(dim=1)
    chosen, kept = class_agnostic_nms(boxes[0], best, NMS, thresh)
    assert torch.equal(found["pred_boxes"], boxes[0, chosen])
    assert torch.equal(found["pred_labels"], (winner + 1 + offset)[chosen])
    assert torch.equal(found["pred_scores"], all_raw.max(dim=1).values[chosen] if raw_score else kept)


def test_recall_of_proposals_is_counted_too() -> None:
    batch = {**raw_batch(), "rois": boxes_at(0.2, 60).repeat(2, 1, 1)}
    _, recall = post_process(batch, settings(nms={"multi_classes_nms": True}))
    assert recall == {"gt": 1, "roi_0.5": 1, "rcnn_0.5": 1}


@pytest.mark.parametrize(("key", "value"), [("nms_type", "soft_nms"), ("nms_post_maxsize", 0)])
def test_settings_that_cannot_work_are_errors(key: str, value: Any) -> None:
    section = {name.upper(): known for name, known in {**vars(NMS), key: value}.items()}
    _, faults = read_section(NMSSettings, section, "NMS_CONFIG")
    assert len(faults) == 1 and faults[0].startswith(f"NMS_CONFIG.{key.upper()} must be")
