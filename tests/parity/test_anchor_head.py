"""Parity of anchors, targets, box coders, head losses and detections with OpenPCDet."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pointpillar_golden import Golden, assert_summary, load_json, load_recipe, padded_boxes
from torch.nn import functional as F

from pcdet_freeze.models.dense_heads import (
    AnchorClass,
    AnchorGenerator,
    AxisAlignedTargetAssigner,
    PreviousResidualDecoder,
    ResidualCoder,
)
from pcdet_freeze.models.post_processing import post_process
from pcdet_freeze.utils.settings.faults import raise_faults
from pcdet_freeze.utils.settings.sections import read_section

CPU = torch.device("cpu")
# PV-RCNN is not implemented, but its first stage has the anchors of SECOND
CONFIGS = {
    "kitti_models/pointpillar": "kitti_models/pointpillar",
    "kitti_models/second": "kitti_models/second",
    "kitti_models/pv_rcnn": "kitti_models/second",
    "kitti_models/second_multihead": "kitti_models/second_multihead",
    "nuscenes_models/cbgs_pp_multihead": "nuscenes_models/cbgs_pp_multihead",
    "waymo_models/pointpillar_1x": "waymo_models/pointpillar_1x",
    "once_models/second": "once_models/second",
}


class Case:
    """One config's anchors and targets."""

    def __init__(self, reference: Path, name: str) -> None:
        self.figures = load_json(reference / "anchors_targets.json")[f"cfgs/{name}.yaml"]
        self.recipe = load_recipe(reference)
        config = load_json(reference / "configs" / f"{CONFIGS[name].replace('/', '__')}.json")
        head = config["MODEL"]["DENSE_HEAD"]
        sections = head["ANCHOR_GENERATOR_CONFIG"]
        read = [read_section(AnchorClass, section, "anchors") for section in sections]
        raise_faults([fault for _, faults in read for fault in faults])
        classes = [found for found, _ in read]
        limits, by_class = config["DATA_CONFIG"]["POINT_CLOUD_RANGE"], head.get("USE_MULTIHEAD", False)
        grid = self.figures["grid_size"]
        self.generator = AnchorGenerator([c for c in classes if c], limits, grid, by_class)
        coder = ResidualCoder(**head["TARGET_ASSIGNER_CONFIG"].get("BOX_CODER_CONFIG", {}))
        self.assigner = AxisAlignedTargetAssigner(self.generator.classes, config["CLASS_NAMES"], coder)


@pytest.fixture(scope="module", params=list(CONFIGS))
def case(reference: Path, request: pytest.FixtureRequest) -> Case:
    return Case(reference, request.param)


def test_anchors_equal_openpcdet_bit_for_bit(case: Case) -> None:
    each, found = case.figures["num_anchors_per_location"], case.generator.num_per_location
    assert found == (sum(each) if case.generator.by_class else each)
    for anchors, expected in zip(case.generator.anchors, case.figures["anchors"], strict=True):
        # boxes with a velocity have as many columns as their code, the anchors' zero
        anchors = F.pad(anchors, (0, expected["shape"][-1] - 7))
        assert_summary(case.recipe, anchors, expected, 1e-9)
        assert hashlib.sha256(anchors.contiguous().numpy().tobytes()).hexdigest() == expected["sha256"]


def test_assigned_targets_equal_openpcdet(case: Case) -> None:
    gt_boxes = torch.from_numpy(padded_boxes(case.figures["gt_boxes"]))
    found = case.assigner.assign_targets(case.generator.per_class(CPU), gt_boxes)
    for key, expected in case.figures["targets"].items():
        assert_summary(case.recipe, found[key], expected, 1e-6)
    labels = found["box_cls_labels"]
    assert str(labels.dtype) == case.figures["label_dtype"]
    assert (labels == 0).sum(dim=1).tolist() == case.figures["num_neg"]
    assert (labels == -1).sum(dim=1).tolist() == case.figures["num_ignore"]
    assert found["reg_weights"].sum(dim=1).tolist() == case.figures["reg_weights_sum"]
    for number, name in enumerate(case.figures["num_pos_per_class"], start=1):
        assert (labels == number).sum(dim=1).tolist() == case.figures["num_pos_per_class"][name]
    for sample, rows in enumerate(case.figures["pos"]):
        assert_positives(labels[sample], found["box_reg_targets"][sample], np.array(rows))


def assert_positives(labels: torch.Tensor, targets: torch.Tensor, rows: np.ndarray) -> None:
    """``rows`` are the first positives: [index, label, targets rounded to 1e-6]."""
    rows = rows.reshape(-1, 2 + targets.shape[1])
    index = (labels > 0).nonzero()[:, 0][: len(rows)].numpy()
    np.testing.assert_array_equal(index, rows[:, 0])
    np.testing.assert_array_equal(labels[index], rows[:, 1])
    np.testing.assert_allclose(targets[index], rows[:, 2:], rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def golden(reference: Path) -> Golden:
    return Golden(reference)


@pytest.fixture(scope="module")
def head_figures(reference: Path) -> dict[str, Any]:
    return load_json(reference / "head_only.json")["kitti_pointpillar"]


def synthetic_predictions() -> list[torch.Tensor]:
    """Class, box and direction predictions of the recipe, as maps."""
    flat = [
        np.random.RandomState(4000).randn(2, 92256, 3) - 3,
        np.random.RandomState(4001).randn(2, 92256, 7) * 0.3,
        np.random.RandomState(4002).randn(2, 92256, 2),
    ]
    return [torch.from_numpy(values).float().view(2, 124, 124, -1).requires_grad_() for values in flat]


def test_head_losses_and_their_gradients_equal_openpcdet(
    golden: Golden, head_figures: dict[str, Any]
) -> None:
    head, predictions = golden.model().dense_head, synthetic_predictions()
    names = ("cls_preds", "box_preds", "dir_cls_preds")
    targets = head.assign_targets(torch.from_numpy(golden.batch["gt_boxes"]))
    head.forward_ret_dict = {**dict(zip(names, predictions, strict=True)), **targets}
    loss, tb_dict = head.get_loss()
    loss.backward()
    assert loss.item() == pytest.approx(head_figures["loss"], rel=1e-6)
    assert tb_dict == pytest.approx(head_figures["tb"], rel=1e-6)
    for prediction, key in zip(predictions, ("cls", "box", "dir"), strict=True):
        assert_summary(golden.recipe, prediction.grad, head_figures["grads"][key], 1e-5)


def test_decoded_boxes_and_detections_equal_openpcdet(golden: Golden, head_figures: dict[str, Any]) -> None:
    model = golden.model()
    state = dict(zip(("cls_preds", "box_preds", "dir_cls_preds"), synthetic_predictions(), strict=True))
    with torch.no_grad():
        ((logits, _),), boxes = model.dense_head.logits(state), model.dense_head.decode(state)
    assert_summary(golden.recipe, logits, head_figures["decoded"]["cls"], 1e-6)
    assert_summary(golden.recipe, boxes, head_figures["decoded"]["box"], 1e-5)
    batch = {"batch_cls_preds": logits, "batch_box_preds": boxes, "batch_size": 2}
    detections, _ = post_process(batch, model.post_processing_settings)
    for found, expected in zip(detections, head_figures["final"], strict=True):
        assert len(found["pred_scores"]) == expected["n"]
        assert found["pred_labels"][:50].tolist() == expected["labels50"]
        np.testing.assert_allclose(found["pred_scores"][:50], expected["scores50"], atol=1e-6)
        np.testing.assert_allclose(found["pred_boxes"][:50], expected["first50"], atol=1e-5)


def test_the_older_decoder_swaps_width_and_length_as_in_openpcdet(reference: Path) -> None:
    figures, recipe = load_json(reference / "boxes_nms.json"), load_recipe(reference)
    boxes, coder = torch.tensor(figures["boxes"]), PreviousResidualDecoder()
    anchors, codes = boxes[:100], 0.1 * (boxes[100:] - boxes[:100])
    decoded = coder.decode(codes, anchors)
    assert_summary(recipe, decoded, figures["box_coder"]["PreviousResidualDecoder"]["decoded"], 1e-6)
    torch.testing.assert_close(coder.encode(decoded, anchors), codes, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sincos", [False, True])
def test_residual_box_coder_equals_openpcdet(reference: Path, sincos: bool) -> None:
    figures, recipe = load_json(reference / "boxes_nms.json"), load_recipe(reference)
    expected = figures["box_coder"]["ResidualCoder_sincos" if sincos else "ResidualCoder"]
    boxes, coder = torch.tensor(figures["boxes"]), ResidualCoder(encode_angle_by_sincos=sincos)
    encoded = coder.encode(boxes[100:], boxes[:100])
    assert_summary(recipe, encoded, expected["encoded"], 1e-6)
    assert_summary(recipe, coder.decode(encoded, boxes[:100]), expected["decoded"], 1e-6)
