"""pcdet-freeze export: onnxruntime agrees with torch, and a frozen detector stays the same graph."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tool_runs import ROOT, SMALL

from pcdet_freeze.__main__ import main
from pcdet_freeze.config import load_cfg
from pcdet_freeze.datasets import build_dataset
from pcdet_freeze.datasets.random_frames import RandomFrames
from pcdet_freeze.engine.checkpoint.io import save_checkpoint
from pcdet_freeze.errors import ConfigError
from pcdet_freeze.export.folder import read_digests, write_export
from pcdet_freeze.export.raw_outputs import RawOutputs
from pcdet_freeze.models import build_network, load_data_to_gpu

SMALLER = [*SMALL, "DATA_CONFIG.POINT_CLOUD_RANGE", "[-12.8, -12.8, -3, 12.8, 12.8, 1]",
           "DATA_CONFIG.MIN_CARS", "0"]  # fmt: skip


def config(name: str) -> str:
    return str(ROOT / "cfgs" / f"{name}.yaml")


def network(name: str, sets: list[str]) -> Any:
    cfg = load_cfg(config(name), sets)
    data = build_dataset(cfg.DATA_CONFIG, cfg.CLASS_NAMES, training=False)
    return build_network(cfg.MODEL, len(cfg.CLASS_NAMES), data)


def export(name: str, ckpt: Path, out: Path, *flags: object) -> int:
    which = ["--cfg_file", config(name), "--ckpt", ckpt, "--out", out, *flags]
    return main(["export", *map(str, which), "--set", *SMALLER])


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints of a detector, of three tasks on it, and of these with one weight of the detector moved."""
    out = tmp_path_factory.mktemp("export")
    detector = network("synthetic_models/stage1_detect", SMALLER).state_dict()
    three = network("synthetic_models/stage3_lane", SMALLER).state_dict() | detector
    moved = three | {
        "dense_head.conv_box.weight": three["dense_head.conv_box.weight"].nextafter(torch.tensor(1.0))
    }
    for name, state in {"detector": detector, "three": three, "moved": moved}.items():
        save_checkpoint({"model_state": state}, out / f"{name}.pth")
    assert export("synthetic_models/stage1_detect", out / "detector.pth", out / "first") == 0
    return {name: out / name for name in ("detector.pth", "three.pth", "moved.pth", "first", "third")}


@pytest.mark.slow
def test_the_detector_of_stage_3_is_that_of_stage_1(stages: dict[str, Path], capsys: Any) -> None:
    name, first, third = "synthetic_models/stage3_lane", stages["first"], stages["third"]
    assert export(name, stages["three.pth"], third, "--against", first) == 0
    assert "the same" in capsys.readouterr().out
    assert read_digests(third)["dense_head"] == read_digests(first)["dense_head"]
    assert read_digests(third).keys() == {"dense_head", "segment_head", "lane_head"}
    errors = json.loads((third / "export.json").read_text())["errors"]
    assert {"segment_head.point_logits", "lane_head.lane_conf_logits"} < errors.keys()
    assert max(errors.values()) < 1e-4


@pytest.mark.slow
def test_a_detector_with_one_weight_moved_is_not(
    stages: dict[str, Path], tmp_path: Path, capsys: Any
) -> None:
    ckpt, name = stages["moved.pth"], "synthetic_models/stage3_lane"
    assert export(name, ckpt, tmp_path, "--against", stages["first"]) == 1
    assert "CHANGED" in capsys.readouterr().out


@pytest.mark.slow
def test_the_file_computes_frames_of_other_sizes(stages: dict[str, Path]) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(stages["first"] / "model.onnx"))
    frame = np.load(stages["first"] / "frame.npz")
    given = {value.name: frame[value.name][:100] for value in session.get_inputs()}
    model = network("synthetic_models/stage1_detect", SMALLER)
    model.load_state_dict(torch.load(stages["detector.pth"], weights_only=True)["model_state"])
    expected = RawOutputs(model, 1)(**{name: torch.from_numpy(value) for name, value in given.items()})
    for value, found in zip(expected.values(), session.run(list(expected), given), strict=True):
        torch.testing.assert_close(torch.from_numpy(found), value.detach(), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_the_readme_names_inputs_outputs_and_anchors(stages: dict[str, Path]) -> None:
    text = (stages["first"] / "README.md").read_text()
    frame = np.load(stages["first"] / "frame.npz")
    assert all(f"`{name}`" in text for name in frame.files)
    anchors = np.load(stages["first"] / "dense_head_anchors.npy")
    assert anchors.shape[1] == 7 and "`dense_head_anchors.npy`" in text


def test_other_encoders_are_refused_by_name() -> None:
    sets = [
        "DATA_CONFIG.POINT_CLOUD_RANGE",
        "[-12.8, -12.8, -3, 12.8, 12.8, 1]",
        "MODEL.VFE.NAME",
        "DynPillarVFE",
    ]
    with pytest.raises(ConfigError, match=r"PillarVFE; got DynamicPillarVFE"):
        RawOutputs(network("synthetic_models/stage1_detect", [*SMALL, *sets]), 1)


def test_a_folder_without_an_export_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--against.*export\.json"):
        read_digests(tmp_path)


@pytest.mark.slow
def test_a_center_head_has_its_maps_before_peaks_are_found(tmp_path: Path) -> None:
    cells = ["DATA_CONFIG.POINT_CLOUD_RANGE", "[-5.12, -5.12, -2, 5.12, 5.12, 4]"]
    cfg = load_cfg(config("waymo_models/centerpoint_pillar_1x"), [*SMALL[8:], *cells])
    data = RandomFrames(cfg.DATA_CONFIG, cfg.CLASS_NAMES, training=False)
    batch = data.collate_batch([data[0]])
    load_data_to_gpu(batch, "cpu")
    found = write_export(RawOutputs(build_network(cfg.MODEL, 3, data), 1), batch, tmp_path, "A test.")
    assert {"dense_head.head_0.hm", "dense_head.head_0.center"} < found.errors.keys()
    assert max(found.errors.values()) < 1e-4 and not list(tmp_path.glob("*.npy"))
