"""Folders that people came with: large boats in raw float64, and KITTI's layout without a camera."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from easydict import EasyDict
from kitti_maker import CAR, WALKER

from pcdet_freeze.config import cfg_from_yaml_file
from pcdet_freeze.datasets import build_dataset
from pcdet_freeze.datasets.custom import prepare_custom
from pcdet_freeze.datasets.file_formats.files import read_pickle
from pcdet_freeze.datasets.kitti import KittiDataset, prepare_kitti
from pcdet_freeze.errors import DataError
from pcdet_freeze.evaluation import evaluate_kitti

BOAT = "60 -20 3 38 9 15 1 boat  \n"
KINDS = ["Car", "Pedestrian", "Cyclist", *(f"kind_{number}" for number in range(12))]


@pytest.fixture
def harbour(root: Path, tmp_path: Path) -> EasyDict:
    """One class ``boat``; float64 points, intensity up to 5665; whole numbers and blanks in label lines."""
    data, rng = tmp_path / "harbour", np.random.RandomState(0)
    for folder in ("points", "labels", "ImageSets"):
        (data / folder).mkdir(parents=True)
    for split in ("train", "val"):
        (data / f"ImageSets/{split}.txt").write_text("a\nb")
    for frame in "ab":
        points = rng.uniform([-90, -90, -2, 0], [90, 90, 0, 5665], (800, 4))
        hull = rng.uniform([56, -24, -4, 0], [64, -16, 10, 5665], (200, 4))
        np.save(data / f"points/{frame}.npy", np.concatenate([points, hull]))
        (data / f"labels/{frame}.txt").write_text(BOAT)
    shipped = cfg_from_yaml_file(root / "cfgs/dataset_configs/custom_dataset.yaml")
    shipped.update(DATA_PATH=str(data), POINT_CLOUD_RANGE=[-102.4, -102.4, -5, 102.4, 102.4, 15],
                   INTENSITY={"SCALE": 5665})  # fmt: skip
    sampling = shipped.DATA_AUGMENTOR.AUG_CONFIG_LIST[0]
    sampling.update(PREPARE={"filter_by_min_points": ["boat:5"]}, SAMPLE_GROUPS=["boat:3"])
    shipped.DATA_PROCESSOR[-1].VOXEL_SIZE = [0.8, 0.8, 20]
    return shipped


def test_a_large_intensity_without_a_scale_is_noted(
    harbour: EasyDict, caplog: pytest.LogCaptureFixture
) -> None:
    prepare_custom(harbour, ["boat"])
    build_dataset(harbour, ["boat"], False)
    assert "expected from 0 to 1" not in caplog.text
    harbour.INTENSITY = None
    build_dataset(harbour, ["boat"], False)
    assert "column 3 holds values up to 56" in caplog.text and "expected from 0 to 1" in caplog.text


def test_boats_are_prepared_augmented_and_evaluated(harbour: EasyDict) -> None:
    report = prepare_custom(harbour, ["boat"])
    assert report.objects == {"boat": 2} and report.skipped == {}
    assert "anchor_sizes: [[38.00, 9.00, 15.00]], anchor_rotations" in report.anchors[0]
    sample = build_dataset(harbour, ["boat"], True)[0]
    assert sample["points"].dtype == np.float32 and 0.9 < sample["points"][:, 3].max() <= 1
    assert (sample["gt_boxes"][:, 7] == 1).all() and sample["gt_boxes"][0, 3] > 36
    truth = build_dataset(harbour, ["boat"], False).ground_truth_annos()
    said = [{**anno, "score": np.ones(1)} for anno in truth if anno is not None]
    text, values = evaluate_kitti(said, said, ["boat"], {"boat": 0.5})
    assert values["boat_3d/moderate_R40"] == 2.5 and "AP_R40 is at most 2.50" in text  # two boats


@pytest.fixture
def lidar_only(root: Path, tmp_path: Path) -> EasyDict:
    """KITTI's layout without images and without newlines at the end; 15 classes, alpha -10, no 2D boxes."""
    data, rng = tmp_path / "lidar", np.random.RandomState(0)
    for folder in ("velodyne", "calib", "label_2"):
        (data / "training" / folder).mkdir(parents=True)
    (data / "ImageSets").mkdir()
    for split in ("train", "val"):
        (data / f"ImageSets/{split}.txt").write_text("0\n1")
    calib = ["P2: 1 0 0 0 0 1 0 0 0 0 1 0", "R0_rect: 1 0 0 0 1 0 0 0 1",
             "Tr_velo_to_cam: 0 -1 0 0 0 0 -1 0 1 0 0 0"]  # fmt: skip
    rows = [
        f"{name} 0 0 -10 0 0 0 0 2 2 4 {5 * k - 35} 0 {-12 if k % 2 else 12} 0"
        for k, name in enumerate(KINDS)
    ]
    for frame in "01":
        points = rng.uniform([-40, -40, -1, 0], [40, 40, 2, 1], (20000, 4)).astype("<f4")
        points.tofile(data / f"training/velodyne/{frame}.bin")
        (data / f"training/calib/{frame}.txt").write_text("\n".join(calib))
        (data / f"training/label_2/{frame}.txt").write_text("\n".join(rows))
    shipped = cfg_from_yaml_file(root / "cfgs/dataset_configs/kitti_dataset.yaml")
    shipped.update(DATA_PATH=str(data), FOV_POINTS_ONLY=False, POINT_CLOUD_RANGE=[-40, -40, -3, 40, 40, 3])
    sampling = shipped.DATA_AUGMENTOR.AUG_CONFIG_LIST[0]
    sampling.update(
        PREPARE={"filter_by_difficulty": [-1]}, SAMPLE_GROUPS=["kind_11:15"], LIMIT_WHOLE_SCENE=False
    )
    shipped.DATA_PROCESSOR[-1].VOXEL_SIZE = [0.5, 0.5, 6]
    return shipped


def test_kitti_without_a_camera_is_prepared_with_all_points_and_boxes(lidar_only: EasyDict) -> None:
    report = prepare_kitti(lidar_only, KINDS, workers=1)
    assert report.frames["train"] == 2 and report.skipped == {} and set(report.objects) == set(KINDS)
    info = read_pickle(Path(lidar_only.DATA_PATH) / "kitti_infos_train.pkl")[0]
    assert info["image"]["image_shape"] is None and (info["annos"]["difficulty"] == 0).all()
    assert info["annos"]["num_points_in_gt"].min() > 0  # behind the sensor, too
    sample = KittiDataset(lidar_only, KINDS, training=True)[0]
    assert set(sample["gt_boxes"][:, 7]) == set(range(1, 16))


def test_kitti_without_a_camera_scores_its_ground_truth_as_its_predictions(lidar_only: EasyDict) -> None:
    prepare_kitti(lidar_only, KINDS)
    frames = KittiDataset(lidar_only, KINDS, training=False)
    batch = frames.collate_batch([frames[0], frames[1]])
    predictions = [
        {"pred_boxes": torch.from_numpy(boxes[:, :7]), "pred_labels": torch.from_numpy(boxes[:, 7]).long(),
         "pred_scores": torch.linspace(1, 0.5, len(boxes))}
        for boxes in batch["gt_boxes"]
    ]  # fmt: skip
    said = frames.generate_prediction_dicts(batch, predictions, KINDS)
    truth = [anno for anno in frames.ground_truth_annos() if anno is not None]
    _, values = evaluate_kitti(truth, said, KINDS, {})
    assert {values[f"{name}_3d/easy_R40"] for name in KINDS} == {2.5}  # of two labels each
    assert not any(key.startswith("Car_aos") for key in values)  # alpha is -10


def test_points_that_the_camera_sees_need_the_image(lidar_only: EasyDict) -> None:
    prepare_kitti(lidar_only, KINDS)
    lidar_only.FOV_POINTS_ONLY = True
    with pytest.raises(DataError, match=r"frame 0: FOV_POINTS_ONLY .* without an image"):
        KittiDataset(lidar_only, KINDS, training=False)[0]


def test_folders_of_other_names_are_named(lidar_only: EasyDict) -> None:
    training = Path(lidar_only.DATA_PATH) / "training"
    (training / "image").mkdir()
    (training / "label_2").rename(training / "kitti_label")
    with pytest.raises(
        DataError, match=r"label_2 is not there; .* image, kitti_label.*rename kitti_label to label_2"
    ):
        prepare_kitti(lidar_only, KINDS)
    (training / "kitti_label").rename(training / "label_2")
    assert prepare_kitti(lidar_only, KINDS).frames["train"] == 2
    lidar_only.FOV_POINTS_ONLY = True
    with pytest.raises(DataError, match=r"rename image to image_2.*FOV_POINTS_ONLY: False"):
        prepare_kitti(lidar_only, KINDS)


def test_frames_with_and_without_an_image_share_a_batch(kitti_cfg: EasyDict) -> None:
    data = Path(kitti_cfg.DATA_PATH)
    (data / "training/image_2/000002.png").unlink()
    shutil.rmtree(data / "gt_database")
    kitti_cfg.FOV_POINTS_ONLY = False
    prepare_kitti(kitti_cfg, ["Car"])
    frames = KittiDataset(kitti_cfg, ["Car", "Pedestrian"], training=False)
    batch = frames.collate_batch([frames[0], frames[1]])
    assert batch["image_shape"].tolist() == [[200, 600], [0, 0]]
    annos = [anno for anno in frames.ground_truth_annos() if anno is not None]
    assert annos[0]["bbox"][0].tolist() == [float(word) for word in CAR.split()[4:8]]
    assert annos[1]["bbox"][0].tolist() != [float(word) for word in WALKER.split()[4:8]]
