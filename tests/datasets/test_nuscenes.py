"""nuScenes: points of several sweeps, boxes with velocity, point labels and lines, from a small set."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from easydict import EasyDict

pytest.importorskip("nuscenes", reason="the nuscenes-devkit is the extra nuscenes")

from nuscenes_maker import LINES, OBJECTS, VERSION, make_nuscenes

from pcdet_freeze.config import cfg_from_yaml_file
from pcdet_freeze.datasets import build_dataset
from pcdet_freeze.datasets.nuscenes import NuScenesDataset, prepare_nuscenes
from pcdet_freeze.datasets.nuscenes.classes import DETECTION_CLASSES
from pcdet_freeze.datasets.packed import opening
from pcdet_freeze.errors import ConfigError, DataError
from pcdet_freeze.ops.boxes import points_in_boxes_mask

CLASSES = list(DETECTION_CLASSES)
TRAIN, VAL = "nuscenes_infos_10sweeps_train.pkl", "nuscenes_infos_10sweeps_val.pkl"
CAR, PARKED = 0, 1
"""places of objects in OBJECTS, and so in the boxes of a frame"""


def config(root: Path, name: str, data: Path) -> EasyDict:
    """The shipped config on the small set, without augmentation."""
    shipped = cfg_from_yaml_file(root / "cfgs/dataset_configs" / f"{name}.yaml")
    shipped.update(DATA_PATH=str(data), VERSION=VERSION, DATA_AUGMENTOR=[], BALANCED_RESAMPLING=False)
    return shipped


@pytest.fixture(scope="module")
def made(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small set with its info files."""
    data = make_nuscenes(tmp_path_factory.mktemp("nuscenes"))
    prepare_nuscenes(config(root, "nuscenes_multi_task", data), CLASSES, workers=2)
    return data


@pytest.fixture
def cfg(root: Path, made: Path) -> EasyDict:
    """With point labels and lines, x forward."""
    return config(root, "nuscenes_multi_task", made)


@pytest.fixture
def plain_cfg(root: Path, made: Path) -> EasyDict:
    """OpenPCDet's, in the frame of the sensor."""
    return config(root, "nuscenes_dataset", made)


@pytest.fixture
def with_info(tmp_path: Path, made: Path, cfg: EasyDict) -> Callable[..., EasyDict]:
    """with_info(key=value) -> a config whose only frame has these changes in its info; None: without it."""

    def change(source: str = VAL, frame: int = 5, **changes: Any) -> EasyDict:
        info = pickle.loads((made / source).read_bytes())[frame] | changes
        info = {key: value for key, value in info.items() if value is not None}
        for name in (TRAIN, VAL):
            (tmp_path / name).write_bytes(pickle.dumps([info]))
        cfg.INFO_ROOT = str(tmp_path)
        return cfg

    return change


def dataset(cfg: EasyDict, training: bool = False) -> NuScenesDataset:
    found = build_dataset(cfg, CLASSES, training)
    assert isinstance(found, NuScenesDataset)
    return found


def test_points_of_ten_sweeps_lie_in_the_frame_of_the_newest(cfg: EasyDict) -> None:
    sample = dataset(cfg).load_sample(5)
    points, ages = sample["points"], np.unique(sample["points"][:, 4])
    np.testing.assert_allclose(ages, np.arange(10) * 0.125, atol=1e-5)
    assert points.dtype == np.float32 and points[:, 3].max() > 200  # as in the files
    still = points_in_boxes_mask(points[:, :3], sample["gt_boxes"][[PARKED], :7], margin=0.0)
    assert still.sum() == 10 * OBJECTS[PARKED].points


def test_an_object_that_moves_lies_behind_its_box_in_older_sweeps(cfg: EasyDict) -> None:
    sample = dataset(cfg).load_sample(5)
    box, points = sample["gt_boxes"][CAR], sample["points"]
    np.testing.assert_allclose(box[7:9], [OBJECTS[CAR].speed, 0.0], atol=1e-5)
    for age in np.unique(points[:, 4]):
        back = box[:7] - np.array([*box[7:9] * age, 0, 0, 0, 0, 0])
        inside = points_in_boxes_mask(points[points[:, 4] == age, :3], back[None], margin=0.0)
        assert inside.sum() == OBJECTS[CAR].points


def test_points_of_the_own_vehicle_are_left_out_of_older_sweeps(cfg: EasyDict) -> None:
    points = dataset(cfg).load_sample(5)["points"]
    near = (np.abs(points[:, :2]) < 0.5).all(axis=1) & (np.abs(points[:, 2]) < 0.5)
    assert near.sum() == 4 and not points[near, 4].any()


def test_at_the_beginning_of_a_scene_the_oldest_sweep_is_repeated(cfg: EasyDict) -> None:
    frames = dataset(cfg)
    assert np.unique(frames.load_sample(0)["points"][:, 4]).tolist() == [0.0]
    ages, counts = np.unique(frames.load_sample(1)["points"][:, 4], return_counts=True)
    assert len(ages) == 5 and counts[4] == 6 * counts[3]
    cfg.MAX_SWEEPS = 1
    assert len(dataset(cfg).load_sample(5)["points"]) == 434


def test_the_frame_is_the_sensors_unless_x_is_to_point_forward(cfg: EasyDict, plain_cfg: EasyDict) -> None:
    forward, sensor = dataset(cfg).load_sample(5), dataset(plain_cfg).load_sample(5)
    np.testing.assert_array_equal(forward["points"][:, 0], sensor["points"][:, 1])
    np.testing.assert_array_equal(forward["points"][:, 1], -sensor["points"][:, 0])
    for sample in (forward, sensor):
        inside = points_in_boxes_mask(sample["points"][:, :3], sample["gt_boxes"][:, :7], margin=0.0)
        assert inside[PARKED].sum() == 120
    seen = forward["gt_boxes"][CAR] - np.array([0, 0, 0, 4.5, 1.9, 1.6, 0, 1.0, 0.0])
    np.testing.assert_allclose(seen[3:9], 0, atol=1e-5)
    np.testing.assert_allclose(sensor["gt_boxes"][CAR, 6:], [np.pi / 2, 0, 1], atol=1e-5)


def test_velocities_that_are_not_known_become_zeros_if_configured(cfg: EasyDict) -> None:
    once = [k for k, thing in enumerate(OBJECTS) if thing.samples == (4, 4)]
    assert dataset(cfg).load_sample(4)["gt_boxes"][once, 7:].tolist() == [[0.0, 0.0]]
    cfg.SET_NAN_VELOCITY_TO_ZEROS = False
    assert np.isnan(dataset(cfg).load_sample(4)["gt_boxes"][once, 7:]).all()
    cfg.PRED_VELOCITY = False
    assert dataset(cfg).load_sample(4)["gt_boxes"].shape[1] == 7


def test_boxes_with_fewer_lidar_points_are_left_out(cfg: EasyDict) -> None:
    names = dataset(cfg).load_sample(5)["gt_names"].tolist()
    assert names.count("car") == 2 and names.count("ignore") == 1  # seen by the radar alone; an animal
    cfg.FILTER_MIN_POINTS_IN_GT = 0
    assert dataset(cfg).load_sample(5)["gt_names"].tolist().count("car") == 3
    cfg.FILTER_MIN_POINTS_IN_GT = 13
    assert dataset(cfg).load_sample(5)["gt_names"].tolist().count("car") == 1


def test_the_points_of_the_newest_sweep_have_the_class_of_lidarseg(cfg: EasyDict) -> None:
    frames = dataset(cfg)
    sample = frames.load_sample(5)
    labels, old = sample["point_labels"], sample["points"][:, 4] > 0
    assert (labels[old] == 255).all() and (labels == 255).sum() == old.sum() + 4 + 5  # noise, animal
    names = np.array(frames.semantic_class_names)
    for thing, box in zip(OBJECTS[:4], sample["gt_boxes"][:4], strict=True):
        inside = points_in_boxes_mask(sample["points"][:, :3], box[None, :7], margin=0.0)[0] & ~old
        assert {*names[labels[inside]]} == {frames.boxes(frames.info(5))[1][OBJECTS.index(thing)]}


def test_dividers_are_lines_of_the_lane_map_from_left_to_right(cfg: EasyDict) -> None:
    frames = dataset(cfg)
    for index in (0, 12, 13, 25):  # both scenes, from first to last
        lines = frames.lane_lines(index)
        assert lines is not None
        means = [float(line[:, 1].mean()) for line in lines]
        np.testing.assert_allclose(means, LINES, atol=1e-6)
    lanes = frames.load_sample(0)["lane_map"]
    assert lanes.shape == (256, 256) and np.unique(lanes).tolist() == [0, 1, 2, 255]
    rows = np.unique(np.nonzero(lanes == 1)[0])
    assert -51.2 + 0.4 * (rows.mean() + 0.5) == pytest.approx(LINES[1], abs=0.2)


def test_layers_of_the_map_can_be_chosen(cfg: EasyDict) -> None:
    cfg.LANE.LAYERS = ["road_divider"]
    lines = dataset(cfg).lane_lines(0)
    assert lines is not None and len(lines) == 1
    cfg.LANE.update(LAYERS=["lane_divider", "road_divider"], MAX_LINES=2)
    assert len(dataset(cfg).lane_lines(0) or []) == 2


OPENPCDET = ("lidar_path", "cam_front_path", "cam_intrinsic", "token", "sweeps", "ref_from_car",
             "car_from_global", "timestamp", "gt_boxes", "gt_boxes_velocity", "gt_names", "gt_boxes_token",
             "num_lidar_pts", "num_radar_pts")  # fmt: skip


def test_infos_of_openpcdet_have_boxes_alone(with_info: Callable[..., EasyDict], made: Path) -> None:
    mine = pickle.loads((made / VAL).read_bytes())[5]
    cfg = with_info(**{key: None for key in mine if key not in OPENPCDET})
    frames = dataset(cfg)
    assert frames.labels == ("gt_boxes",) and {*OPENPCDET} == {*frames.infos[0]}
    assert {"point_labels", "lane_map"}.isdisjoint(frames.load_sample(0))
    with pytest.raises(DataError, match=r"asks for point_labels.*infos of\s+OpenPCDet.*prepare nuscenes"):
        dataset(cfg, training=True)
    cfg.update(SEMANTIC=None, LANE=None)
    assert len(dataset(cfg, training=True)[0]["gt_boxes"]) > 9


def test_frames_of_a_test_split_have_no_labels(with_info: Callable[..., EasyDict]) -> None:
    none = dict.fromkeys(("gt_boxes", "gt_names", "num_lidar_pts", "lidarseg_path", "location"))
    frames = dataset(with_info(**none))
    assert frames.labels == () and frames.ground_truth_annos() == [None]
    assert {"gt_boxes", "point_labels", "lane_map"}.isdisjoint(frames[0])


def test_balanced_resampling_gives_each_class_as_many_draws(cfg: EasyDict, made: Path) -> None:
    cfg.BALANCED_RESAMPLING = True
    frames, again = dataset(cfg, training=True), dataset(cfg, training=True)
    pairs = sum(len({*info["gt_names"]} & {*CLASSES}) for info in frames.infos)
    assert len(frames) == pairs // 10 * 10 and np.array_equal(frames.order, again.order)
    assert len(dataset(cfg)) == 26  # the frames of an evaluation are as they are
    assert frames.frame_name(0) == frames.load_sample(0)["frame_id"]


def test_rare_classes_occur_more_often_after_balanced_resampling() -> None:
    from logging import getLogger

    from pcdet_freeze.datasets.nuscenes.resampling import balanced_frames

    names = [np.array(["car", "car"])] * 9 + [np.array(["bus", "animal"])]
    order = balanced_frames(names, ["car", "bus", "truck"], getLogger("test"))
    assert np.bincount(order, minlength=10)[9] == 3 and len(order) == 6  # ten pairs, three classes


def test_a_batch_of_training_has_velocities_ages_and_all_labels(cfg: EasyDict) -> None:
    frames = dataset(cfg, training=True)
    batch = frames.collate_batch([frames[6], frames[10]])
    assert batch["gt_boxes"].shape[2] == 10 and batch["points"].shape[1] == 6
    assert batch["has_gt_boxes"].all() and batch["has_point_labels"].all() and batch["has_lane_map"].all()
    assert [entry["token"] for entry in batch["metadata"]] == batch["frame_id"].tolist()


def test_gt_sampling_pastes_objects_with_velocity_and_age(root: Path, cfg: EasyDict) -> None:
    shipped = cfg_from_yaml_file(root / "cfgs/dataset_configs/nuscenes_multi_task.yaml").DATA_AUGMENTOR
    sampler = shipped.AUG_CONFIG_LIST[0]
    sampler.update(SAMPLE_GROUPS=["car:5"], PREPARE={"filter_by_min_points": ["car:5"]})
    before = dataset(cfg, training=True)[13]["gt_boxes"]
    cfg.DATA_AUGMENTOR = [sampler]
    after = dataset(cfg, training=True)[13]["gt_boxes"]
    pasted = after[len(before) :]
    assert len(pasted) and (pasted[:, 9] == CLASSES.index("car") + 1).all()


def test_velocities_of_pasted_objects_become_zeros_if_configured(
    root: Path, cfg: EasyDict, made: Path
) -> None:
    shipped = cfg_from_yaml_file(root / "cfgs/dataset_configs/nuscenes_multi_task.yaml").DATA_AUGMENTOR
    sampler, (name,) = shipped.AUG_CONFIG_LIST[0], shipped.AUG_CONFIG_LIST[0].DB_INFO_PATH
    entries = pickle.loads((made / name).read_bytes())
    for entry in entries["car"]:
        entry["box3d_lidar"][7:] = np.nan
    (made / "unknown.pkl").write_bytes(pickle.dumps(entries))
    sampler.update(
        SAMPLE_GROUPS=["car:5"], PREPARE={"filter_by_min_points": ["car:5"]}, DB_INFO_PATH=["unknown.pkl"]
    )
    before = len(dataset(cfg, training=True)[13]["gt_boxes"])
    cfg.DATA_AUGMENTOR = [sampler]
    pasted = dataset(cfg, training=True)[13]["gt_boxes"][before:]
    assert len(pasted) and (pasted[:, 7:9] == 0).all()
    cfg.SET_NAN_VELOCITY_TO_ZEROS = False
    assert np.isnan(dataset(cfg, training=True)[13]["gt_boxes"][before:, 7:9]).all()


@pytest.mark.parametrize(("key", "value", "message"), [
    ("VERSION", "trainval", "a version of the tables"),
    ("MAX_SWEEPS", 0, "MAX_SWEEPS must be a whole number, 1 or more"),
    ("X_FORWARD", False, "LANE needs X_FORWARD: true"),
    ("LANE", {"CELL_SIZE": 0.7}, "must divide POINT_CLOUD_RANGE"),
    ("LANE", {"CELL_SIZE": 0.4, "LAYERS": ["lane"]}, "LAYERS"),
    ("SEMANTIC", {"CLASSES": ["road"]}, r"SEMANTIC\.LABEL_MAP is required"),
    ("POINT_FEATURE_ENCODING", {"used_feature_list": ["x", "y", "z"], "src_feature_list": ["x", "y", "z"]},
     r"src_feature_list must be \[x, y, z, intensity, timestamp\]"),
    ("MAX_SWEEP", 3, "did you mean MAX_SWEEPS"),
])  # fmt: skip
def test_settings_that_cannot_be_used_are_errors(cfg: EasyDict, key: str, value: Any, message: str) -> None:
    cfg[key] = value
    with pytest.raises(ConfigError, match=message):
        dataset(cfg)


@pytest.mark.parametrize(("changes", "message"), [
    ({"lidar_path": "../a.bin"}, "must stay within"),
    ({"lidar_path": 3}, "must name a file as lidar_path; got 3"),
    ({"lidar_path": "samples/LIDAR_TOP/none.bin"}, "none.bin: the point file cannot be read"),
    ({"sweeps": [{}] * 3}, "MAX_SWEEPS: 10 needs 9 entries"),
    ({"sweeps": [{}] * 9}, "an entry of `sweeps` is broken"),
    ({"sweeps": [{"transform_matrix": np.eye(3), "time_lag": 0.1}] * 9}, r"must be \(4, 4\)"),
    ({"gt_boxes": np.zeros((2, 9))}, "2 gt_boxes, 14 gt_names"),
    ({"gt_boxes": np.zeros((14, 9))}, "edges of"),
    ({"gt_names": None}, "labels of its info are broken"),
    ({"lidarseg_path": "lidarseg/none.bin"}, "point labels cannot be read"),
    ({"ref_from_car": np.zeros((4, 4))}, "ref_from_car and car_from_global of its info are broken"),
])  # fmt: skip
def test_a_broken_info_is_an_error_that_names_the_fault(
    with_info: Callable[..., EasyDict], changes: dict[str, Any], message: str
) -> None:
    frames = dataset(with_info(**changes))
    with pytest.raises(DataError, match=message):
        frames.load_sample(0)


def test_labels_of_another_sweep_are_an_error(with_info: Callable[..., EasyDict], made: Path) -> None:
    name = "lidarseg/short.bin"
    (made / name).write_bytes(b"\x11" * 9)
    with pytest.raises(DataError, match=r"short.bin: lidarseg holds one byte for each of the 434 points"):
        dataset(with_info(lidarseg_path=name)).load_sample(0)


@pytest.mark.parametrize(("content", "message"), [
    (None, "the map expansion is missing"), ("{", "not a map of nuScenes' expansion"),
    ('{"node": [], "line": []}', "not a map of nuScenes' expansion"),
    ('{"node": [{"token": "a", "x": 0, "y": 0}, {"token": "b", "x": 1e10, "y": 0}], "line": [{"token": "l", '
     '"node_tokens": ["a", "b"]}], "lane_divider": [{"line_token": "l"}], "road_divider": []}',
     "not a map of nuScenes' expansion.*a line must be finite and at most"),
])  # fmt: skip
def test_a_broken_map_is_an_error(
    with_info: Callable[..., EasyDict], made: Path, content: str | None, message: str
) -> None:
    path = made / "maps/expansion/nowhere.json"
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=message):
        dataset(with_info(location="nowhere"))


@pytest.mark.parametrize(("content", "message"), [
    (None, "the info file is missing; write the info files"), ([], "list no frame"),
    ([{"no": "token"}], "a list of frames with a token"), ({}, "a list of frames with a token"),
])  # fmt: skip
def test_an_info_file_that_cannot_be_used_is_named(
    cfg: EasyDict, tmp_path: Path, content: Any, message: str
) -> None:
    cfg.INFO_ROOT = str(tmp_path)
    if content is not None:
        (tmp_path / VAL).write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=message):
        dataset(cfg)


def test_the_folder_of_the_version_may_hold_the_data(cfg: EasyDict, made: Path, tmp_path: Path) -> None:
    """OpenPCDet keeps the data in DATA_PATH/VERSION."""
    (tmp_path / VERSION).symlink_to(made)
    cfg.DATA_PATH = str(tmp_path)
    assert len(dataset(cfg)) == 26


def test_packed_infos_give_the_same_frames(
    cfg: EasyDict, made: Path, tmp_path: Path, packs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (TRAIN, VAL):
        shutil.copy(made / name, tmp_path)
    cfg.update(INFO_ROOT=str(tmp_path), BALANCED_RESAMPLING=True)
    packed = pickle.loads(pickle.dumps(dataset(cfg, training=True)))
    assert packs == [tmp_path / TRAIN.replace(".pkl", ".packed")]
    monkeypatch.setattr(opening, "PACK_FROM", 10**9)
    listed = dataset(cfg, training=True)
    assert packed.order.tolist() == listed.order.tolist() and packed.labels == listed.labels
    for index in (0, 7):
        frames = [found.load_sample(index) for found in (packed, listed)]
        assert pickle.dumps(frames[0]) == pickle.dumps(frames[1])


def test_classes_of_ones_own_can_be_balanced(with_info: Callable[..., EasyDict], made: Path) -> None:
    cfg = with_info(gt_names=np.array(["tram"] * 15))
    cfg.BALANCED_RESAMPLING = True
    assert len(build_dataset(cfg, ["tram"], True)) == 1
    assert len(build_dataset(cfg, ["car", "tram"], True)) == 1  # not half a frame
