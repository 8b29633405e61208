"""Calibration, boxes and labels of KITTI."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kitti_maker import CALIB, CAR, DONT_CARE, IMAGE_SIZE, WALKER

from pcdet_freeze.datasets.kitti.boxes import camera_to_lidar, image_boxes, lidar_to_camera
from pcdet_freeze.datasets.kitti.calibration import Calibration
from pcdet_freeze.datasets.kitti.frame_files import FrameFiles
from pcdet_freeze.datasets.kitti.labels import difficulty_of, read_labels
from pcdet_freeze.errors import DataError

SIMPLE = Calibration(
    *(np.array(CALIB[key], float).reshape(3, -1) for key in ("P2", "R0_rect", "Tr_velo_to_cam"))
)
SHAPE = np.array(IMAGE_SIZE[::-1])


def write_calib(folder: Path, **changes: str) -> Path:
    lines = {key: " ".join(map(str, values)) for key, values in CALIB.items()} | changes
    path = folder / "calib.txt"
    path.write_text("\n".join(f"{key}: {text}" for key, text in lines.items()) + "\n")
    return path


def label_file(folder: Path, *lines: str) -> Path:
    path = folder / "000007.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_calibration_round_trips(real_data: Path) -> None:
    calib = Calibration.from_file(real_data / "kitti/training/calib/000000.txt")
    points = np.random.RandomState(0).uniform(-40, 40, (50, 3))
    np.testing.assert_allclose(calib.rect_to_lidar(calib.lidar_to_rect(points)), points, atol=1e-9)


def test_lidar_axes_become_camera_axes() -> None:
    np.testing.assert_allclose(SIMPLE.lidar_to_rect(np.array([[5.0, 2.0, 1.0]])), [[-2, -1, 5]])


def test_points_behind_or_beside_the_image_are_not_in_it() -> None:
    points = np.array([[10, 0, 0], [-10, 0, 0], [10, 10.1, 0], [10, 0, 4], [10, 10, -3.3]], np.float32)
    assert SIMPLE.in_image(points, SHAPE).tolist() == [True, False, False, False, True]


def test_calibration_survives_the_info_file(tmp_path: Path) -> None:
    calib = Calibration.from_file(write_calib(tmp_path))
    info = calib.to_info()
    assert info["P2"].shape == info["R0_rect"].shape == info["Tr_velo_to_cam"].shape == (4, 4)
    np.testing.assert_array_equal(Calibration.from_info(info).P2, calib.P2)


@pytest.mark.parametrize(
    "text, message", [("1 2 3", "12 finite"), ("1 x", "numbers"), ("nan " * 12, "finite")]
)
def test_a_broken_matrix_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=f"calib.txt: P2 must be .*{message}"):
        Calibration.from_file(write_calib(tmp_path, P2=text))


def test_a_missing_matrix_or_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "calib.txt").write_text("P0: 1 2 3\n")
    with pytest.raises(DataError, match=r"calib\.txt.*line P2"):
        Calibration.from_file(tmp_path / "calib.txt")
    with pytest.raises(DataError, match=r"gone\.txt"):
        Calibration.from_file(tmp_path / "gone.txt")


def test_the_box_centre_is_half_a_height_above_kittis_location() -> None:
    box = camera_to_lidar(np.array([[-2, 1.5, 15]]), np.array([[4, 1.5, 1.6]]), np.array([0.0]), SIMPLE)
    np.testing.assert_allclose(box, [[15, 2, -0.75, 4, 1.6, 1.5, -np.pi / 2]], rtol=1e-6)


@given(st.floats(3, 60), st.floats(-30, 30), st.floats(-3, 3), st.floats(-3.1, 3.1))
def test_boxes_go_to_the_camera_and_back(x: float, y: float, z: float, heading: float) -> None:
    box = np.array([[x, y, z, 4, 2, 1.5, heading]], np.float32)
    location, dimensions, rotation_y, _ = lidar_to_camera(box, SIMPLE)
    back = camera_to_lidar(location, dimensions, rotation_y, SIMPLE)
    np.testing.assert_allclose(back[:, :6], box[:, :6], atol=1e-4)
    assert np.cos(back[0, 6] - box[0, 6]) == pytest.approx(1, abs=1e-6)


def test_zero_boxes_pass_all_conversions() -> None:
    location, dimensions, rotation_y, alpha = lidar_to_camera(np.zeros((0, 7)), SIMPLE)
    assert camera_to_lidar(location, dimensions, rotation_y, SIMPLE).shape == (0, 7)
    assert image_boxes(location, dimensions, rotation_y, SIMPLE, SHAPE).shape == (0, 4)
    assert alpha.shape == (0,)


def test_image_boxes_stay_inside_the_image() -> None:
    box = np.array([[1.0, 0, 0, 4, 2, 1.5, 0], [20, 40, 0, 4, 2, 1.5, 0]])  # around the camera, and far left
    found = image_boxes(*lidar_to_camera(box, SIMPLE)[:3], SIMPLE, SHAPE)
    assert (found >= 0).all()
    assert (found <= [599, 199, 599, 199]).all()


def test_real_labels_agree_with_their_projection(real_data: Path) -> None:
    files = FrameFiles(real_data / "kitti/training")
    for frame in ("000000", "000001", "000002"):
        annos, calib = read_labels(files.label_path(frame)), files.calibration(frame)
        real = annos["name"] != "DontCare"
        parts = [annos[key][real] for key in ("location", "dimensions", "rotation_y")]
        found = image_boxes(*parts, calib, files.image_shape(frame))
        np.testing.assert_allclose(found, annos["bbox"][real], atol=11)
        alpha = lidar_to_camera(camera_to_lidar(*parts, calib), calib)[3]
        np.testing.assert_allclose(alpha, annos["alpha"][real], atol=0.02)


def test_dont_care_regions_are_last(tmp_path: Path) -> None:
    annos = read_labels(label_file(tmp_path, DONT_CARE, CAR, DONT_CARE, WALKER))
    assert annos["name"].tolist() == ["Car", "Pedestrian", "DontCare", "DontCare"]
    np.testing.assert_allclose(annos["dimensions"][0], [4, 1.5, 1.6])
    assert annos["difficulty"].tolist() == [0, 1, -1, -1]


def test_an_empty_label_file_is_a_frame_without_boxes(tmp_path: Path) -> None:
    annos = read_labels(label_file(tmp_path, ""))
    assert annos["location"].shape == (0, 3)
    assert annos["name"].shape == annos["difficulty"].shape == (0,)


@pytest.mark.parametrize("line, message", [
    ("Car 0 0 0", "15 fields.*got 4"),
    (CAR.replace("15.00", "15,00"), "must be numbers"),
    (CAR.replace("15.00", "nan"), "finite"),
    (CAR.replace("1.60", "0.00"), "positive"),
])  # fmt: skip
def test_a_label_that_does_not_parse_is_named_with_its_line(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(DataError, match=f"000007.txt, line 2: .*{message}"):
        read_labels(label_file(tmp_path, CAR, line))


@pytest.mark.parametrize("height, occluded, truncated, level", [
    (50, 0, 0.15, 0), (50, 1, 0.0, 1), (50, 2, 0.0, 2), (50, 3, 0.0, -1), (50, 0, 0.31, 2), (50, 0, 0.51, -1),
    (39, 0, 0.0, 0), (38, 0, 0.0, 1), (24, 0, 0.0, 1), (23, 0, 0.0, -1),
])  # fmt: skip
def test_difficulty_follows_the_devkit(height: int, occluded: int, truncated: float, level: int) -> None:
    bbox = np.array([[0, 10, 5, 10 + height]], np.float32)
    assert difficulty_of(bbox, np.array([occluded]), np.array([truncated])).tolist() == [level]


def test_a_road_plane_is_normalised_with_its_normal_up(tmp_path: Path) -> None:
    files = FrameFiles(tmp_path)
    assert files.road_plane("1") is None
    (tmp_path / "planes").mkdir()
    (tmp_path / "planes/1.txt").write_text("# Matrix\nWIDTH 4\nHEIGHT 1\n0.0 2.0 0.0 -3.2\n")
    np.testing.assert_allclose(files.road_plane("1"), [0, -1, 0, 1.6])
    (tmp_path / "planes/1.txt").write_text("0 1 0 1\n")
    with pytest.raises(DataError, match="fourth line"):
        files.road_plane("1")
