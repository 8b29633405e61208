"""Files of another kind than the config says: recognised by their first bytes, or by their numbers."""

from __future__ import annotations

import gzip
import io
import logging
from pathlib import Path

import numpy as np
import pytest
from kitti_maker import make_kitti, scene_points

from pcdet_freeze.config import cfg_from_yaml_file
from pcdet_freeze.datasets.checks import Finding, check_frames, raise_or_warn
from pcdet_freeze.datasets.checks.kinds import kind_of
from pcdet_freeze.datasets.checks.layout import other_layout
from pcdet_freeze.datasets.file_formats.files import read_bin
from pcdet_freeze.datasets.kitti import KittiDataset, prepare_kitti
from pcdet_freeze.errors import DataError

RANGE = [0, -40, -3, 70, 40, 1]


def saved(points: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, points)
    return out.getvalue()


CLOUD = scene_points(0)
RING = np.hstack([CLOUD, (np.arange(len(CLOUD)) % 32)[:, None].astype(np.float32)])
KINDS = {
    "npy": (saved(CLOUD), "np.save"),
    "pcd": (b"# .PCD v0.7\n" + CLOUD.tobytes(), "PCD file"),
    "gzip": (gzip.compress(CLOUD.tobytes()), "gzip"),
    "zip": (b"PK\x03\x04" + CLOUD.tobytes(), "zip"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\n" + b"x" * 64, "Git LFS"),
    "html": (b"<!DOCTYPE html>" + b"x" * 64, "download failed"),
    "text": (b"1.0 2.0 3.0 0.5\n" * 64, "text file"),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_file_of_another_kind_is_refused_by_name(tmp_path: Path, name: str) -> None:
    raw, kind = KINDS[name]
    path = tmp_path / "a.bin"
    path.write_bytes(raw[: len(raw) // 16 * 16])
    with pytest.raises(DataError, match=rf"a\.bin: .*looks like .*{kind}"):
        read_bin(path, 4)


def test_no_real_cloud_looks_like_another_kind() -> None:
    rng = np.random.RandomState(0)
    for _ in range(2000):
        first = rng.uniform(-80, 80, (16, 4)).astype("<f4").tobytes()
        assert kind_of(first) == ""


LAYOUTS = {
    "x y z": (CLOUD[:, :3].tobytes(), "3 columns of float32"),
    "with a ring": (RING.tobytes(), "5 columns of float32"),
    "float64": (CLOUD.astype("<f8").tobytes(), "4 columns of float64"),
    "big-endian": (CLOUD.astype(">f4").tobytes(), "4 columns of big-endian float32"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_another_layout_is_a_serious_finding_that_says_which(name: str) -> None:
    raw, layout = LAYOUTS[name]
    assert str(other_layout(raw, 4)) == layout
    found = check_frames(lambda index: raw, 3, 4, RANGE)
    assert found[0].serious and f"3 of 3 point files look like {layout}" in found[0].text


@pytest.mark.parametrize("columns", [3, 4, 5, 6])
def test_a_cloud_in_its_own_layout_gives_no_finding(columns: int) -> None:
    wide = np.hstack([RING, np.linspace(0, 0.1, len(RING), dtype=np.float32)[:, None]])
    assert other_layout(np.ascontiguousarray(wide[:, :columns]).tobytes(), columns) is None


def test_clouds_of_the_simulator_and_shuffled_ones_give_no_finding() -> None:
    rng = np.random.RandomState(1)
    for number in range(20):
        cloud = scene_points(number)[rng.permutation(len(CLOUD))]
        cloud[:, 3] *= rng.choice([0, 1, 255])
        assert other_layout(cloud.tobytes(), 4) is None


def test_real_frames_give_no_finding(real_data: Path) -> None:
    files = sorted((real_data / "kitti" / "training" / "velodyne").glob("*.bin"))
    assert files
    assert (
        check_frames(lambda index: files[index].read_bytes(), len(files), 4, [0, -40, -3, 70.4, 40, 1]) == []
    )


def test_millimetres_are_a_serious_finding_and_a_small_range_a_note() -> None:
    far = CLOUD.copy()
    far[:, :3] *= 1000
    assert check_frames(lambda index: far.tobytes(), 1, 4, RANGE)[0].serious
    found = check_frames(lambda index: CLOUD.tobytes(), 1, 4, [-1, -1, -1, 0, 0, 0])
    assert [finding.serious for finding in found] == [False] and "POINT_CLOUD_RANGE" in found[0].text


@pytest.mark.parametrize("most, what", [(31, "laser ring"), (255, "from 0 to 255")])
def test_whole_numbers_in_the_place_of_the_intensity_are_named(most: int, what: str) -> None:
    cloud = CLOUD.copy()
    cloud[:, 3] = np.arange(len(cloud)) % (most + 1)
    found = check_frames(lambda index: cloud.tobytes(), 1, 4, RANGE)
    assert len(found) == 1 and not found[0].serious and what in found[0].text


def test_a_serious_finding_ends_the_run_unless_the_config_says_warn(
    tmp_path: Path, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = cfg_from_yaml_file(root / "cfgs/kitti_models/pointpillar.yaml").DATA_CONFIG
    cfg.DATA_PATH = str(make_kitti(tmp_path / "kitti"))
    prepare_kitti(cfg, ["Car"], workers=1)
    for path in (tmp_path / "kitti/training/velodyne").iterdir():
        path.write_bytes(np.tile(CLOUD, (4, 1))[:, :3].tobytes())
    with pytest.raises(DataError, match=r"look like 3 columns .*x, y, z.*ON_IMPLAUSIBLE: warn"):
        KittiDataset(cfg, ["Car"])
    cfg.ON_IMPLAUSIBLE = "warn"
    assert len(KittiDataset(cfg, ["Car"])) == 3 and "look like 3 columns" in caplog.text


def test_notes_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("pcdet_freeze.test")
    raise_or_warn([Finding("a note")], "data/kitti", log, strict=True)
    assert caplog.text.count("data/kitti: a note") == 1
