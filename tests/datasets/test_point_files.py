"""Point files that belong to no data set: recognised by their content, read by their columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pypcd4
import pytest
from fuzz_damage import damaged_bytes

from pcdet_freeze.datasets.file_formats.point_files import Columns, find_point_files, read_points
from pcdet_freeze.errors import DataError

XYZI = ["x", "y", "z", "intensity"]
POINTS = np.arange(20, dtype=np.float32).reshape(5, 4)


def pcd(path: Path, names: tuple[str, ...] = ("x", "y", "z", "intensity")) -> Path:
    types = tuple(np.float32 for _ in names)
    reader: object = pypcd4
    reader.PointCloud.from_points(POINTS[:, : len(names)], names, types).save(path)  # type: ignore[attr-defined]
    return path


def test_a_file_is_recognised_by_its_content_whatever_its_suffix(tmp_path: Path) -> None:
    POINTS.tofile(tmp_path / "raw.npy")
    np.save(tmp_path / "array.npy", POINTS)
    (tmp_path / "array.npy").rename(tmp_path / "array.bin")
    pcd(tmp_path / "cloud.pcd").rename(tmp_path / "cloud.bin")
    for name in ("raw.npy", "array.bin", "cloud.bin"):
        np.testing.assert_array_equal(read_points(tmp_path / name, XYZI), POINTS)


def test_columns_beyond_those_of_the_config_are_left_out(tmp_path: Path) -> None:
    np.save(tmp_path / "wide.npy", np.hstack([POINTS, POINTS]).astype(np.float64))
    found = read_points(tmp_path / "wide.npy", XYZI)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, POINTS)


def test_a_missing_intensity_is_zero(tmp_path: Path) -> None:
    np.save(tmp_path / "xyz.npy", POINTS[:, :3])
    for path in (tmp_path / "xyz.npy", pcd(tmp_path / "xyz.pcd", ("x", "y", "z"))):
        found = read_points(path, XYZI)
        np.testing.assert_array_equal(found[:, :3], POINTS[:, :3])
        assert not found[:, 3].any()


def test_columns_with_names_are_found_by_name(tmp_path: Path) -> None:
    table = np.zeros(5, [(name, np.float64) for name in ("reflectance", "z", "y", "x")])
    for number, name in enumerate(("x", "y", "z", "reflectance")):
        table[name] = POINTS[:, number]
    np.save(tmp_path / "table.npy", table)
    np.testing.assert_array_equal(read_points(tmp_path / "table.npy", XYZI), POINTS)


def test_beams_without_a_return_are_left_out(tmp_path: Path) -> None:
    holes = POINTS.copy()
    holes[2, 1] = np.nan
    np.save(tmp_path / "holes.npy", holes)
    np.testing.assert_array_equal(read_points(tmp_path / "holes.npy", XYZI), np.delete(POINTS, 2, axis=0))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"ply\nformat ascii 1.0\n", "PLY"),
        (b"12345", "multiple of 16 bytes"),
        (b"# .PCD v0.7 - Point Cloud Data file format\nVERSION 0.7\nFIELDS x y\n", "PCD"),
        (b"\x93NUMPY\x01\x00", "np.save"),
    ],
)
def test_another_or_a_damaged_file_is_an_error_that_names_it(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "bad.bin").write_bytes(content)
    with pytest.raises(DataError, match=rf"bad\.bin.*{message}"):
        read_points(tmp_path / "bad.bin", XYZI)


def test_a_cut_off_cloud_is_an_error_that_names_its_column(tmp_path: Path) -> None:
    path = pcd(tmp_path / "short.pcd")
    path.write_bytes(path.read_bytes().replace(b"POINTS 5", b"POINTS 9"))
    with pytest.raises(DataError, match=r"short\.pcd"):
        read_points(path, XYZI)


@pytest.mark.parametrize(
    "table",
    [
        np.zeros((2, 3), [(name, float) for name in XYZI]),
        np.zeros(3, [("x", float, 2), ("y", float), ("z", float), ("intensity", float)]),
        np.zeros(3, [("x", "U4"), ("y", float), ("z", float), ("intensity", float)]),
    ],
)
def test_a_structured_array_of_another_form_is_an_error(tmp_path: Path, table: np.ndarray) -> None:
    np.save(tmp_path / "table.npy", table)
    with pytest.raises(DataError, match=r"table\.npy"):
        read_points(tmp_path / "table.npy", XYZI)


def test_an_array_that_is_no_table_of_points_is_an_error(tmp_path: Path) -> None:
    np.save(tmp_path / "flat.npy", np.zeros(12))
    with pytest.raises(DataError, match=r"flat\.npy.*\(N, 3 or more\).*\(12,\)"):
        read_points(tmp_path / "flat.npy", XYZI)


def test_the_files_of_a_folder_are_found_by_their_suffix(tmp_path: Path) -> None:
    for name in ("b.bin", "a.npy", "c.pcd", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in find_point_files(tmp_path)] == ["a.npy", "b.bin", "c.pcd"]
    assert [path.name for path in find_point_files(tmp_path, ".bin")] == ["b.bin"]
    assert find_point_files(tmp_path / "b.bin") == [tmp_path / "b.bin"]
    with pytest.raises(DataError, match=r"--data_path .*\.las"):
        find_point_files(tmp_path, "las")
    with pytest.raises(DataError, match=r"--data_path .*does not exist"):
        find_point_files(tmp_path / "nowhere")


def las(path: Path, **more: np.ndarray) -> Path:
    laspy: Any = pytest.importorskip("laspy", reason="laspy is the extra las")
    cloud = laspy.LasData(laspy.LasHeader(point_format=3, version="1.2"))
    cloud.header.scales = [0.001] * 3
    cloud.x, cloud.y, cloud.z = POINTS[:, :3].T
    cloud.intensity = POINTS[:, 3].astype(np.uint16)
    for name, values in more.items():
        cloud.add_extra_dim(laspy.ExtraBytesParams(name, values.dtype))
        cloud[name] = values
    cloud.write(str(path))
    return path


@pytest.mark.parametrize("suffix", ["las", "laz"])
def test_las_files_have_their_columns_by_name(tmp_path: Path, suffix: str) -> None:
    path = las(tmp_path / f"cloud.{suffix}", ring=np.arange(5, dtype=np.uint8))
    found = read_points(path, [*XYZI, "ring"])
    np.testing.assert_allclose(found[:, :4], POINTS, atol=1e-3)
    assert found[:, 4].tolist() == [0, 1, 2, 3, 4]
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=rf"cloud\.{suffix}"):
        read_points(path, XYZI)


@pytest.mark.parametrize("suffix", ["las", "laz"])
def test_a_header_that_counts_more_points_than_the_file_holds_is_an_error(
    tmp_path: Path, suffix: str
) -> None:
    path = las(tmp_path / f"cloud.{suffix}")
    raw = bytearray(path.read_bytes())
    raw[107:111] = (2**31).to_bytes(4, "little")  # the number of points in a header of version 1.2
    path.write_bytes(raw)
    with pytest.raises(DataError, match=rf"cloud\.{suffix}: .*counts 2147483648 points"):
        read_points(path, XYZI)


@pytest.mark.parametrize("suffix", ["las", "laz"])
def test_a_damaged_las_file_is_refused_or_read(tmp_path: Path, suffix: str) -> None:
    raw, path = las(tmp_path / f"cloud.{suffix}").read_bytes(), tmp_path / "damaged"
    refused = 0
    for seed in range(60):  # 33 of them counts records that laspy would go through one by one
        path.write_bytes(damaged_bytes(raw, np.random.RandomState(seed)))
        try:
            assert read_points(path, XYZI).shape[1] == 4
        except DataError as error:
            refused += "damaged: " in str(error)
    assert refused > 20


def test_the_columns_of_a_file_may_be_named(tmp_path: Path) -> None:
    POINTS.tofile(tmp_path / "rows.bin")
    columns = Columns(("x", "y", "z", "intensity"), stored=("intensity", "z", "y", "x"))
    np.testing.assert_array_equal(read_points(tmp_path / "rows.bin", columns), POINTS[:, ::-1])
    path = pcd(tmp_path / "cloud.pcd", ("x", "y", "z", "ring"))
    named = Columns(("x", "y", "z", "intensity"), names={"intensity": "ring"})
    np.testing.assert_array_equal(read_points(path, named), POINTS)
    with pytest.raises(DataError, match=r"cloud\.pcd: .* column intensity; it has x, y, z, ring"):
        read_points(path, Columns(("x", "y", "z", "intensity"), strict=True))


def test_a_small_laz_file_cannot_ask_for_much_memory(tmp_path: Path) -> None:
    laspy = pytest.importorskip("laspy", reason="laspy is the extra las")
    cloud = laspy.LasData(laspy.LasHeader(point_format=3, version="1.2"))
    cloud.x = cloud.y = cloud.z = np.zeros(40_000)
    cloud.write(str(tmp_path / "a.laz"))
    with pytest.raises(DataError, match="its header counts 40000 points, but the file has"):
        read_points(tmp_path / "a.laz", ["x", "y", "z"])
