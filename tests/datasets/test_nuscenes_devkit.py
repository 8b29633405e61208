"""The nuscenes-devkit reads the small set, and scores predictions as its own command does."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from easydict import EasyDict

pytest.importorskip("nuscenes", reason="the nuscenes-devkit is the extra nuscenes")

from nuscenes.eval.common.config import config_factory
from nuscenes.eval.common.utils import quaternion_yaw
from nuscenes.eval.detection.evaluate import DetectionEval
from nuscenes.eval.lidarseg.evaluate import LidarSegEval
from nuscenes.map_expansion.map_api import NuScenesMap
from nuscenes.nuscenes import NuScenes
from nuscenes_maker import CATEGORIES, VERSION, make_nuscenes
from pyquaternion import Quaternion

from pcdet_freeze.config import cfg_from_yaml_file
from pcdet_freeze.datasets import build_dataset
from pcdet_freeze.datasets.argoverse2.poses import quaternion_of, rotation_matrices
from pcdet_freeze.datasets.nuscenes import NuScenesDataset, prepare_nuscenes, write_submission
from pcdet_freeze.datasets.nuscenes.classes import CATEGORIES as DETECTION
from pcdet_freeze.datasets.nuscenes.classes import DETECTION_CLASSES
from pcdet_freeze.datasets.nuscenes.dividers import map_path, read_dividers
from pcdet_freeze.datasets.nuscenes.results import write_frame
from pcdet_freeze.errors import ConfigError, DataError
from pcdet_freeze.evaluation import TASK_METRICS, MetricContext

CLASSES = list(DETECTION_CLASSES)


@pytest.fixture(scope="module")
def cfg(root: Path, tmp_path_factory: pytest.TempPathFactory) -> EasyDict:
    shipped = cfg_from_yaml_file(root / "cfgs/dataset_configs/nuscenes_multi_task.yaml")
    data = make_nuscenes(tmp_path_factory.mktemp("nuscenes"))
    shipped.update(DATA_PATH=str(data), VERSION=VERSION)
    prepare_nuscenes(shipped, CLASSES, workers=2)
    return shipped


@pytest.fixture(scope="module")
def devkit(cfg: EasyDict) -> NuScenes:
    return NuScenes(VERSION, dataroot=cfg.DATA_PATH, verbose=False)


@pytest.fixture
def frames(cfg: EasyDict) -> NuScenesDataset:
    return build_dataset(cfg, CLASSES, training=False)


def truth(frames: NuScenesDataset, shift: float = 0.0) -> list[dict[str, Any]]:
    """The labels as predictions, ``shift`` metres beside their place."""
    annos = []
    for index in range(len(frames)):
        boxes, names, _ = frames.boxes(frames.info(index))
        kept = np.isin(names, CLASSES)
        boxes = boxes[kept] + np.array([shift, *[0.0] * 8], np.float32)
        annos.append({"boxes_lidar": boxes, "name": names[kept], "score": np.linspace(0.9, 0.5, kept.sum()),
                      "metadata": {"token": frames.frame_name(index)}})  # fmt: skip
    return annos


def test_boxes_and_velocities_are_those_of_the_devkit(cfg: EasyDict, devkit: NuScenes) -> None:
    sensor = cfg_from_yaml_file(Path(__file__).parents[2] / "cfgs/dataset_configs/nuscenes_dataset.yaml")
    sensor.update(DATA_PATH=cfg.DATA_PATH, VERSION=VERSION)
    frames = build_dataset(sensor, CLASSES, training=False)
    for index in (0, 4, 12):
        info = frames.info(index)
        _, boxes, _ = devkit.get_sample_data(info["sample_data_token"])
        ours = dict(zip(info["gt_boxes_token"].tolist(), info["gt_boxes"], strict=True))
        moves = dict(zip(info["gt_boxes_token"].tolist(), info["gt_boxes_velocity"], strict=True))
        assert len(ours) == len([box for box in boxes if box.token in ours]) > 10
        for box in (box for box in boxes if box.token in ours):
            width, length, height = box.wlh
            expected = [*box.center, length, width, height, quaternion_yaw(box.orientation)]
            np.testing.assert_allclose(ours[box.token][:7], expected, atol=1e-9)
            speed = np.linalg.norm(devkit.box_velocity(box.token))
            np.testing.assert_allclose(np.linalg.norm(moves[box.token]), speed, atol=1e-9)


def test_class_names_are_those_of_the_devkit() -> None:
    from nuscenes.eval.detection.constants import DETECTION_NAMES
    from nuscenes.eval.detection.utils import category_to_detection_name

    assert {name: category_to_detection_name(name) for name in CATEGORIES} == {
        name: DETECTION.get(name) for name in CATEGORIES
    }
    assert {*DETECTION_NAMES} == {*DETECTION_CLASSES}


def test_the_truth_scores_itself_with_full_marks(frames: NuScenesDataset) -> None:
    scored = frames.official_scores(truth(frames))
    assert scored is not None
    text, values = scored
    assert values["nuscenes/mAP"] == pytest.approx(1.0) and values["nuscenes/NDS"] == pytest.approx(1.0)
    assert values["nuscenes/AP/bus"] == pytest.approx(1.0) and values["nuscenes/mAVE"] < 1e-4
    assert "NDS 1.0000" in text and "traffic_cone" in text


@pytest.mark.parametrize("shift", [0.3, 0.7, 3.0])
def test_scores_are_those_of_the_devkits_own_command(
    frames: NuScenesDataset, devkit: NuScenes, tmp_path: Path, shift: float
) -> None:
    annos = truth(frames, shift)
    scored = frames.official_scores(annos)
    for anno in annos:
        write_frame(tmp_path / "data", frames.result_rows(anno))
    path = tmp_path / "results_nusc.json"
    assert write_submission(tmp_path / "data", path) == 26
    official = DetectionEval(devkit, config_factory("detection_cvpr_2019"), str(path), "mini_val",
                             str(tmp_path), verbose=False).evaluate()[0].serialize()  # fmt: skip
    assert scored is not None and scored[1]["nuscenes/NDS"] == pytest.approx(official["nd_score"])
    assert scored[1]["nuscenes/mAP"] == pytest.approx(official["mean_ap"])
    for name, ap in official["mean_dist_aps"].items():
        assert scored[1][f"nuscenes/AP/{name}"] == pytest.approx(ap)
    np.testing.assert_allclose(scored[1]["nuscenes/mATE"], official["tp_errors"]["trans_err"], rtol=1e-6)


def test_any_set_of_samples_can_be_scored(frames: NuScenesDataset) -> None:
    frames.infos, frames.order = frames.infos[3:6], np.arange(3)
    scored = frames.official_scores(truth(frames))
    assert scored is not None and scored[1]["nuscenes/mAP"] == pytest.approx(1.0)


def test_predictions_without_boxes_score_nothing(frames: NuScenesDataset) -> None:
    empty = {"boxes_lidar": np.zeros((0, 9)), "name": np.zeros(0, str), "score": np.zeros(0)}
    annos = [{**empty, "metadata": anno["metadata"]} for anno in truth(frames)]
    scored = frames.official_scores(annos)
    assert scored is not None and scored[1]["nuscenes/mAP"] == scored[1]["nuscenes/NDS"] == 0


def test_point_labels_are_those_of_the_lidarseg_benchmark(
    frames: NuScenesDataset, devkit: NuScenes, tmp_path: Path
) -> None:
    """The mIoU of random predictions, some of them right, equals the devkit's."""
    rng, names = np.random.RandomState(0), frames.semantic_class_names
    metric = TASK_METRICS.get("segmentation")(MetricContext(names))
    folder = tmp_path / "lidarseg" / "mini_val"
    folder.mkdir(parents=True)
    confusion = 0
    for index in range(len(frames)):
        labels = frames.load_sample(index)["point_labels"]
        labels = labels[: len(devkit_labels(frames, index))]
        seen = np.unique(labels[labels != 255])
        said = np.where(rng.rand(len(labels)) < 0.6, labels, rng.choice(seen, len(labels)))
        said[said == 255] = seen[0]
        confusion += metric.count(labels, {"pred_point_labels": said})["confusion"]
        token = frames.info(index)["sample_data_token"]
        (folder / f"{token}_lidarseg.bin").write_bytes((said + 1).astype(np.uint8).tobytes())
    scored = metric.summarise({"confusion": confusion})
    official = LidarSegEval(devkit, str(tmp_path), "mini_val").evaluate()
    assert scored["segmentation/mIoU"] == pytest.approx(100 * official["miou"], abs=1e-4)
    for name in names:
        ours = scored.get(f"segmentation/IoU/{name}", np.nan)
        assert ours == pytest.approx(100 * official["iou_per_class"][name], abs=1e-4, nan_ok=True)


def devkit_labels(frames: NuScenesDataset, index: int) -> bytes:
    return (Path(frames.root_path) / frames.info(index)["lidarseg_path"]).read_bytes()


def test_the_label_map_of_the_config_is_that_of_the_benchmark(cfg: EasyDict, devkit: NuScenes) -> None:
    from nuscenes.eval.lidarseg.utils import LidarsegClassMapper
    from nuscenes.utils.color_map import get_colormap

    mapper = LidarsegClassMapper(devkit)
    assert list(get_colormap()) == CATEGORIES  # the devkit lists them by their number
    official = {name: number for name, number in mapper.coarse_name_2_coarse_idx_mapping.items() if number}
    assert [*cfg.SEMANTIC.CLASSES] == sorted(official, key=lambda name: official[name])
    ours = {v: name for name, values in cfg.SEMANTIC.LABEL_MAP.items()
            for v in (values if isinstance(values, list) else [values])}  # fmt: skip
    assert ours == {k: mapper.fine_name_2_coarse_name_mapping[name] for k, name in enumerate(CATEGORIES)}


def test_dividers_are_those_of_the_devkits_map(cfg: EasyDict) -> None:
    api = NuScenesMap(cfg.DATA_PATH, "boston-seaport")
    rows = [*api.lane_divider, *api.road_divider]
    expected = [np.array(api.extract_line(row["line_token"]).coords) for row in rows]
    found = read_dividers(map_path(Path(cfg.DATA_PATH), "boston-seaport"), ("lane_divider", "road_divider"))
    assert len(found.pieces) == len(expected) == 10
    for ours, theirs in zip(found.pieces, expected, strict=True):
        np.testing.assert_array_equal(ours[:, :2], theirs)


def test_a_quaternion_of_a_rotation_is_the_devkits() -> None:
    for number in range(20):
        theirs = Quaternion.random() if number else Quaternion(axis=[1, 0, 0], radians=np.pi)
        found = quaternion_of(theirs.rotation_matrix)
        np.testing.assert_allclose(rotation_matrices(found[None])[0], theirs.rotation_matrix, atol=1e-12)
        assert found[0] >= 0


def test_a_missing_devkit_or_another_class_is_an_error_before_a_training(
    cfg: EasyDict, frames: NuScenesDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames.check_evaluation()
    with pytest.raises(ConfigError, match=r"CLASS_NAMES has\s+Van.*OFFICIAL_EVALUATION: false"):
        build_dataset(cfg, ["car", "Van"], training=False).check_evaluation()
    monkeypatch.setitem(sys.modules, "nuscenes", None)
    with pytest.raises(ConfigError, match=r"nuscenes-devkit, which is not installed.*\[nuscenes\]"):
        frames.check_evaluation()


def test_without_the_official_evaluation_kittis_metric_scores(cfg: EasyDict) -> None:
    from pcdet_freeze.evaluation import EVALUATORS

    frames = build_dataset({**cfg, "OFFICIAL_EVALUATION": False}, CLASSES, training=False)
    frames.check_evaluation()
    assert frames.official_scores([]) is None
    annos = frames.ground_truth_annos()
    said = [{**anno, "score": np.ones(len(anno["name"]))} for anno in annos if anno is not None]
    values = EVALUATORS.get("kitti")(annos, said, ["car", "bus"])[1]
    assert values["car_3d/moderate_R40"] > 0


def test_a_folder_without_predictions_gives_no_submission(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no <token>\.json"):
        write_submission(tmp_path, tmp_path / "out.json")
    (tmp_path / "a.json").write_text('[{"sample_')
    with pytest.raises(DataError, match=r"a\.json: not a file of --save_to_file"):
        write_submission(tmp_path, tmp_path / "out.json")


def test_samples_without_a_counted_box_are_an_error(frames: NuScenesDataset) -> None:
    frames.infos, frames.order = frames.infos[:1], np.arange(1)
    path = Path(frames.root_path) / VERSION / "sample_annotation.json"
    before = path.read_text()
    try:
        path.write_text("[]")
        with pytest.raises(DataError, match="None of the 1 samples has a box"):
            frames.official_scores(truth(frames))
    finally:
        path.write_text(before)


def test_predictions_are_written_in_the_global_frame(
    frames: NuScenesDataset, devkit: NuScenes, tmp_path: Path
) -> None:
    true, token = truth(frames)[3], frames.frame_name(3)
    labels = torch.tensor([CLASSES.index(name) + 1 for name in true["name"]])
    said = {"pred_boxes": torch.tensor(true["boxes_lidar"]), "pred_labels": labels,
            "pred_scores": torch.tensor(true["score"])}  # fmt: skip
    batch = {"frame_id": [token], "metadata": [{"token": token}]}
    (anno,) = frames.generate_prediction_dicts(batch, [said], CLASSES, tmp_path)
    assert anno["boxes_lidar"].shape[1] == 9 and {"location", "bbox", "score"} <= anno.keys()
    rows = json.loads((tmp_path / f"{token}.json").read_text())
    boxes = [devkit.get("sample_annotation", name) for name in devkit.get("sample", token)["anns"]]
    by_place = {tuple(np.round(box["translation"], 2)): box for box in boxes}
    assert len(rows) == len(labels)
    for row in rows:
        box = by_place[tuple(np.round(row["translation"], 2))]
        np.testing.assert_allclose(row["size"], box["size"], rtol=1e-5)
        assert abs(np.dot(row["rotation"], box["rotation"])) == pytest.approx(1.0, abs=1e-5)
