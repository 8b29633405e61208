"""Point files and info files: validation and atomic writing."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pcdet_freeze.cli.prepare import PREPARE
from pcdet_freeze.datasets.file_formats.files import read_bin, read_pickle, replacing, write_pickle
from pcdet_freeze.errors import DataError

INFOS = [{"name": np.array(["Car", "Van"]), "boxes": np.eye(3, 7, dtype=np.float32), "n": np.int32(4),
          "score": np.float64(0.5), "shape": (3, 4), "id": "000001", "none": None, "flag": np.bool_(True),
          "label": np.str_("Car")}]  # fmt: skip


def assert_same(found: Any, wanted: Any) -> None:
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        np.testing.assert_array_equal(found[key], value)
        assert type(found[key]) is type(value)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_infos_of_every_pickle_protocol_are_read(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "infos.pkl"
    path.write_bytes(pickle.dumps(INFOS, protocol))
    assert_same(read_pickle(path)[0], INFOS[0])


@pytest.mark.parametrize("core", [b"numpy.core", b"numpy._core"])
def test_infos_of_numpy_1_and_2_are_read(tmp_path: Path, core: bytes) -> None:
    path = tmp_path / "infos.pkl"
    raw = pickle.dumps(INFOS, 2)  # protocol 2 spells module names without a length
    path.write_bytes(raw.replace(b"numpy._core", b"numpy.core").replace(b"numpy.core", core))
    assert_same(read_pickle(path)[0], INFOS[0])


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("owned",)


@pytest.mark.parametrize("value", [Evil(), {"a": [Evil()]}, np.array([Evil()], object), Path("x"), eval])
def test_anything_but_plain_values_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "infos.pkl"
    path.write_bytes(pickle.dumps(value))
    with pytest.raises(DataError, match=r"infos\.pkl: not an info file of plain values"):
        read_pickle(path)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("raw", [b"", b"no pickle", pickle.dumps(INFOS)[:40]])
def test_a_broken_info_file_names_file_and_command(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "infos.pkl"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"infos\.pkl.*pcdet-freeze prepare kitti"):
        read_pickle(path)


def test_a_written_info_file_is_read_by_plain_pickle(tmp_path: Path) -> None:
    write_pickle(tmp_path / "sub" / "infos.pkl", INFOS)
    assert_same(pickle.loads((tmp_path / "sub" / "infos.pkl").read_bytes())[0], INFOS[0])
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["infos.pkl"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "infos.pkl"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="half way"), replacing(path) as write:
        write(b"ne")
        raise RuntimeError("half way")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_points_are_read_as_they_are(tmp_path: Path) -> None:
    points = np.random.RandomState(0).rand(5, 4).astype(np.float32)
    points.tofile(tmp_path / "a.bin")
    np.testing.assert_array_equal(read_bin(tmp_path / "a.bin", 4), points)


@pytest.mark.parametrize("raw, message", [
    (b"", "empty point file"),
    (b"\0" * 33, "truncated point file.*16 bytes.*got 33"),
    (np.array([[0, 0, 0, np.nan], [0, 0, 0, 0]], "<f4").tobytes(), "intensity too.*1 of 2"),
    (np.array([[0, np.inf, 0, 0]], "<f4").tobytes(), "1 of 1"),
])  # fmt: skip
def test_bad_point_files_are_named(tmp_path: Path, raw: bytes, message: str) -> None:
    path = tmp_path / "bad.bin"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=f"bad.bin: .*{message}"):
        read_bin(path, 4)


def test_a_missing_point_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.bin.*cannot be read"):
        read_bin(tmp_path / "gone.bin", 4)


def test_a_damaged_info_file_raises_nothing_but_data_errors(tmp_path: Path) -> None:
    rng, path, refused = np.random.RandomState(0), tmp_path / "infos.pkl", 0
    for _ in range(300):
        raw = bytearray(pickle.dumps(INFOS, 4))
        raw[rng.randint(len(raw))] = rng.randint(256)
        path.write_bytes(raw)
        try:
            read_pickle(path)
        except DataError:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize("value", [
    np.zeros(3, ">i4"), np.asfortranarray(np.eye(3, 4)), np.zeros((0, 7), "f4"), np.array([], str),
    np.array(["a", "b"]), np.str_(""), np.array(5)])  # fmt: skip
def test_unusual_arrays_survive_a_round_trip(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "infos.pkl"
    for protocol in (2, 5):
        path.write_bytes(pickle.dumps([value], protocol))
        found = read_pickle(path)[0]
        np.testing.assert_array_equal(found, value)
        assert (type(found), found.dtype, found.shape) == (type(value), value.dtype, value.shape)


def test_a_missing_info_file_names_the_command_of_its_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"prepare nuscenes --cfg_file dataset_configs/nuscenes_dataset"):
        read_pickle(tmp_path / "nuscenes_dbinfos_10sweeps_withvelo.pkl")


@pytest.mark.parametrize("name", sorted(PREPARE))
def test_the_error_names_the_command_that_writes_the_file(root: Path, tmp_path: Path, name: str) -> None:
    for file in (f"{name}_infos_train.pkl", f"{name}_dbinfos_train.pkl"):
        with pytest.raises(DataError, match=rf"prepare {name} --cfg_file (\S+)`") as error:
            read_pickle(tmp_path / file)
        config = re.findall(r"--cfg_file ([^`]+)`", str(error.value))[0]
        assert (root / "cfgs" / config).is_file()


def test_the_error_of_a_segment_names_openpcdets_command(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="create_waymo_infos"):
        read_pickle(tmp_path / "segment-1_with_camera_labels.pkl")
    with pytest.raises(DataError, match="prepare waymo"):
        read_pickle(tmp_path / "waymo_processed_data_v0_5_0_waymo_dbinfos_train_sampled_1.pkl")
