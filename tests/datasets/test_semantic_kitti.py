"""SemanticKITTI: point labels of the sweeps, the official mean IoU, and files of a submission."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from easydict import EasyDict
from kitti_maker import make_kitti
from semantic_kitti_maker import NUMBERS, make_sequence

from pcdet_freeze.__main__ import main
from pcdet_freeze.config import cfg_from_yaml_file
from pcdet_freeze.datasets import build_dataset
from pcdet_freeze.datasets.file_formats.files import read_pickle
from pcdet_freeze.datasets.kitti import prepare_kitti
from pcdet_freeze.datasets.loader import label_forms_of
from pcdet_freeze.datasets.semantic_kitti import SemanticKittiDataset, prepare_semantic_kitti
from pcdet_freeze.datasets.semantic_kitti.classes import CLASSES, IGNORED_NUMBERS, MOVING, classes_of
from pcdet_freeze.engine.testing.scoring import TaskCounter
from pcdet_freeze.errors import ConfigError, DataError
from pcdet_freeze.evaluation import TASK_METRICS, MetricContext


@pytest.fixture
def cfg(root: Path, tmp_path: Path) -> EasyDict:
    """The shipped config on two small sequences."""
    make_sequence(tmp_path / "data", 0)
    make_sequence(tmp_path / "data", 8, labelled=True)
    shipped = cfg_from_yaml_file(root / "cfgs/dataset_configs/semantic_kitti_dataset.yaml")
    shipped.update(DATA_PATH=str(tmp_path / "data"), SEQUENCES={"train": [0], "test": [8]})
    return shipped


def dataset(cfg: EasyDict, training: bool = False) -> SemanticKittiDataset:
    found = build_dataset(cfg, ["Car"], training)
    assert isinstance(found, SemanticKittiDataset)
    return found


def names_of(frames: SemanticKittiDataset) -> list[str]:
    names = np.array([*frames.semantic_class_names, *[""] * 300])
    return names[frames.load_sample(0)["point_labels"][:8]].tolist()


def test_labels_are_the_lower_16_bits_in_19_classes(cfg: EasyDict) -> None:
    frames = dataset(cfg)
    assert len(frames.semantic_class_names) == 19 and frames.frame_name(1) == "08_000001"
    assert names_of(frames) == ["car", "road", "road", "car", "", "vegetation", "person", ""]


def test_moving_objects_are_classes_of_their_own_if_configured(cfg: EasyDict) -> None:
    cfg.MOVING_CLASSES = True
    frames = dataset(cfg)
    assert len(frames.semantic_class_names) == 25
    assert names_of(frames) == ["car", "road", "road", "moving-car", "", "vegetation", "moving-person", ""]


def test_every_number_of_the_data_set_has_one_class_or_is_ignored() -> None:
    for moving in (False, True):
        numbers = [number for found in classes_of(moving).values() for number in found]
        assert len(numbers) == len(set(numbers)) and not set(numbers) & set(IGNORED_NUMBERS)
        assert len(numbers) + len(IGNORED_NUMBERS) == 34
    assert len(CLASSES) == 19 and len(MOVING) == 6


def test_a_sweep_without_labels_is_labelled_in_part(cfg: EasyDict) -> None:
    (Path(cfg.DATA_PATH) / "sequences/00/labels/000001.label").unlink()
    frames = dataset(cfg, training=True)
    batch = frames.collate_batch([frames[0], frames[1]])
    assert batch["has_point_labels"].tolist() == [True, False] and not batch["has_gt_boxes"].any()


@pytest.mark.parametrize(("numbers", "message"), [
    ([0, 3], r"sequences/03/velodyne must hold the sweeps of sequence 3"), ([], "a list of the numbers"),
    (["00a"], "SEQUENCES"),
])  # fmt: skip
def test_sequences_that_are_not_there_are_an_error(cfg: EasyDict, numbers: Any, message: str) -> None:
    cfg.SEQUENCES.test = numbers
    with pytest.raises((ConfigError, DataError), match=message):
        dataset(cfg)


def test_a_training_without_any_label_is_an_error(cfg: EasyDict) -> None:
    make_sequence(Path(cfg.DATA_PATH), 11, labelled=False)
    cfg.SEQUENCES.train = [11]
    with pytest.raises(DataError, match="none of the 2 sweeps"):
        dataset(cfg, training=True)


@pytest.mark.parametrize(("raw", "message"), [
    (NUMBERS[:9].tobytes(), "each of the 400 points .* got 9"),
    (np.full(400, 777, "<u4").tobytes(), "got 777"),
])  # fmt: skip
def test_a_label_file_that_does_not_fit_is_named(cfg: EasyDict, raw: bytes, message: str) -> None:
    (Path(cfg.DATA_PATH) / "sequences/08/labels/000000.label").write_bytes(raw)
    with pytest.raises(DataError, match=rf"labels/000000\.label: .*{message}"):
        dataset(cfg).load_sample(0)


def official_mean(truth: np.ndarray, predicted: np.ndarray, classes: int) -> float:
    """The benchmark's mean IoU in percent, written from its description.

    Class 0 of its confusion matrix is the ignored one: points that are labelled so do not count, and the mean
    is over the other classes.
    """
    matrix = np.zeros((classes + 1, classes + 1))
    for true, said in zip(np.where(truth == 255, -1, truth) + 1, predicted + 1, strict=True):
        matrix[said, true] += 1
    matrix[:, 0] = 0
    both = np.diag(matrix)
    either = matrix.sum(axis=0) + matrix.sum(axis=1) - both
    return 100 * float((both / (either + 1e-15))[1:].mean())


def scores(truth: np.ndarray, predicted: np.ndarray, absent: bool) -> dict[str, float]:
    metric = TASK_METRICS.get("segmentation")(MetricContext(tuple(CLASSES), absent_classes_count=absent))
    return metric.summarise(metric.count(truth, {"pred_point_labels": predicted}))


def test_the_mean_iou_is_that_of_the_benchmark() -> None:
    rng = np.random.RandomState(0)
    truth = rng.choice([0, 1, 2, 5, 255], 500)
    predicted = np.where(rng.rand(500) < 0.7, truth % 19, rng.choice([0, 1, 3], 500))
    mean = scores(truth, predicted, absent=True)["segmentation/mIoU"]
    assert mean == pytest.approx(official_mean(truth, predicted, 19), abs=1e-9)
    occurring = scores(truth, predicted, absent=False)["segmentation/mIoU"]
    assert mean == pytest.approx(occurring * 4 / 19)  # four classes occur in the labels


def test_what_is_predicted_for_ignored_points_does_not_count() -> None:
    truth = np.array([0, 1, 255, 255])
    for said in (0, 1, 18):
        predicted = np.array([0, 1, said, 3])
        assert scores(truth, predicted, absent=True)["segmentation/mIoU"] == pytest.approx(100 * 2 / 19)


def test_an_evaluation_uses_the_mean_of_the_data_set(cfg: EasyDict) -> None:
    counter = TaskCounter(dataset(cfg))
    assert counter.context.absent_classes_count and len(counter.context.semantic_class_names) == 19
    assert label_forms_of(cfg).semantic_class_names == counter.context.semantic_class_names


def test_prepare_lists_the_sweeps_and_counts_the_points_of_each_class(cfg: EasyDict) -> None:
    report = prepare_semantic_kitti(cfg, ["Car"], workers=2)
    assert report.frames == {"train": 2, "test": 2} and report.points["road"] == 2 * 100
    info = read_pickle(Path(cfg.DATA_PATH) / "semantic_kitti_infos_train.pkl")[1]
    assert info["lidar_path"] == "sequences/00/velodyne/000001.bin" and info["num_points"] == 400
    assert info["point_counts"].tolist()[:2] == [100, 0]


def test_a_damaged_sweep_is_named_and_finished_ones_are_not_read_again(
    cfg: EasyDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    (Path(cfg.DATA_PATH) / "sequences/00/velodyne/000000.bin").write_bytes(b"123")
    begun: list[str] = []
    load = SemanticKittiDataset.load_sample

    def noted(self: SemanticKittiDataset, index: int) -> Any:
        begun.append(self.frame_name(index))
        if begun[-1] == "08_000001" and begun.count("08_000001") == 1:
            raise KeyboardInterrupt
        return load(self, index)

    monkeypatch.setattr(SemanticKittiDataset, "load_sample", noted)
    with pytest.raises(KeyboardInterrupt):
        prepare_semantic_kitti(cfg, ["Car"], workers=1)
    begun[:] = ["08_000001"]
    report = prepare_semantic_kitti(cfg, ["Car"], workers=1)
    assert report.frames == {"train": 1, "test": 2} and "000000.bin" in report.skipped["00_000000"]
    assert begun[1:] == ["00_000000", "08_000001"]


def test_the_command_prepares_the_shipped_config(cfg: EasyDict, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--cfg_file", "dataset_configs/semantic_kitti_dataset.yaml", "--set", "DATA_PATH", cfg.DATA_PATH,
             "SEQUENCES", "{train: [0], test: [8]}"]  # fmt: skip
    assert main(["prepare", "semantic_kitti", *words]) == 0
    assert "sweeps: 2 train, 2 test; objects in the database: none" in capsys.readouterr().out


def test_a_submission_has_a_number_for_each_point(cfg: EasyDict, tmp_path: Path) -> None:
    frames = dataset(cfg)
    predicted = [{"pred_point_labels": torch.arange(400) % 19}] * 2
    frames.write_predictions({"frame_id": ["08_000000", "08_000001"]}, predicted, tmp_path / "out")
    written = np.fromfile(tmp_path / "out/sequences/08/predictions/000001.label", "<u4")
    assert written[:19].tolist() == [numbers[0] for numbers in CLASSES.values()] and len(written) == 400
    with pytest.raises(DataError, match="each of the 400 points of sweep 08_000000; got 399"):
        frames.write_predictions(
            {"frame_id": ["08_000000"]}, [{"pred_point_labels": torch.zeros(399)}], tmp_path
        )


def test_a_submission_needs_the_order_of_the_files(cfg: EasyDict, tmp_path: Path) -> None:
    shuffle = next(step for step in cfg.DATA_PROCESSOR if step.NAME == "shuffle_points")
    shuffle.SHUFFLE_ENABLED.test = True
    predicted = [{"pred_point_labels": torch.zeros(400)}]
    with pytest.raises(ConfigError, match=r"SHUFFLE_ENABLED\.test: False"):
        dataset(cfg).write_predictions({"frame_id": ["08_000000"]}, predicted, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_point_classes_are_learned_beside_a_frozen_detector_and_submitted(
    cfg: EasyDict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(command: str, stage: str, *words: str) -> str:
        file = ["--cfg_file", f"semantic_kitti_models/{stage}.yaml", "--device", "cpu"]
        assert main([command, *file, *words, "--set", *sets[stage], *small]) == 0
        return capsys.readouterr().out

    few = ["--max_iters", "3", "--workers", "0", "--fix_random_seed", "--output_dir", str(tmp_path)]
    small = ["DATA_CONFIG.POINT_CLOUD_RANGE", "[-12.8, -12.8, -3, 25.6, 12.8, 2]",
             "MODEL.POST_PROCESSING.SCORE_THRESH", "0.0"]  # fmt: skip
    kitti = cfg_from_yaml_file("semantic_kitti_models/stage1_detect.yaml").DATA_CONFIG
    kitti.DATA_PATH = str(make_kitti(tmp_path / "kitti"))
    prepare_kitti(kitti, ["Car"], workers=1)
    sets = {
        "stage1_detect": ["DATA_CONFIG.DATA_PATH", kitti.DATA_PATH],
        "stage2_segment": ["DATA_CONFIG.DATA_PATH", cfg.DATA_PATH,
                           "DATA_CONFIG.SEQUENCES", "{train: [0], test: [8]}"],
    }  # fmt: skip
    run("train", "stage1_detect", *few)
    first = next((tmp_path / "semantic_kitti_models/stage1_detect").glob("**/checkpoint_epoch_*.pth"))
    run("train", "stage2_segment", *few, "--save_to_file", "--pretrained_model", str(first))
    folder = tmp_path / "semantic_kitti_models/stage2_segment/default"
    second = next(folder.glob("ckpt/checkpoint_epoch_*.pth"))
    assert main(["verify", str(first), str(second)]) == 0
    found = json.loads(next(folder.glob("eval/**/result.json")).read_text())
    assert {"segmentation/mIoU", "segmentation/IoU/road"} <= found.keys()
    written = list(folder.glob("eval/**/sequences/08/predictions/*.label"))
    assert len(written) == 2 and all(path.stat().st_size == 4 * 400 for path in written)
