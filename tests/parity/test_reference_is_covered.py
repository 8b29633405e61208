"""Which test compares which file of tests/reference, and what no test compares."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pointpillar_golden import Golden, assert_summary, load_json, load_recipe

from pcdet_freeze.models.post_processing import NMSSettings, class_agnostic_nms
from pcdet_freeze.ops.boxes import limit_period
from pcdet_freeze.ops.iou import boxes_iou3d, boxes_iou_bev

HERE = "parity/test_reference_is_covered.py"
COVERED: dict[str, tuple[list[str], str]] = {
    "anchors_targets.json": (["parity/test_anchor_head.py"], ""),
    "boxes_nms.json": (
        ["ops/conftest.py", "parity/test_anchor_head.py", "parity/test_centerpoint_head.py", HERE],
        "how far OpenPCDet's overlaps are from the exact area: asymmetry_max_bev, max_abs_diff_vs_shapely, "
        "worst_pair, hist_abs_diff_vs_shapely, nms_exact_same_*",
    ),
    "configs": (["parity/test_configs.py"], ""),
    "forward/kitti_pointpillar.json": (
        ["helpers/pointpillar_golden.py", HERE],
        "run times, which are not compared",
    ),
    "forward/kitti_second.json": (["parity/test_second.py"], "run times, which are not compared"),
    "forward/nuscenes_cbgs_dyn_pp_centerpoint.json": (
        ["parity/test_centerpoint.py"],
        "target_boxes_src, which IoU branches read; run times, which are not compared",
    ),
    "forward/nuscenes_cbgs_pp_multihead.json": (
        ["parity/test_pp_multihead.py"],
        "pred_labels, which are 0 by the recipe; run times, which are not compared",
    ),
    "forward/waymo_centerpoint_pillar_1x.json": (
        ["parity/test_centerpoint.py"],
        "target_boxes_src, which IoU branches read; run times, which are not compared",
    ),
    "head_only.json": (
        ["parity/test_anchor_head.py", "parity/test_centerpoint_head.py"],
        "kitti_second_multihead, which has a recipe and no figures",
    ),
    "kitti_eval/annos.json": (["helpers/kitti_toys.py"], ""),
    "kitti_eval/result.json": (["evaluation/test_kitti_golden.py"], "max_abs_diff_bev_iou_vs_shapely"),
    "optim.json": (
        ["engine/optim/test_optimizer.py", "engine/optim/test_lr_schedule.py"],
        "cosineanneal, which is not implemented; what onecycle_37 has beyond its end; of the toy runs "
        "what follows from the rest: final_group_opts, and at a constant rate all but losses and final",
    ),
    "optimizer_missing_params.json": (
        [HERE],
        "all of it: parameters that OpenPCDet's optimizer never receives, of models not implemented here; "
        "every parameter that trains is in ours",
    ),
    "state_dicts": (["parity/test_configs.py", "parity/test_families.py"], "sha of the index"),
    "trajectories.json": (["parity/test_pointpillar_trajectory.py", "parity/test_trajectory.py"], ""),
    "upstream_api.json": (
        ["integrations/test_openpcdet_standin.py"],
        "signatures and call orders, not numbers: the stand-in that the plugin is tested in has them",
    ),
    "voxel_aug.json": (
        ["ops/conftest.py", "datasets/test_processors.py", "datasets/test_world_augmentors.py"],
        "what follows from digests that are compared (summary, first5_*, sorted_sha256, counts); the drawn "
        "numbers themselves (extra)",
    ),
}
"""File (or folder) of the reference -> tests that read it, and what of it is not compared."""


def test_every_file_of_the_reference_is_read_by_a_test_that_is_named_here(
    root: Path, reference: Path
) -> None:
    files = {str(path.relative_to(reference)) for path in reference.rglob("*.json")}
    assert {next((key for key in COVERED if file.startswith(key)), file) for file in files} == set(COVERED)
    for key, (tests, _) in COVERED.items():
        for test in tests:
            assert Path(key).stem in (root / "tests" / test).read_text(), (key, test)


@pytest.mark.parametrize(("key", "offset", "period"), [
    ("off0_2pi", 0.0, 2 * np.pi), ("off05_pi", 0.5, np.pi), ("off078_2pi", 0.78539, 2 * np.pi),
])  # fmt: skip
def test_limit_period_equals_openpcdet(reference: Path, key: str, offset: float, period: float) -> None:
    figures = load_json(reference / "boxes_nms.json")["limit_period"]
    found = limit_period(torch.tensor(figures["x"]), offset, period)
    np.testing.assert_allclose(found, figures[key], atol=1e-5)


def test_ious_of_all_pairs_equal_openpcdet(reference: Path) -> None:
    figures, recipe = load_json(reference / "boxes_nms.json"), load_recipe(reference)
    boxes = torch.tensor(figures["boxes"])
    for key, overlaps in (("iou_bev", boxes_iou_bev), ("iou_3d", boxes_iou3d)):
        within = 9e-4 / figures[key]["std"]  # distance of OpenPCDet's from the exact area
        assert_summary(recipe, overlaps(boxes, boxes), figures[key], within)


def test_boxes_kept_by_nms_and_their_scores_equal_openpcdet(reference: Path) -> None:
    figures = load_json(reference / "boxes_nms.json")
    expected = figures["class_agnostic_nms"]
    settings = NMSSettings("nms_gpu", nms_thresh=0.1, nms_pre_maxsize=4096, nms_post_maxsize=50)
    boxes, scores = torch.tensor(figures["boxes"]), torch.tensor(figures["scores"])
    chosen, kept = class_agnostic_nms(boxes, scores, settings, score_thresh=0.3)
    assert chosen.tolist() == expected["selected"]
    assert kept.tolist() == pytest.approx(expected["scores"], abs=1e-7)


def test_points_and_pillars_of_the_golden_pointpillar_equal_openpcdet(reference: Path) -> None:
    golden = Golden(reference)
    figures, points = golden.figures, golden.figures["points"]
    for sample, (seed, boxes) in enumerate(zip(points["seeds"], figures["gt_boxes"], strict=True)):
        gt = np.array(boxes, dtype=np.float32).astype(np.float64)[:, :7]
        limits = figures["point_cloud_range"]
        cloud = golden.recipe.clustered_points(seed, points["n"], limits, gt, points["num_extra"])
        assert_summary(golden.recipe, cloud, figures["input"][f"points_{sample}"], 1e-9)
    assert np.bincount(golden.batch["voxel_coords"][:, 0]).tolist() == figures["input"]["num_voxels"]
    assert golden.dataset().grid_size.tolist() == figures["grid_size"]
    coords = golden.recipe.sort_rows(golden.batch["voxel_coords"])[0]
    for stages in (figures["eval"], figures["train"]["stages"]):
        assert_summary(golden.recipe, coords, stages["vfe.coords_sorted"], 1e-9)
    shapes = [list(anchors.shape) for anchors in golden.model().dense_head.anchors]
    assert shapes == figures["eval"]["num_anchors"]
    assert figures["train"]["gt_boxes_modified_in_place"] is False
