"""SyntheticDataset: samples, annotations, cache, config."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pcdet_freeze.config import cfg_from_yaml_file
from pcdet_freeze.datasets import build_dataloader, build_dataset
from pcdet_freeze.datasets.synthetic import LABEL, SyntheticDataset
from pcdet_freeze.datasets.synthetic.cache import FrameCache, pack
from pcdet_freeze.datasets.synthetic.settings import read_settings
from pcdet_freeze.errors import ConfigError, DataError
from pcdet_freeze.evaluation.kitti import get_official_eval_result
from pcdet_freeze.ops.boxes import points_in_boxes_mask

NAMES = ["Car", "Pedestrian", "Cyclist"]


@pytest.fixture
def cfg(root: Path) -> Any:
    """The shipped config, without a cache and with few scenes."""
    import yaml
    from easydict import EasyDict

    plain = EasyDict(yaml.safe_load((root / "cfgs/dataset_configs/synthetic_dataset.yaml").read_text()))
    plain.update(CACHE=None, NUM_SCENES={"train": 6, "test": 12})
    return plain


@pytest.fixture
def test_set(cfg: Any) -> SyntheticDataset:
    return SyntheticDataset(cfg, NAMES, training=False)


def perfect_predictions(dataset: SyntheticDataset, shift: float = 0.0) -> list[dict[str, Any]]:
    """Predictions equal to the ground-truth boxes, shifted along x."""
    annos = []
    for index in range(len(dataset)):
        sample = dataset.load_sample(index)
        boxes = torch.from_numpy(sample["gt_boxes"] + np.array([shift, 0, 0, 0, 0, 0, 0], np.float32))
        labels = torch.tensor([NAMES.index(name) + 1 for name in sample["gt_names"]])
        found = {
            "pred_boxes": boxes,
            "pred_scores": torch.linspace(0.9, 0.5, len(boxes)),
            "pred_labels": labels,
        }
        annos += dataset.generate_prediction_dicts({"frame_id": [sample["frame_id"]]}, [found], NAMES)
    return annos


def test_the_shipped_config_is_registered_and_makes_160_by_160_pillars(cfg: Any) -> None:
    dataset = build_dataset(cfg, NAMES, training=False)
    assert isinstance(dataset, SyntheticDataset)
    assert dataset.grid_size.tolist() == [160, 160, 1] and len(dataset) == 12


def test_a_raw_sample_has_points_boxes_labels_and_lanes(test_set: SyntheticDataset) -> None:
    sample = test_set.load_sample(0)
    points = sample["points"]
    assert points.dtype == np.float32 and points.shape[1] == 4 and np.isfinite(points).all()
    assert points[:, 3].min() >= 0 and points[:, 3].max() <= 1
    assert sample["point_labels"].shape == (len(points),) and sample["point_labels"].dtype == np.int64
    assert sample["lane_map"].shape == (160, 160) and sample["lane_map"].dtype == np.uint8
    assert sample["gt_boxes"].shape == (len(sample["gt_names"]), 7) and sample["frame_id"] == "2_000000"


def test_every_test_scene_shows_five_cars_and_some_are_hidden_and_some_are_sparse(cfg: Any) -> None:
    cfg.NUM_SCENES.test = 40
    dataset = SyntheticDataset(cfg, NAMES, training=False)
    hidden, fewest = 0, 10**6
    for index in range(len(dataset)):
        frame = dataset.frame(index)
        assert dataset.visible_cars(frame) >= 5
        hidden += int(((frame.occlusion > 0.25) & (frame.num_points >= 5)).sum())
        fewest = min(fewest, *frame.num_points[frame.num_points >= 5])
    assert hidden >= len(dataset) and fewest < 10


def test_layouts_with_too_few_cars_are_drawn_again(cfg: Any) -> None:
    cfg.update(MIN_CARS=14, NUM_SCENES={"train": 1, "test": 8})
    dataset = SyntheticDataset(cfg, NAMES, training=False)
    frames = [dataset.frame(index) for index in range(8)]
    assert all(dataset.visible_cars(frame) >= 14 for frame in frames) and max(f.attempt for f in frames) > 0


def test_settings_that_cannot_give_min_cars_raise_a_data_error(cfg: Any) -> None:
    cfg.update(MIN_CARS=80, SENSOR={"BEAMS": "VLP-16", "AZIMUTH_STEP": 3})
    with pytest.raises(DataError, match=r"2_000001.*MIN_CARS.* 80"):
        SyntheticDataset(cfg, NAMES, training=False).load_sample(1)


def test_train_and_test_show_different_scenes(cfg: Any) -> None:
    sets = [SyntheticDataset(cfg, NAMES, training=training) for training in (True, False)]
    boxes = [{one.load_sample(index)["gt_boxes"].tobytes() for index in range(6)} for one in sets]
    assert not boxes[0] & boxes[1]
    cfg.SEED = {"train": 3, "test": 3}
    with pytest.raises(ConfigError, match=r"SEED.test must differ from SEED.train.*got 3 twice"):
        SyntheticDataset(cfg, NAMES)


def test_perfect_boxes_score_full_marks_by_kittis_rules(test_set: SyntheticDataset) -> None:
    truth = test_set.ground_truth_annos()
    _, exact = get_official_eval_result(truth, perfect_predictions(test_set), NAMES)
    _, shifted = get_official_eval_result(truth, perfect_predictions(test_set, shift=1.3), NAMES)
    assert exact["Car_3d/moderate_R40"] > 99 and exact["Car_bev/moderate_R40"] > 99
    assert exact["Car_aos/moderate_R40"] > 99 and exact["Car_3d_0.50/easy_R40"] > 99
    assert shifted["Car_3d/moderate_R40"] < 1  # 1.3 m of 4.4 m: overlap below 0.7


def test_objects_with_few_points_or_outside_the_range_neither_count_nor_punish(
    test_set: SyntheticDataset,
) -> None:
    for index, anno in enumerate(test_set.ground_truth_annos()):
        frame = test_set.frame(index)
        outside = (np.abs(frame.boxes[:, :2]) > 25.6).any(axis=1)
        assert np.array_equal(anno["occluded"] == 3, (frame.num_points < 5) | outside)
        assert np.array_equal(anno["difficulty"] == -1, anno["occluded"] == 3)
        assert (anno["bbox"][:, 3] - anno["bbox"][:, 1] == 50).all() and not anno["truncated"].any()


def test_camera_columns_are_the_lidar_box_with_renamed_axes(test_set: SyntheticDataset) -> None:
    anno = test_set.ground_truth_annos()[0]
    box, place = anno["boxes_lidar"], anno["location"]
    assert np.allclose(place[:, 0], -box[:, 1]) and np.allclose(place[:, 2], box[:, 0])
    assert np.allclose(-place[:, 1], box[:, 2] - box[:, 5] / 2)
    assert np.array_equal(anno["dimensions"], box[:, [3, 5, 4]])
    assert np.allclose(np.cos(anno["rotation_y"]), -np.sin(box[:, 6]))
    assert np.allclose(np.sin(anno["rotation_y"]), -np.cos(box[:, 6]))


def test_predictions_are_written_as_kitti_labels_where_asked(
    test_set: SyntheticDataset, tmp_path: Path
) -> None:
    none = {
        "pred_boxes": torch.zeros(0, 7),
        "pred_scores": torch.zeros(0),
        "pred_labels": torch.zeros(0).long(),
    }
    one = {"pred_boxes": torch.tensor([[9.0, 2, -1, 4, 2, 1.5, 0.1]]), "pred_scores": torch.tensor([0.7]),
           "pred_labels": torch.tensor([1])}  # fmt: skip
    test_set.generate_prediction_dicts({"frame_id": ["2_000000", "2_000001"]}, [none, one], NAMES, tmp_path)
    assert (tmp_path / "2_000000.txt").read_text() == ""
    line = (tmp_path / "2_000001.txt").read_text().split()
    assert line[0] == "Car" and len(line) == 16 and float(line[13]) == 9.0 and float(line[15]) == 0.7


def test_augmentation_keeps_labels_boxes_and_lanes_on_their_points(cfg: Any) -> None:
    dataset = SyntheticDataset(cfg, NAMES, training=True)
    for epoch in range(4):
        dataset.set_epoch(epoch)
        sample = dataset[epoch]
        labels, points = sample["point_labels"], sample["points"]
        grown = sample["gt_boxes"][:, :7] + np.array([0, 0, 0, 0.2, 0.2, 0.2, 0], np.float32)
        held = points_in_boxes_mask(points[labels == LABEL["car"], :3], grown).any(axis=0)
        assert held.mean() > 0.97
        paint = points[labels == LABEL["lane_marking"]]
        rows, columns = (np.clip((paint[:, axis] + 25.6) / 0.32, 1, 158).astype(int) for axis in (1, 0))
        near = [sample["lane_map"][rows + i, columns + j] for i in (-1, 0, 1) for j in (-1, 0, 1)]
        assert (np.min(near, axis=0) < 255).mean() > 0.95


def test_a_sample_cannot_spoil_the_cached_scene(cfg: Any) -> None:
    cfg.CACHE = "memory"
    dataset = SyntheticDataset(cfg, NAMES, training=True)
    before = pack(dataset.frame(0))
    sample = dataset.load_sample(0)
    for key in ("points", "gt_boxes", "point_labels", "lane_map"):
        sample[key][:] = 0
    assert pack(dataset.frame(0)) == before and dataset.frame(0) is dataset.frame(0)


def test_a_folder_keeps_scenes_for_other_processes_bit_for_bit(cfg: Any, tmp_path: Path) -> None:
    fresh = SyntheticDataset(cfg, NAMES).frame(2)
    cfg.CACHE = str(tmp_path)
    for _ in range(2):  # first it is written, then read
        assert pack(SyntheticDataset(cfg, NAMES).frame(2)) == pack(fresh)
    assert len(list(tmp_path.rglob("*.npz"))) == 1 and not list(tmp_path.rglob("*.part"))


def test_a_damaged_cached_scene_is_named_and_rendered_again(
    cfg: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cfg.CACHE = str(tmp_path)
    whole = pack(SyntheticDataset(cfg, NAMES).frame(0))
    path = next(tmp_path.rglob("*.npz"))
    path.write_bytes(whole[: len(whole) // 2])
    with caplog.at_level(logging.WARNING):
        assert pack(SyntheticDataset(cfg, NAMES).frame(0)) == whole
    assert str(path) in caplog.text and path.read_bytes() == whole


def test_other_settings_never_read_each_others_scenes(cfg: Any, tmp_path: Path) -> None:
    cfg.CACHE = str(tmp_path)
    coarse = {**cfg, "SENSOR": {"BEAMS": "HDL-32E"}}
    for part in (cfg, coarse):
        settings = read_settings(part, training=True)
        FrameCache(settings, lambda index: pytest.fail("not needed"), logging.getLogger("test"))
    assert len(list(tmp_path.iterdir())) == 2


def test_all_faults_of_a_config_are_named_together(cfg: Any) -> None:
    cfg.update(NUM_SCENE=3, CACHE=7, MIN_POINTS=0, LANE={"CELL_SIZE": 0, "COLOUR": 1})
    cfg.SENSOR.update(BEAMS="HDL-65", SPIN=2)
    with pytest.raises(ConfigError) as caught:
        SyntheticDataset(cfg, NAMES)
    for fault in ("NUM_SCENE is not a key", "CACHE must", "MIN_POINTS must", "LANE.CELL_SIZE must be",
                  "LANE.COLOUR is not a key", "'HDL-65'", "SENSOR.SPIN is not a key"):  # fmt: skip
        assert fault in str(caught.value)


def test_the_shipped_config_reads_through_the_config_reader(root: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.yaml"
    base = root / "cfgs/dataset_configs/synthetic_dataset.yaml"
    model.write_text(
        f"CLASS_NAMES: [Car]\nDATA_CONFIG: {{_BASE_CONFIG_: {base}, NUM_SCENES: {{train: 2, test: 1}}}}\n"
    )
    cfg = cfg_from_yaml_file(model)
    assert len(build_dataset(cfg.DATA_CONFIG, cfg.CLASS_NAMES, training=True)) == 2


def test_worker_processes_make_the_same_batches(cfg: Any) -> None:
    batches = []
    for workers in (0, 2):
        _, loader, sampler = build_dataloader(cfg, NAMES, 2, training=True, workers=workers)
        sampler.set_epoch(1)
        batches.append(list(loader))
    for here, there in zip(*batches, strict=True):
        for key in ("points", "gt_boxes", "point_labels", "lane_map", "voxels"):
            assert np.array_equal(here[key], there[key])
