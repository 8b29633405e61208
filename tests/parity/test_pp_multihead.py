"""Parity of multi-head PointPillars with OpenPCDet, within the tolerances of the reference.

Compared: every figure of forward/nuscenes_cbgs_pp_multihead.json but ``eval_seconds`` and ``train_seconds``
(run times), and ``pred_labels``: the recipe fills integer tensors with 0, also the buffer
``head_label_indices`` from which OpenPCDet reads them, so that its labels are 0. Ours come from the config.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from anchor_golden import AnchorGolden, assert_rows_agree
from margin_nms import nms_with_margin
from pointpillar_golden import assert_summary
from torch.nn import functional as F

EVAL, TRAIN, EXACT, GRADIENT = 4e-6, 1e-5, 1e-9, 1e-3


@pytest.fixture(scope="module")
def golden(reference: Path) -> AnchorGolden:
    return AnchorGolden(reference, "nuscenes_cbgs_pp_multihead", "nuscenes_models__cbgs_pp_multihead")


@pytest.fixture(scope="module")
def evaluated(golden: AnchorGolden) -> Any:
    return golden.evaluate()


@pytest.fixture(scope="module")
def trained(golden: AnchorGolden) -> Any:
    return golden.train()


def assert_stages(golden: AnchorGolden, batch: dict[str, Any], stages: dict[str, Any], within: float) -> None:
    coords, pillars = golden.recipe.sort_rows(batch["voxel_coords"], batch["pillar_features"])
    assert_summary(golden.recipe, coords, stages["vfe.coords_sorted"], EXACT)
    found = {
        "vfe.pillar_features_sorted": pillars,
        "map_to_bev.spatial_features": batch["spatial_features"],
        "backbone_2d.spatial_features_2d": batch["spatial_features_2d"],
    }
    for key, value in found.items():
        assert_summary(golden.recipe, value, stages[key], within)


def assert_outputs(golden: AnchorGolden, model: Any, figures: dict[str, Any], within: float) -> None:
    """Class and box outputs of every group."""
    for key in ("cls_preds", "box_preds"):
        for group, found in enumerate(model.dense_head.forward_ret_dict[key]):
            assert_summary(golden.recipe, found, figures[f"dense_head.{key}.{group}"], within)


def test_golden_batch_equals_the_reference(golden: AnchorGolden) -> None:
    golden.assert_batch()


def test_every_stage_in_eval_mode_equals_openpcdet(golden: AnchorGolden, evaluated: Any) -> None:
    model, batch, _, _ = evaluated
    figures = golden.figures["eval"]
    assert_stages(golden, batch, figures, EVAL)
    assert sorted(model.dense_head.forward_ret_dict) == figures["dense_head.forward_ret_dict_keys"]
    assert_outputs(golden, model, figures, EVAL)


def test_anchors_and_decoded_boxes_equal_openpcdet(golden: AnchorGolden, evaluated: Any) -> None:
    model, batch, _, _ = evaluated
    figures, recipe = golden.figures["eval"], golden.recipe
    for anchors, expected, shape in zip(
        model.dense_head.anchors, figures["anchors"], figures["num_anchors"], strict=True
    ):
        # there as many columns as the box code has, beyond the heading zero
        widened = F.pad(anchors, (0, shape[-1] - 7))
        assert list(widened.shape) == shape
        assert_summary(recipe, widened, expected, EXACT)
    for group, logits in enumerate(batch["batch_cls_preds"]):
        assert_summary(recipe, logits, figures[f"decoded.batch_cls_preds.{group}"], EVAL)
    assert_summary(recipe, batch["batch_box_preds"], figures["decoded.batch_box_preds"], 1e-5)


def test_detections_equal_openpcdet_with_the_margin_of_its_rotated_overlap(
    golden: AnchorGolden, evaluated: Any
) -> None:
    model, batch, pred_dicts, recall_dict = evaluated
    figures, nms = golden.figures["eval"], model.post_processing_settings.nms_config
    for sample, expected in enumerate(figures["post_processing"]):
        found = {key: [] for key in ("pred_boxes", "pred_scores")}  # type: ignore[var-annotated]
        begin = 0
        for logits in batch["batch_cls_preds"]:
            boxes = batch["batch_box_preds"][sample, begin : begin + logits.shape[1]]
            begin += logits.shape[1]
            for scores in logits[sample].sigmoid().unbind(1):
                best = scores.sort(descending=True, stable=True).indices[: nms.nms_pre_maxsize]
                chosen = best[
                    nms_with_margin(boxes[best], scores[best], nms.nms_thresh, nms.nms_post_maxsize)
                ]
                found["pred_boxes"].append(boxes[chosen])
                found["pred_scores"].append(scores[chosen])
        together = {key: torch.cat(parts) for key, parts in found.items()}
        for key, rows in together.items():
            assert_rows_agree(golden, rows, together["pred_scores"], expected[key])
        assert list(pred_dicts[sample]) == list(expected)
        labels = pred_dicts[sample]["pred_labels"]
        assert labels.tolist() == sorted(labels.tolist()) and set(labels.tolist()) == set(range(1, 11))
        assert list(labels.shape) == expected["pred_labels"]["shape"]
        assert expected["pred_labels"]["abs_sum"] == 0
    assert recall_dict == figures["recall_dict"]


def test_training_loss_and_its_parts_equal_openpcdet(golden: AnchorGolden, trained: Any) -> None:
    figures, (_, _, loss, tb_dict) = golden.figures["train"], trained
    assert loss.item() == pytest.approx(figures["loss"], rel=1e-6)
    assert list(tb_dict) == list(figures["tb_dict"])
    assert tb_dict == pytest.approx(figures["tb_dict"], rel=1e-5)


def test_every_stage_in_train_mode_equals_openpcdet(golden: AnchorGolden, trained: Any) -> None:
    model, batch, _, _ = trained
    assert_stages(golden, batch, golden.figures["train"]["stages"], TRAIN)
    assert_outputs(golden, model, golden.figures["train"], TRAIN)


def test_targets_equal_openpcdet(golden: AnchorGolden, trained: Any) -> None:
    golden.assert_targets(trained[0].dense_head.forward_ret_dict)
    assert trained[1]["gt_boxes"].equal(torch.from_numpy(golden.batch["gt_boxes"]))
    assert golden.figures["train"]["gt_boxes_modified_in_place"] is False


def test_norm_and_sum_of_every_gradient_equal_openpcdet(golden: AnchorGolden, trained: Any) -> None:
    golden.assert_gradients(trained[0], GRADIENT)


def test_running_statistics_equal_openpcdet_after_one_forward(golden: AnchorGolden, trained: Any) -> None:
    golden.assert_running_statistics(trained[0], 1e-5)
