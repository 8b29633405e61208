"""Files and flags of others: paths stay within their folder; reading takes time and memory in proportion."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pcdet_freeze.config import cfg_from_list, cfg_from_yaml_file
from pcdet_freeze.datasets.file_formats.files import read_npy, read_pickle
from pcdet_freeze.datasets.kitti import prepare_kitti
from pcdet_freeze.datasets.kitti.frame_files import FrameFiles
from pcdet_freeze.datasets.kitti.infos import write_objects
from pcdet_freeze.datasets.kitti.prepare import read_splits
from pcdet_freeze.datasets.labels.lidar_annos import write_kitti_label
from pcdet_freeze.engine.run_context import EvalOptions, TrainOptions, run_folders
from pcdet_freeze.errors import CheckpointError, ConfigError, DataError
from pcdet_freeze.utils.untrusted_files.inside import inside
from pcdet_freeze.utils.untrusted_files.safe_pickle import load_plain
from pcdet_freeze.utils.untrusted_files.safe_torch_load import load_checkpoint

OUTSIDE = ["../x", "a/../../x", "/etc/passwd", "..", "a\\..\\x", "a\0b", "a\nb"]


@pytest.mark.parametrize("path", OUTSIDE)
def test_a_path_that_leaves_its_folder_is_an_error_that_names_both(path: str) -> None:
    with pytest.raises(DataError, match="a frame must stay within data"):
        inside(Path("data"), path, "a frame")


@pytest.mark.parametrize("path", ["x", "a/b.bin", "000001_Car_0.bin", "a..b", "./x", "größe"])
def test_a_path_within_its_folder_is_taken(path: str) -> None:
    assert inside(Path("data"), path) == Path("data") / path


def test_a_link_within_the_folder_may_lead_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "near").symlink_to(tmp_path / "far")
    assert inside(tmp_path, "near/x") == tmp_path / "near" / "x"


@pytest.mark.parametrize("make", [
    lambda tag: TrainOptions(extra_tag=tag), lambda tag: EvalOptions(eval_tag=tag),
    lambda tag: run_folders("cfgs/a/b.yaml", tag)])  # fmt: skip
def test_a_tag_stays_within_the_output_folder(make: Any) -> None:
    with pytest.raises(ConfigError, match=r"_tag must stay within .*'\.\./\.\./escape'"):
        make("../../escape")
    make("stage2/again")


def test_a_frame_of_an_info_stays_within_the_data_folder(tmp_path: Path) -> None:
    files = FrameFiles(tmp_path)
    for read in (files.points, files.calibration, files.image_shape, files.road_plane):
        with pytest.raises(DataError, match="must stay within"):
            read("../../../x")


def test_a_class_name_does_not_write_outside_the_database(tmp_path: Path) -> None:
    box = np.array([[0, 0, 0, 4, 2, 1.5, 0]], np.float32)
    annos = {"gt_boxes_lidar": box, "name": np.array(["x/../../../escaped"])}
    info = {"annos": annos, "point_cloud": {"lidar_idx": "000000"}}
    with pytest.raises(DataError, match="an object's file must stay within"):
        write_objects(tmp_path / "a", info, np.zeros((1, 4), np.float32))
    assert list(tmp_path.iterdir()) == []


def test_predictions_are_not_written_outside_their_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must stay within"):
        write_kitti_label({"name": [], "frame_id": "../../x"}, tmp_path / "a")


def doubled(levels: int = 40) -> list[Any]:
    value: list[Any] = [1]
    for _ in range(levels):
        value = [value, value]
    return value


def test_an_info_with_doubled_references_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "infos.pkl"
    path.write_bytes(pickle.dumps(doubled()))
    with pytest.raises(DataError, match=r"infos\.pkl: .*references are nested"):
        read_pickle(path)


def test_values_that_infos_share_are_still_read() -> None:
    calib = {"P2": np.eye(4), "names": ["a", "b"]}
    found = load_plain(pickle.dumps([{"calib": calib, "n": n} for n in range(1000)]))
    assert found[0]["calib"] is found[999]["calib"] and found[999]["n"] == 999
    np.testing.assert_array_equal(found[5]["calib"]["P2"], np.eye(4))


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


CYCLE: list[Any] = [1]
CYCLE.append(CYCLE)


@pytest.mark.parametrize("raw", [
    pickle.dumps(nested(200)), pickle.dumps(CYCLE), b"\x80\x02]r\xff\xff\xff\x7f.", b"]p2147483647\n.",
    b"\x80\x05\x96" + b"\xff" * 7 + b"\x00abc.",
    pickle.dumps(np.zeros((0, 3), "U1"), 2).replace(b"K\x00K\x03", b"J\xff\xff\xff\x7fK\x03")])  # fmt: skip
def test_pickles_that_would_take_gigabytes_are_refused(raw: bytes) -> None:
    with pytest.raises(Exception, match=r"nested|refer|stores an object|U1|size|shape|reshape"):
        load_plain(raw)


def test_a_pickle_does_not_change_the_functions_that_rebuild_arrays() -> None:
    raw = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n}X\x01\x00\x00\x00xK\x01sb."
    with pytest.raises(pickle.UnpicklingError, match="must not change"):
        load_plain(raw)


def npy(shape: str, values: bytes = b"\0" * 16) -> bytes:
    out = io.BytesIO()
    header = f"{{'descr': '<i8', 'fortran_order': False, 'shape': {shape}, }}".encode()
    out.write(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + values)
    return out.getvalue()


def test_an_array_is_read_as_numpy_reads_it(tmp_path: Path) -> None:
    for array in (np.arange(6).reshape(2, 3), np.asfortranarray(np.eye(3, 4)), np.zeros((0, 2)), np.array(5)):
        np.save(tmp_path / "a.npy", array)
        found = read_npy(tmp_path / "a.npy")
        np.testing.assert_array_equal(found, array)
        assert (found.dtype, found.shape) == (array.dtype, array.shape)


@pytest.mark.parametrize("raw", [
    npy("(4398046511104,)"), npy("(-1,)"), npy("(3,)"), npy("(2, 4398046511104, 0)"), npy("(" * 500),
    npy("'x'"), b"", b"\x93NUMPY\x09\x00", b"PK\x03\x04" + b"\0" * 30, npy("(2,)")[:20]])  # fmt: skip
def test_an_array_file_that_claims_another_size_than_it_has_is_an_error(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "labels.npy"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"labels\.npy: not an array"):
        read_npy(path)


LEVELS = range(1, 41)
YAMLS = {
    "doubled": ("A: &a0 [1, 1]\n" + "".join(f"B{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in LEVELS), 1),
    "merged": (
        "A: &a0 {X: 1}\n" + "".join(f"B{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in LEVELS), 1
    ),
    "nested": ("\nA: " + "[" * 60 + "]" * 60, 2),
    "cyclic": ("\nMODEL: &a {X: *a}\n", 2),
    "control": ("MODEL:\n  A: 1\x07\n", 2),
    "number": ("MODEL:\n  A: 0x_\n", 2),
    "date": ("MODEL:\n  A: 2001-99-99\n", 2),
    "number as key": ("MODEL:\n  1: 2\n", 2),
    "list as key": ("MODEL:\n  ? [a, b]\n  : 2\n", 2),
    "method as key": ("MODEL:\n  items: 2\n", 2),
}  # fmt: skip


@pytest.mark.parametrize("name", YAMLS)
def test_a_yaml_that_cannot_be_used_is_one_error_with_file_and_line(tmp_path: Path, name: str) -> None:
    text, line = YAMLS[name]
    path = tmp_path / "m.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"m\.yaml, line \d+: ") as caught:
        cfg_from_yaml_file(path)
    assert name in ("doubled", "merged") or f"line {line}: " in str(caught.value)


@pytest.mark.parametrize("text", ["[" * 2000 + "]" * 2000, "x" * 2**21], ids=["nested", "long"])
def test_a_yaml_beyond_its_bounds_is_one_error_with_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.yaml").write_text(f"MODEL: {text}")
    with pytest.raises(ConfigError, match=r"m\.yaml: .*at most"):
        cfg_from_yaml_file(tmp_path / "m.yaml")


def test_set_has_the_bounds_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text("OPTIMIZATION: {LR: 0.1}\n")
    cfg = cfg_from_yaml_file(tmp_path / "m.yaml")
    for value in ("[" * 2000, "0x_", "a\x07"):
        with pytest.raises(ConfigError, match=r"--set OPTIMIZATION\.LR"):
            cfg_from_list(["OPTIMIZATION.LR", value], cfg)


def test_a_checkpoint_with_doubled_references_is_an_error(tmp_path: Path) -> None:
    torch.save({"model_state": {}, "extra": doubled()}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth .*references are nested"):
        load_checkpoint(tmp_path / "a.pth")


def test_a_checkpoint_that_unpacks_to_far_more_than_its_size_is_an_error(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(2**20))
    with pytest.raises(CheckpointError, match=r"a\.pth .*unpack to 1048576"):
        load_checkpoint(tmp_path / "a.pth")


def test_a_split_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "ImageSets").mkdir()
    (tmp_path / "ImageSets" / "train.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"train\.txt: a split file"):
        read_splits(tmp_path)


@pytest.mark.parametrize("key", ["DATA_PATH", "INFO_ROOT"])
def test_a_folder_of_prepare_must_be_a_string(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} must be a folder"):
        prepare_kitti({key: [1]}, ["Car"])
