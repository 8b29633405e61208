"""ConcatDataset: frames of several sets in one form, with the labels of their set."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from concat_sets import BOXES, FIRST, SHIFT, XYZI, joined, joined_cfg, member
from model_cases import CLASS_NAMES

from pcdet_freeze.cli.prepare import configs_of
from pcdet_freeze.config import load_cfg
from pcdet_freeze.datasets import build_dataloader, build_dataset, data_faults
from pcdet_freeze.datasets.concat import ConcatDataset
from pcdet_freeze.datasets.late_voxels import send_points
from pcdet_freeze.datasets.loader import label_forms_of
from pcdet_freeze.datasets.reading.bad_data import FRAME, BadItem
from pcdet_freeze.errors import ConfigError, DataError

FLIP = [{"NAME": "random_world_flip", "ALONG_AXIS_LIST": ["x"]}]
SCALING = [{"NAME": "random_world_scaling", "WORLD_SCALE_RANGE": [0.5, 2.0]}]


def test_a_frame_has_the_labels_of_its_set_in_the_names_of_the_joined_one() -> None:
    dataset = joined()
    car = dataset[FIRST["boxes"]]
    assert car["gt_boxes"][:, 7].tolist() == [1, 2] and "point_labels" not in car
    cloud = dataset.load_sample(FIRST["clouds"])
    assert cloud["point_labels"][:4].tolist() == [1, 0, 1, 0] and "gt_boxes" not in cloud
    lanes = dataset[FIRST["lanes"]]
    assert lanes["lane_map"].shape == (32, 32) and "gt_boxes" not in lanes
    assert dataset.labels == ("gt_boxes", "point_labels", "lane_map")


def test_columns_and_height_are_those_of_the_joined_set() -> None:
    dataset = joined(training=False)
    cloud, lanes = (dataset.load_sample(FIRST[name])["points"] for name in ("clouds", "lanes"))
    assert cloud.shape == lanes.shape == (200, 4) and (cloud[:, 3] == 0.25).all()
    own = dataset.members[0].dataset.load_sample(0)["points"]
    moved = dataset.load_sample(0)
    np.testing.assert_array_equal(moved["points"], own + np.array([0, 0, SHIFT, 0], np.float32))
    np.testing.assert_array_equal(moved["gt_boxes"][:, 2], BOXES[:, 2] + SHIFT)


def test_a_set_without_a_column_is_refused_by_name() -> None:
    cfg = joined_cfg()
    cfg.DATASETS.clouds.FILL = {}
    with pytest.raises(ConfigError, match=r"DATASETS\.clouds\.FILL\.intensity is required.*x, y, z"):
        build_dataset(cfg, ["Car"], True)


def test_a_set_that_is_labelled_for_some_classes_says_so_in_the_names_of_the_joined_one() -> None:
    cfg = joined_cfg()
    cfg.DATASETS.boxes.DATA_CONFIG.LABELLED_CLASSES = ["car"]
    dataset = ConcatDataset(cfg, CLASS_NAMES, training=True)
    sample = dataset[FIRST["boxes"]]
    assert sample["gt_boxes"][:, 7].tolist() == [1]
    assert sample["labelled_classes"].tolist() == [name == "Car" for name in CLASS_NAMES]
    assert "labelled_classes" not in dataset[FIRST["clouds"]]
    assert dataset.labelled_classes == ("Car",)
    anno = dataset.ground_truth_annos()[0]
    assert anno is not None and anno["labelled_classes"] == ("Car",)


def test_a_class_is_labelled_where_all_labels_that_become_it_are() -> None:
    cfg = joined_cfg()
    boxes = cfg.DATASETS.boxes
    boxes.CLASS_MAP, boxes.DATA_CONFIG.LABELLED_CLASSES = {"car": "Car", "van": "Car"}, ["car", "Pedestrian"]
    dataset = ConcatDataset(cfg, CLASS_NAMES, training=True)
    sample = dataset[FIRST["boxes"]]
    assert dataset.labelled_classes == ("Pedestrian",)
    assert sample["gt_boxes"][:, 7].tolist() == [CLASS_NAMES.index("Pedestrian") + 1]
    boxes.DATA_CONFIG.LABELLED_CLASSES = ["van", "car"]
    assert ConcatDataset(cfg, CLASS_NAMES, training=True).labelled_classes == ("Car",)


def test_a_set_augments_the_boxes_that_it_is_labelled_for_as_it_does_alone() -> None:
    cfg, seen = joined_cfg(), []
    cfg.DATASETS.boxes.DATA_CONFIG.LABELLED_CLASSES = ["car"]
    dataset = ConcatDataset(cfg, CLASS_NAMES, training=True)
    own: Any = dataset.members[0].dataset
    own.data_augmentor = lambda sample, rng: seen.append(sample["gt_names"].tolist()) or sample
    dataset[FIRST["boxes"]]
    assert seen == [["car"]]


def test_the_classes_that_each_set_is_labelled_for_are_known() -> None:
    cfg = joined_cfg()
    cfg.DATASETS.boxes.DATA_CONFIG.LABELLED_CLASSES = ["car"]
    cfg.DATASETS.lanes.LABELS = ["gt_boxes", "lane_map"]
    dataset = ConcatDataset(cfg, CLASS_NAMES, training=True)
    assert dataset.labelled_together == [("Car",), tuple(CLASS_NAMES)]


@pytest.mark.parametrize(("member_name", "change", "message"), [
    ("clouds", {"POINT_CLASS_MAP": {"auto": "car"}}, r"DATASETS\.clouds\.POINT_CLASS_MAP\.street.*ignore"),
    ("clouds", {"FILL": {"intensity": 0, "ring": 1}}, r"DATASETS\.clouds\.FILL\.ring"),
    ("boxes", {"CLAS_MAP": {}}, r"DATASETS\.boxes\.CLAS_MAP.*did you mean CLASS_MAP"),
])  # fmt: skip
def test_what_does_not_fit_is_a_config_error_without_a_file(
    member_name: str, change: dict[str, Any], message: str
) -> None:
    cfg = joined_cfg()
    cfg.DATASETS[member_name].update(change)
    (fault,) = data_faults(cfg)
    assert re.search(message, fault)


def test_a_fault_of_a_sets_own_config_names_the_set() -> None:
    cfg = joined_cfg()
    cfg.DATASETS.boxes.DATA_CONFIG.DATASET = "Boxes"
    cfg.DATASETS.lanes.DATA_CONFIG.DATA_PROCESSOR = [{"NAME": "has no effect"}]
    (fault,) = data_faults(cfg)
    assert fault.startswith("DATA_CONFIG.DATASETS.boxes.DATA_CONFIG.DATASET must be one of")


def test_a_joined_set_within_a_joined_set_is_refused() -> None:
    cfg = joined_cfg()
    cfg.DATASETS["more"] = {"DATA_CONFIG": joined_cfg()}
    (fault,) = data_faults(cfg)
    assert "DATASETS.more.DATA_CONFIG.DATASET" in fault


def test_lane_maps_of_two_sizes_are_refused() -> None:
    synthetic = {"DATA_CONFIG": load_cfg("dataset_configs/synthetic_dataset.yaml"), "LABELS": ["lane_map"]}
    cfg = joined_cfg()
    cfg.DATASETS["scenes"] = synthetic
    (fault,) = data_faults(cfg)
    assert "lanes 32 x 32" in fault and "scenes 50 x 50" in fault


def test_labels_and_point_classes_are_known_without_a_file() -> None:
    forms = label_forms_of(joined_cfg(SEMANTIC_CLASSES=[]))
    assert forms.semantic_class_names == ("car", "road") and forms.lane_map_shape == (32, 32)


def test_labels_that_a_set_does_not_have_are_an_error_in_training() -> None:
    cfg = joined_cfg()
    cfg.DATASETS.boxes.LABELS = ["gt_boxes", "lane_map"]
    with pytest.raises(DataError, match=r"DATASETS\.boxes\.LABELS asks for lane_map"):
        build_dataset(cfg, ["Car"], True)
    assert "lane_map" in build_dataset(cfg, ["Car"], False).labels


def test_a_batch_of_several_sets_says_which_frame_has_which_label() -> None:
    dataset = joined()
    batch = dataset.collate_batch([dataset[index] for index in FIRST.values()])
    flags = {key: batch[f"has_{key}"].tolist() for key in dataset.labels}
    assert flags == {
        "gt_boxes": [True, False, False],
        "point_labels": [False, True, False],
        "lane_map": [False, False, True],
    }
    assert [frame["dataset"] for frame in batch["metadata"]] == list(FIRST)
    assert batch["frame_id"].tolist() == ["boxes/00", "clouds/00", "lanes/00"] and "calib" not in batch


def test_a_set_is_augmented_in_its_own_frame_before_it_is_converted() -> None:
    cfg = joined_cfg()
    cfg.DATASETS.boxes.DATA_CONFIG.DATA_AUGMENTOR = SCALING
    box = build_dataset(cfg, ["Car"], True)[0]["gt_boxes"][0]
    scale = box[3] / BOXES[0, 3]
    assert scale != 1 and box[2] == pytest.approx(BOXES[0, 2] * scale + SHIFT)


def test_a_repetition_of_a_frame_has_other_random_numbers_and_the_same_ones_each_time() -> None:
    dataset = joined(DATA_AUGMENTOR=SCALING)
    first, again, same = (dataset[index]["gt_boxes"] for index in (0, 11, 0))
    assert not np.array_equal(first, again) and np.array_equal(first, same)


def test_with_kept_variants_repetitions_are_equal_and_share_a_row() -> None:
    dataset = joined(DATA_AUGMENTOR=SCALING)
    dataset.keep_variants(2)
    first, again = dataset[0], dataset[11]
    np.testing.assert_array_equal(first["points"], again["points"])
    np.testing.assert_array_equal(first["cache_entry"], again["cache_entry"])
    assert dataset.random_steps == ["random_world_scaling", "shuffle_points"]


def test_augmentors_of_the_sets_are_random_steps_too() -> None:
    cfg = joined_cfg()
    cfg.DATASETS.boxes.DATA_CONFIG.DATA_AUGMENTOR = FLIP
    assert build_dataset(cfg, ["Car"], True).random_steps == ["random_world_flip", "shuffle_points"]


def test_a_bad_frame_is_left_out_with_the_name_of_its_set() -> None:
    dataset = joined()
    dataset.members[1].dataset.bad = (1,)
    sample = dataset[FIRST["clouds"] + 1]
    assert sample["frame_id"] == "clouds/02" and sample["skipped_frames"] == ["clouds/1"]
    assert sample["bad_data"] == [BadItem(FRAME, "clouds/1", "frame 1 is broken")]
    assert dataset.totals()[FRAME] == 11
    repeated = dataset[FIRST["clouds"] + 1 + 22]
    assert repeated["frame_id"] == "clouds/02"


def test_boxes_of_sets_without_a_velocity_have_an_unknown_one() -> None:
    boxes = joined(PRED_VELOCITY=True)[0]["gt_boxes"]
    assert boxes.shape == (2, 10) and np.isnan(boxes[:, 7:9]).all() and boxes[:, 9].tolist() == [1, 2]


def batches(workers: int, start: int = 0, balance: str = "task", epoch: int = 1) -> list[dict[str, Any]]:
    cfg = joined_cfg(BALANCE=balance, DATA_AUGMENTOR=SCALING)
    _, loader, sampler = build_dataloader(cfg, ["Car"], 2, training=True, workers=workers, seed=3)
    send_points(loader)
    sampler.set_epoch(epoch, start)
    return list(loader)


def assert_same(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    assert len(found) == len(wanted) > 0
    for one, other in zip(found, wanted, strict=True):
        assert one["frame_id"].tolist() == other["frame_id"].tolist()
        assert all(torch.equal(one[key], other[key]) for key in one if isinstance(one[key], torch.Tensor))


def test_a_start_within_an_epoch_continues_exactly() -> None:
    assert_same(batches(0, start=2), batches(0)[2:])


def test_workers_do_not_change_the_data() -> None:
    assert_same(batches(2), batches(0))


def test_predictions_go_back_to_the_frame_and_the_writer_of_their_set(tmp_path: Path) -> None:
    dataset = joined(training=False)
    batch = dataset.collate_batch([dataset[index] for index in (9, 1)])
    boxes = torch.from_numpy(BOXES).clone()
    boxes[:, 2] += SHIFT
    found = {"pred_boxes": boxes, "pred_scores": torch.ones(2), "pred_labels": torch.tensor([1, 2])}
    lanes, cars = dataset.generate_prediction_dicts(batch, [found, found], ["Car", "Pedestrian"], tmp_path)
    assert [lanes["frame_id"], cars["frame_id"]] == ["lanes/00", "boxes/01"]
    np.testing.assert_allclose(cars["boxes_lidar"][:, 2], BOXES[:, 2])
    np.testing.assert_allclose(lanes["boxes_lidar"][:, 2], BOXES[:, 2] + SHIFT)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.txt")] == ["boxes/01.txt"]


def test_ground_truth_has_the_names_of_the_joined_set_and_none_where_boxes_are_not_used() -> None:
    annos = joined(training=False).ground_truth_annos()
    assert [anno is None for anno in annos] == [False] * 6 + [True] * 5
    assert annos[0] is not None and annos[0]["name"].tolist() == ["Car", "Pedestrian"]


def test_prepare_finds_the_sets_of_a_joined_config(root: Path) -> None:
    cfg = load_cfg(root / "cfgs/mixed_models/stage1_detect.yaml").DATA_CONFIG
    found = configs_of(cfg, "KittiDataset")
    assert list(found) == ["DATA_CONFIG.DATASETS.kitti.DATA_CONFIG"]
    assert found[next(iter(found))].DATA_SPLIT.train == "train" and configs_of(cfg, "WaymoDataset") == {}


def test_an_error_of_a_set_names_it(root: Path, tmp_path: Path) -> None:
    cfg = load_cfg(root / "cfgs/mixed_models/stage1_detect.yaml").DATA_CONFIG
    cfg.DATASETS.kitti.DATA_CONFIG.DATA_PATH = str(tmp_path)
    key = r"DATA_CONFIG\.DATASETS\.kitti"
    with pytest.raises(DataError, match=rf"{key}: KITTI is expected at.* Set {key}\.DATA_CONFIG\.DATA_PATH"):
        build_dataset(cfg, ["Car"], True)


def test_each_sets_data_path_is_looked_for_in_the_config_root(tmp_path: Path) -> None:
    (tmp_path / "data/own").mkdir(parents=True)
    path = tmp_path / "cfgs/joined.yaml"
    path.parent.mkdir()
    path.write_text("DATASET: ConcatDataset\nDATASETS: {a: {DATA_CONFIG: {DATA_PATH: data/own}}}\n")
    found = load_cfg(path).DATASETS.a.DATA_CONFIG["DATA_PATH"]
    assert Path(found) == tmp_path / "data/own"


def test_a_column_may_be_replaced_where_it_means_something_else() -> None:
    cfg = joined_cfg()
    cfg.DATASETS["boxes"] = member("ToyBoxes", XYZI, FILL={"intensity": 0.5})
    assert (build_dataset(cfg, ["Car"], False).load_sample(0)["points"][:, 3] == 0.5).all()
