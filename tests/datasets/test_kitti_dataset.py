"""KittiDataset: samples, bad frames, conversion of annotations."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from easydict import EasyDict
from kitti_maker import make_kitti, scene_points

from pcdet_freeze.config import cfg_from_yaml_file
from pcdet_freeze.datasets import build_dataloader
from pcdet_freeze.datasets.file_formats.files import read_pickle, write_pickle
from pcdet_freeze.datasets.kitti import KittiDataset, prepare_kitti
from pcdet_freeze.errors import ConfigError, DataError

CLASSES = ["Car", "Pedestrian", "Cyclist"]
Kitti = Callable[..., KittiDataset]


def predictions(batch: dict) -> list[dict[str, torch.Tensor]]:
    """The ground truth of a batch as if it were predicted."""
    out = []
    for boxes in batch["gt_boxes"]:
        rows = torch.from_numpy(boxes[boxes[:, 7] > 0])
        out.append(
            {
                "pred_boxes": rows[:, :7],
                "pred_labels": rows[:, 7].long(),
                "pred_scores": torch.rand(len(rows)),
            }
        )
    return out


def test_a_test_sample_contains_the_points_in_the_image(kitti: Kitti) -> None:
    sample = kitti(training=False)[0]
    assert sample["frame_id"] == "000001"
    assert (sample["points"][:, 0] > 0).all()
    assert len(sample["points"]) < 360
    np.testing.assert_allclose(sample["gt_boxes"][:, 7], [1, 2])
    assert sample["image_shape"].tolist() == [200, 600]


def test_all_points_are_kept_without_the_field_of_view(kitti: Kitti, kitti_cfg: EasyDict) -> None:
    kitti_cfg.FOV_POINTS_ONLY = False
    np.testing.assert_array_equal(kitti(training=False).load_sample(0)["points"], scene_points(1))


def test_training_pastes_objects_of_other_frames(kitti: Kitti) -> None:
    dataset = kitti()
    numbers = set()
    for epoch in range(4):
        dataset.set_epoch(epoch)
        numbers |= {len(dataset[0]["gt_boxes"]) for _ in range(2)}
    assert max(numbers) > 1
    assert not {"road_plane", "gt_names"} & dataset[0].keys()


def test_infos_can_be_in_another_folder(raw_kitti: EasyDict, tmp_path: Path) -> None:
    prepare_kitti(raw_kitti, CLASSES, out_dir=tmp_path / "infos")
    raw_kitti.INFO_ROOT = str(tmp_path / "infos")
    assert len(KittiDataset(raw_kitti, CLASSES)) == 3


def test_missing_planes_are_logged_once(kitti: Kitti, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        dataset = kitti()
        [dataset[i] for i in range(3)]
    assert caplog.text.count("no road plane for 3 of 3 frames") == 1


def test_planes_are_used_where_they_are(raw_kitti: EasyDict, caplog: pytest.LogCaptureFixture) -> None:
    shutil.rmtree(raw_kitti.DATA_PATH)
    make_kitti(Path(raw_kitti.DATA_PATH), planes=True)
    prepare_kitti(raw_kitti, CLASSES)
    raw_kitti.DATA_AUGMENTOR.AUG_CONFIG_LIST = raw_kitti.DATA_AUGMENTOR.AUG_CONFIG_LIST[:1]
    with caplog.at_level(logging.INFO):
        boxes = KittiDataset(raw_kitti, CLASSES)[2]["gt_boxes"]
    assert "no road plane" not in caplog.text
    assert len(boxes) > 1
    np.testing.assert_allclose((boxes[:, 2] - boxes[:, 5] / 2)[1:], -1.6, atol=1e-5)


def spoil(cfg: EasyDict, raw: bytes) -> None:
    (Path(cfg.DATA_PATH) / "training/velodyne/000001.bin").write_bytes(raw)


@pytest.mark.parametrize("raw, reason", [
    (b"", "empty"), (b"\0" * 20, "truncated"), (np.full(4, np.nan, "<f4").tobytes(), "NaN")])  # fmt: skip
def test_a_broken_frame_is_skipped_in_training_and_an_error_in_test(
    kitti: Kitti, kitti_cfg: EasyDict, caplog: pytest.LogCaptureFixture, raw: bytes, reason: str
) -> None:
    spoil(kitti_cfg, raw)
    sample = kitti()[1]
    assert (sample["frame_id"], sample["skipped_frames"]) == ("000002", ["000001"])
    assert reason in caplog.text
    with pytest.raises(DataError, match=rf"000001\.bin.*{reason}"):
        kitti(training=False)[0]


def test_skipped_frames_reach_the_batch(kitti_cfg: EasyDict) -> None:
    spoil(kitti_cfg, b"")
    _, loader, _ = build_dataloader(kitti_cfg, CLASSES, 3, training=True)
    assert next(iter(loader))["skipped_frames"] == ["000001"]


def test_a_missing_info_file_names_path_and_command(raw_kitti: EasyDict) -> None:
    with pytest.raises(DataError, match=r"kitti_.*\.pkl.*pcdet-freeze prepare kitti"):
        KittiDataset(raw_kitti, CLASSES)


def test_a_missing_data_folder_names_path_and_command(raw_kitti: EasyDict, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere.*pcdet-freeze prepare kitti"):
        KittiDataset(raw_kitti, CLASSES, root_path=tmp_path / "nowhere")


def test_an_info_file_without_frames_is_an_error(kitti: Kitti, kitti_cfg: EasyDict) -> None:
    write_pickle(Path(kitti_cfg.DATA_PATH) / "kitti_infos_val.pkl", [])
    with pytest.raises(DataError, match=r"list no frame.*val\.txt"):
        kitti(training=False)


def test_an_info_that_lacks_parts_is_a_bad_frame(kitti: Kitti, kitti_cfg: EasyDict) -> None:
    path = Path(kitti_cfg.DATA_PATH) / "kitti_infos_val.pkl"
    infos = read_pickle(path)
    del infos[0]["calib"]["P2"]
    write_pickle(path, infos)
    with pytest.raises(DataError, match="frame 000001: its info lacks"):
        kitti(training=False)[0]


@pytest.mark.parametrize("key, value, message", [
    ("GET_ITEM_LIST", ["points", "images"], r"GET_ITEM_LIST\[1\] must be one of"),
    ("DATA_SPLIT", "train", r"DATA_SPLIT must be a section such as {train: \.\.\., test: \.\.\.}"),
    ("FOV_POINT_ONLY", True, r"FOV_POINT_ONLY is not a key .*did you mean FOV_POINTS_ONLY\?"),
])  # fmt: skip
def test_settings_without_effect_are_errors(
    kitti: Kitti, kitti_cfg: EasyDict, key: str, value: object, message: str
) -> None:
    kitti_cfg[key] = value
    with pytest.raises(ConfigError, match=message):
        kitti()


def test_predictions_of_the_ground_truth_are_the_ground_truth(kitti_cfg: EasyDict) -> None:
    dataset, loader, _ = build_dataloader(kitti_cfg, CLASSES, 2, training=False)
    batch = next(iter(loader))
    found = dataset.generate_prediction_dicts(batch, predictions(batch), CLASSES)
    for anno, truth in zip(found, dataset.ground_truth_annos(), strict=True):
        real = truth["name"] != "DontCare"
        assert anno["frame_id"] == truth["frame_id"]
        assert anno["name"].tolist() == truth["name"][real].tolist()
        for key in ("location", "dimensions", "rotation_y", "boxes_lidar"):
            np.testing.assert_allclose(anno[key], truth[key][real], atol=1e-5)


def test_a_frame_without_predictions_has_empty_annotations(kitti_cfg: EasyDict) -> None:
    dataset, loader, _ = build_dataloader(kitti_cfg, CLASSES, 1, training=False)
    nothing = {
        "pred_boxes": torch.zeros(0, 7),
        "pred_labels": torch.zeros(0).long(),
        "pred_scores": torch.zeros(0),
    }
    anno = dataset.generate_prediction_dicts(next(iter(loader)), [nothing], CLASSES)[0]
    assert anno["bbox"].shape == (0, 4)
    assert anno["name"].shape == anno["alpha"].shape == (0,)


def test_result_files_are_kittis(kitti_cfg: EasyDict, tmp_path: Path) -> None:
    dataset, loader, _ = build_dataloader(kitti_cfg, CLASSES, 2, training=False)
    batch = next(iter(loader))
    dataset.generate_prediction_dicts(batch, predictions(batch), CLASSES, output_path=tmp_path / "out")
    words = (tmp_path / "out/000001.txt").read_text().splitlines()[0].split()
    assert words[0] == "Car"
    assert len(words) == 16
    np.testing.assert_allclose(
        [float(word) for word in words[8:15]], [1.5, 1.6, 4, -2, 1.5, 15, 0], atol=1e-3
    )


def test_ground_truth_is_a_copy_with_zero_boxes_for_dont_care(kitti: Kitti, kitti_cfg: EasyDict) -> None:
    kitti_cfg.INFO_PATH.test = ["kitti_infos_train.pkl"]
    dataset = kitti(training=False)
    anno = dataset.ground_truth_annos()[0]
    assert anno["name"].tolist() == ["Car", "DontCare"]
    np.testing.assert_allclose(anno["boxes_lidar"][0, :3], [15, 2, -0.75], rtol=1e-6)
    assert not anno["boxes_lidar"][1].any()
    anno["location"][:] = 0
    assert dataset.infos[0]["annos"]["location"].any()


def test_a_frame_without_labels_has_no_annotation_to_be_evaluated(kitti: Kitti, kitti_cfg: EasyDict) -> None:
    path = Path(kitti_cfg.DATA_PATH) / "kitti_infos_val.pkl"
    infos = read_pickle(path)
    del infos[0]["annos"]
    path.write_bytes(pickle.dumps(infos))
    first, second = kitti(training=False).ground_truth_annos()
    assert first is None and second["frame_id"] == "000002"


def test_real_frames_make_a_batch(real_data: Path, pillar_cfg: EasyDict, tmp_path: Path) -> None:
    prepare_kitti(pillar_cfg, CLASSES, data_path=real_data / "kitti", out_dir=tmp_path)
    pillar_cfg.update(DATA_PATH=str(real_data / "kitti"), INFO_ROOT=str(tmp_path))
    dataset, loader, _ = build_dataloader(pillar_cfg, CLASSES, 3, training=False)
    batch = next(iter(loader))
    assert batch["gt_boxes"][:, :, 7].tolist() == [[2, 0], [1, 3], [1, 0]]
    assert batch["voxels"].shape[1:] == (32, 4)
    assert batch["voxel_coords"].dtype == np.int32
    assert set(batch["voxel_coords"][:, 0]) == {0, 1, 2}
    assert dataset.grid_size.tolist() == [432, 496, 1]


def test_real_training_frames_are_augmented(real_data: Path, pillar_cfg: EasyDict, tmp_path: Path) -> None:
    prepare_kitti(pillar_cfg, CLASSES, data_path=real_data / "kitti", out_dir=tmp_path)
    pillar_cfg.update(DATA_PATH=str(real_data / "kitti"), INFO_ROOT=str(tmp_path))
    _, loader, sampler = build_dataloader(pillar_cfg, CLASSES, 3, training=True)
    sampler.set_epoch(1)
    first = next(iter(loader))
    assert len(first["points"]) > 30000
    np.testing.assert_array_equal(next(iter(loader))["points"], first["points"])


def without(cfg: dict, *keys: str) -> dict:
    return {key: value for key, value in cfg.items() if key not in keys}


def test_pointpillar_yaml_has_openpcdets_figures(reference: Path, root: Path) -> None:
    wanted = json.loads((reference / "configs/kitti_models__pointpillar.json").read_text())
    found = cfg_from_yaml_file(root / "cfgs/kitti_models/pointpillar.yaml")
    ours = ("DATA_PATH", "INFO_ROOT", "KEEP_EMPTY_FRAMES", "_BASE_CONFIG_")
    assert without(found.DATA_CONFIG, *ours) == without(wanted["DATA_CONFIG"], *ours)
    for part in ("MODEL", "OPTIMIZATION", "CLASS_NAMES"):
        assert found[part] == wanted[part]
