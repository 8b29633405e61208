"""Parity of CenterHead with OpenPCDet: targets, losses, gradients, detections, heatmap peaks.

Every number of the three CenterPoints in head_only.json is compared, and the radii and the heatmap of
boxes_nms.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from centerpoint_golden import synthetic_predictions
from pointpillar_golden import assert_summary, fake_dataset, load_json, load_recipe, padded_boxes

from pcdet_freeze.models.context import BuildContext, Features
from pcdet_freeze.models.dense_heads import CenterHead
from pcdet_freeze.models.dense_heads.center_targets import draw_gaussians, gaussian_radius
from pcdet_freeze.utils.settings.faults import raise_faults
from pcdet_freeze.utils.settings.sections import read_section

# config, z of the range, and the forward figures that hold the same boxes
CASES = {
    "waymo_centerpoint": ("waymo_models__centerpoint", (-2, 4), "waymo_centerpoint_pillar_1x"),
    "nuscenes_cbgs_dyn_pp_centerpoint": (
        "nuscenes_models__cbgs_dyn_pp_centerpoint",
        (-5, 3),
        "nuscenes_cbgs_dyn_pp_centerpoint",
    ),
    "once_centerpoint": ("once_models__centerpoint", (-5, 3), None),
}
# the reference holds no boxes for ONCE; these are read off its targets
ONCE_BOXES = [
    [
        [8.0, 6.0, -1.0, 4.4, 1.8, 1.6, 0.3, 1],
        [-14.2, -9.3, -0.5, 11.1, 2.9, 3.2, -1.4, 2],
        [17.6, -15.1, -0.6, 7.5, 2.4, 2.8, 2.9, 3],
        [-3.7, 11.8, -0.9, 0.8, 0.8, 1.7, 0.7, 4],
        [5.5, -18.3, -0.9, 2.2, 0.8, 1.4, -2.2, 5],
        [-19.9, 16.4, -1.0, 4.2, 1.7, 1.5, 1.2, 1],
    ],
    [
        [-8.8, -2.5, -1.0, 4.4, 1.8, 1.6, 1.57, 1],
        [12.9, 19.2, -0.9, 2.0, 0.7, 1.5, -0.6, 5],
        [20.3, 3.3, -0.9, 0.8, 0.7, 1.7, 0.0, 4],
    ],
]


class Case:
    """One config's head on a map of 64 x 64 cells, with synthetic predictions."""

    def __init__(self, reference: Path, name: str) -> None:
        config_name, (low, high), forward = CASES[name]
        config = load_json(reference / "configs" / f"{config_name}.json")
        voxel = load_json(reference / "state_dicts" / f"{config_name}.json")["voxel_size"]
        self.figures = load_json(reference / "head_only.json")[name]
        self.recipe = load_recipe(reference)
        section = dict(config["MODEL"]["DENSE_HEAD"])
        assert section["POST_PROCESSING"] == self.figures["post_cfg"]
        assert section.pop("NAME") == "CenterHead"
        settings, faults = read_section(CenterHead.Settings, section, "MODEL.DENSE_HEAD")
        raise_faults(faults)
        limits = [-25.6, -25.6, low, 25.6, 25.6, high]
        context = BuildContext.from_dataset(
            fake_dataset(config["CLASS_NAMES"], limits, voxel, 5), len(config["CLASS_NAMES"])
        )
        context.features["spatial_features_2d"] = Features(8, 64, 64)
        assert settings is not None
        self.head = CenterHead(settings, context)
        boxes = load_json(reference / "forward" / f"{forward}.json")["gt_boxes"] if forward else ONCE_BOXES
        self.gt_boxes = torch.from_numpy(padded_boxes(boxes))


@pytest.fixture(scope="module", params=list(CASES))
def case(reference: Path, request: pytest.FixtureRequest) -> Case:
    return Case(reference, request.param)


def test_losses_and_gradients_equal_openpcdet(case: Case) -> None:
    predictions = synthetic_predictions(case.head)
    targets = case.head.assign_targets(case.gt_boxes)
    case.head.forward_ret_dict = {"pred_dicts": predictions, "targets": targets}
    loss, tb_dict = case.head.get_loss()
    loss.backward()
    assert loss.item() == pytest.approx(case.figures["loss"], rel=1e-6)
    assert list(tb_dict) == list(case.figures["tb"])
    assert tb_dict == pytest.approx(case.figures["tb"], rel=1e-6)
    for maps, expected in zip(predictions, case.figures["grads"], strict=True):
        assert list(maps) == list(expected)
        for name, summary in expected.items():
            assert_summary(case.recipe, maps[name].grad, summary, 1e-6)


def test_targets_equal_openpcdet(case: Case) -> None:
    found = case.head.assign_targets(case.gt_boxes)
    for targets, expected in zip(found, case.figures["targets_nonzero"], strict=True):
        assert targets.heatmaps.sum().item() == pytest.approx(expected["hm_sum"], rel=1e-6)
        assert (targets.heatmaps == 1).sum() == expected["hm_ones"]
        assert targets.masks.sum(dim=1).tolist() == expected["mask"]
        assert targets.inds[:, :12].tolist() == expected["inds"]
        for rows, boxes in zip(targets.target_boxes, expected["boxes"], strict=True):
            wanted = np.array(boxes).reshape(len(boxes), rows.shape[1])
            np.testing.assert_allclose(rows[: len(boxes)], wanted, atol=1e-6)


def test_detections_equal_openpcdet(case: Case) -> None:
    detections = case.head.generate_predicted_boxes(synthetic_predictions(case.head))
    for found, expected in zip(detections, case.figures["final"], strict=True):
        assert len(found["pred_scores"]) == expected["n"]
        assert found["pred_labels"][:50].tolist() == expected["labels50"]
        np.testing.assert_allclose(found["pred_scores"][:50], expected["scores50"], atol=1e-6)
        np.testing.assert_allclose(found["pred_boxes"][:50], expected["first50"], atol=1e-5)
        for key, summary in expected["summary"].items():
            assert_summary(case.recipe, found[key], summary, 1e-5)


def test_gaussian_radii_equal_openpcdet(reference: Path) -> None:
    rows = torch.tensor(load_json(reference / "boxes_nms.json")["gaussian_radius"])
    for column, overlap in ((2, 0.1), (3, 0.5)):
        found = gaussian_radius(rows[:, 0], rows[:, 1], overlap)
        torch.testing.assert_close(found, rows[:, column], rtol=1e-6, atol=1e-6)


def test_heatmap_peaks_equal_openpcdet(reference: Path) -> None:
    expected: Any = load_json(reference / "boxes_nms.json")["heatmap_24x32"]
    heatmap = torch.zeros(1, 24, 32)
    # centres and radii as they can be read off the figures: a whole peak, and one cut by a corner
    x, y, radius = torch.tensor([10, 31]), torch.tensor([8, 0]), torch.tensor([3, 4])
    draw_gaussians(heatmap, torch.zeros(2, dtype=torch.long), x, y, radius)
    np.testing.assert_allclose(heatmap[0], np.array(expected), atol=1e-6)
