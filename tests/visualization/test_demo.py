"""tools/demo.py: from point files, or frames of the test set, to pictures."""

from __future__ import annotations

import copy
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from tool_runs import CFG, SMALL, tool

from pcdet_freeze.cli.demo import _former_predictor
from pcdet_freeze.config import cfg_from_yaml_file
from pcdet_freeze.config.cfg import cfg_from_list
from pcdet_freeze.datasets import build_dataset
from pcdet_freeze.datasets.file_formats.point_files import PointFiles
from pcdet_freeze.errors import ConfigError, DataError
from pcdet_freeze.models import build_network
from pcdet_freeze.visualization.demo import frames_of_dataset, frames_of_files, predict


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints of random weights, a frame, an empty frame, and a frame far away."""
    folder = tmp_path_factory.mktemp("demo")
    cfg = cfg_from_yaml_file(CFG)
    cfg_from_list(SMALL, cfg)
    frames = build_dataset(cfg.DATA_CONFIG, cfg.CLASS_NAMES, training=False)
    torch.manual_seed(0)
    model = build_network(cfg.MODEL, len(cfg.CLASS_NAMES), frames)
    torch.save({"model_state": model.state_dict()}, folder / "before.pth")
    torch.nn.init.constant_(model.dense_head.conv_box.bias, 0.1)
    torch.save({"model_state": model.state_dict()}, folder / "after.pth")
    points = frames.load_sample(0)["points"].astype(np.float32)
    (folder / "points").mkdir()
    points.tofile(folder / "points/a.bin")
    np.save(folder / "points/far.npy", points + np.float32(1000))
    (folder / "points/none.bin").touch()
    return folder


def demo(folder: Path, *flags: object) -> int:
    model = ["--cfg_file", CFG, "--ckpt", folder / "after.pth", "--device", "cpu", "--score", 0]
    words = [
        *model,
        "--out",
        folder / "out",
        *flags,
        "--set",
        *SMALL,
        "MODEL.POST_PROCESSING.SCORE_THRESH",
        0,
    ]
    return tool("demo").main(list(map(str, words)))


def test_each_file_gets_a_picture_and_its_ranges(folder: Path, capsys: Any) -> None:
    assert demo(folder, "--data_path", folder / "points") == 0
    out = capsys.readouterr().out
    assert {path.name for path in (folder / "out").iterdir()} >= {"a.bin.png", "far.npy.png", "none.bin.png"}
    assert "a.bin: " in out and "% in range (x " in out and "intensity " in out and " boxes" in out
    assert "far.npy: " in out and " 0.0% in range" in out and "none.bin: no points" in out
    assert out.count("an empty result") == 2


def test_frames_of_the_test_set_are_drawn_beside_their_labels(folder: Path, capsys: Any) -> None:
    assert demo(folder, "--frames", 2, "--before", folder / "before.pth") == 0
    out = capsys.readouterr().out
    assert out.count("boxes kept") == 2 and " in range" in out
    assert len(list((folder / "out").glob("2_*.png"))) == 2


def test_boxes_of_the_same_checkpoint_are_all_kept(folder: Path, capsys: Any) -> None:
    assert demo(folder, "--data_path", folder / "points/a.bin", "--before", folder / "after.pth") == 0
    kept = capsys.readouterr().out.partition("; ")[2].split()
    assert kept[0] == kept[2] == kept[5] and int(kept[0]) > 0


def test_without_a_file_the_flag_is_named(folder: Path, capsys: Any) -> None:
    assert demo(folder, "--data_path", folder / "nowhere") == 1
    assert "--data_path" in capsys.readouterr().err


def test_the_intensity_is_scaled_to_that_of_the_training(folder: Path) -> None:
    cfg = cfg_from_yaml_file(CFG)
    files = [folder / "points/a.bin"]
    plain = PointFiles(cfg.DATA_CONFIG, cfg.CLASS_NAMES, files).raw_points(0)
    scaled = PointFiles(cfg.DATA_CONFIG, cfg.CLASS_NAMES, files, 255).raw_points(0)
    np.testing.assert_array_equal(scaled[:, :3], plain[:, :3])
    np.testing.assert_array_equal(scaled[:, 3], plain[:, 3] / np.float32(255))


@pytest.mark.parametrize("name", ["stage1_detect", "stage3_lane"])
def test_label_forms_are_those_of_the_data_set(root: Path, name: str) -> None:
    cfg = cfg_from_yaml_file(root / f"cfgs/synthetic_models/{name}.yaml")
    files = PointFiles(cfg.DATA_CONFIG, cfg.CLASS_NAMES, [])
    frames = build_dataset(cfg.DATA_CONFIG, cfg.CLASS_NAMES, training=False)
    assert files.semantic_class_names == frames.semantic_class_names
    assert files.lane_map_shape == frames.lane_map_shape


@pytest.mark.parametrize("names", [["Pedestrian", "Car"], ["Pedestrian", "Truck", "Car"]])
def test_a_former_model_may_have_fewer_classes_but_no_other_ones(folder: Path, names: list[str]) -> None:
    cfg = cfg_from_yaml_file(CFG)
    cfg_from_list(SMALL, cfg)
    frames = build_dataset(cfg.DATA_CONFIG, cfg.CLASS_NAMES, training=False)
    former = cfg_from_yaml_file(CFG)
    cfg_from_list([*SMALL, "MODEL.POST_PROCESSING.SCORE_THRESH", "0.0"], former)
    former.CLASS_NAMES = names
    anchors = former.MODEL.DENSE_HEAD.ANCHOR_GENERATOR_CONFIG
    former.MODEL.DENSE_HEAD.ANCHOR_GENERATOR_CONFIG = [one for one in anchors if one.class_name in names]
    args = SimpleNamespace(
        before=folder / "few.pth", device="cpu", score=0.0, trust_checkpoint=False, view=False
    )
    if "Truck" in names:
        with pytest.raises(ConfigError, match=r"--before_cfg_file must have classes of .*got Truck"):
            _former_predictor(former, cfg.CLASS_NAMES, frames, args)
        return
    seen = copy.copy(frames)
    seen.class_names = names
    model = build_network(former.MODEL, 2, seen).eval()
    torch.save({"model_state": model.state_dict()}, args.before)
    (frame,) = frames_of_dataset(frames, 1)
    own = predict(model, seen, frame, torch.device("cpu"))
    found = _former_predictor(former, cfg.CLASS_NAMES, frames, args)(frame)
    assert set(own.labels.tolist()) == {1, 2}
    assert [cfg.CLASS_NAMES[label - 1] for label in found.labels] == [
        names[label - 1] for label in own.labels
    ]


@pytest.mark.parametrize("flag", [["--port", 0], ["--host", "0.0.0.0"], ["--no_browser"]])
def test_flags_of_the_view_need_the_view(folder: Path, capsys: Any, flag: list[object]) -> None:
    assert demo(folder, "--data_path", folder / "points", *flag) == 1
    assert f"{flag[0]} needs --view" in capsys.readouterr().err


def test_a_view_without_viser_names_the_extra(
    folder: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "viser", None)
    assert demo(folder, "--data_path", folder / "points", "--view") == 1
    assert "pcdet-freeze[viewer]" in capsys.readouterr().err


@pytest.mark.slow
def test_a_view_serves_its_page_until_ctrl_c(folder: Path, root: Path) -> None:
    pytest.importorskip("viser")
    words = ["tools/demo.py", "--cfg_file", CFG, "--ckpt", folder / "after.pth", "--device", "cpu",
             "--data_path", folder / "points", "--before", folder / "before.pth",
             "--view", "--no_browser", "--port", 0, "--set", *SMALL]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    how: dict[str, Any] = {"cwd": root, "stdout": -1, "stderr": -1, "text": True, "env": environment}
    with subprocess.Popen([sys.executable, *map(str, words)], **how) as view:
        try:
            first, second = view.stdout.readline(), view.stdout.readline()
            address = re.search(r"3D view of 3 frames: (http://127\.0\.0\.1:\d+) ", second)
            assert "a.bin: " in first and address is not None, first + second
            with urllib.request.urlopen(address[1], timeout=60) as page:
                assert b"<html" in page.read()
            view.send_signal(signal.SIGINT)
            out, err = view.communicate(timeout=60)
        finally:
            view.kill()
    assert view.returncode == 130 and out == "" and err.endswith(": interrupted\n") and err.count("\n") == 2


class NoFrames(list[Any]):
    root_path = Path("data/nothing")


def test_a_test_set_without_frames_is_an_error_that_names_its_folder() -> None:
    with pytest.raises(DataError, match=r"(?s)data.nothing.*no frame.*DATA_SPLIT"):
        frames_of_dataset(cast("Any", NoFrames()), 3)


def test_the_name_of_a_file_that_is_not_utf8_can_be_printed(folder: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(folder / "points") + b"/\xe9.bin"))
    path.write_bytes((folder / "points/a.bin").read_bytes())
    cfg = cfg_from_yaml_file(CFG)
    frame = frames_of_files(PointFiles(cfg.DATA_CONFIG, cfg.CLASS_NAMES, [path])).read(0)
    path.unlink()
    assert frame.summary().encode().startswith(b"\\udce9.bin: ")
