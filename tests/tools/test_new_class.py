"""A new class beside a frozen detector, through tools/train.py: car_pedestrian.yaml, then new_class.yaml."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tool_runs import ROOT, SMALL, tool, words

from pcdet_freeze.__main__ import main
from pcdet_freeze.utils.untrusted_files.safe_torch_load import load_checkpoint

pytestmark = pytest.mark.slow

CFGS = ROOT / "cfgs" / "synthetic_models"
FEW = ["DATA_CONFIG.NUM_SCENES.train", "4", "DATA_CONFIG.NUM_SCENES.test", "2"]
FEW += ["DATA_CONFIG.POINT_CLOUD_RANGE", "[-12.8, -12.8, -3, 12.8, 12.8, 1]", "DATA_CONFIG.MIN_CARS", "0"]
FEW += ["DATA_CONFIG.KEEP_EMPTY_FRAMES", "True"]
SMALL_HEAD = ["MODEL.DENSE_HEADS.cyclist_head.SHARED_CONV_CHANNEL", "8"]


def sets_of(name: str) -> list[str]:
    return [*FEW, *(SMALL_HEAD if name == "new_class" else [])]


def stage(out: Path, name: str, *flags: object, steps: int = 2, tag: str = "a") -> Path:
    """Train a stage for some iterations, two an epoch; its folder."""
    few = ["--batch_size", 2, "--epochs", steps // 2, "--num_epochs_to_eval", 0, "--extra_tag", tag]
    line = words(out, *few, *flags, sets=sets_of(name), cfg=CFGS / f"{name}.yaml")
    assert tool("train").main(line) == 0
    return out / "synthetic_models" / name / tag


def checkpoint(folder: Path, epoch: int = 1) -> Path:
    return folder / "ckpt" / f"checkpoint_epoch_{epoch}.pth"


def digests(out: Path, name: str, ckpt: Path) -> dict[str, Any]:
    line = words(out, cfg=CFGS / f"{name}.yaml", sets=sets_of(name))
    given = ["--cfg_file", str(CFGS / f"{name}.yaml"), "--ckpt", str(ckpt), "--device", "cpu"]
    sets = line[line.index("--set") :]
    assert main(["digest", *given, "--batch_size", "2", "--out", str(out / "digest.json"), *sets]) == 0
    return json.loads((out / "digest.json").read_text())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("runs")
    first = stage(out, "car_pedestrian")
    second = stage(out, "new_class", "--pretrained_model", checkpoint(first), steps=4)
    return {"car_pedestrian": first, "new_class": second}


def test_p2_the_first_head_puts_out_the_same_bits_after_the_new_class(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    before = digests(tmp_path, "car_pedestrian", checkpoint(runs["car_pedestrian"]))
    after = digests(tmp_path, "new_class", checkpoint(runs["new_class"], 2))
    assert before["dense_head"] == after["dense_head"] and "cyclist_head" in after


def test_p7_verify_agrees_and_the_new_head_alone_was_trained(runs: dict[str, Path]) -> None:
    paths = [
        checkpoint(runs["car_pedestrian"]),
        checkpoint(runs["new_class"]),
        checkpoint(runs["new_class"], 2),
    ]
    assert main(["verify", str(paths[1]), str(paths[2])]) == 0
    then, early, late = (load_checkpoint(path)["model_state"] for path in paths)
    assert all(torch.equal(then[name], late[name]) for name in then if name != "global_step")
    moved = {name.partition(".")[0] for name in late if not torch.equal(early[name], late[name])}
    assert moved == {"cyclist_head", "global_step"}


def test_the_loss_of_the_new_head_is_in_tensorboards_figures(runs: dict[str, Path]) -> None:
    data = b"".join(path.read_bytes() for path in (runs["new_class"] / "tensorboard").iterdir())
    assert b"train/loss_cyclist_head" in data and b"train/loss_rpn" not in data


def test_r1_a_resumed_run_ends_as_one_that_was_not_interrupted(runs: dict[str, Path], tmp_path: Path) -> None:
    resumed = stage(tmp_path, "new_class", "--ckpt", checkpoint(runs["new_class"]), steps=4)
    whole, again = (load_checkpoint(checkpoint(path, 2)) for path in (runs["new_class"], resumed))
    assert all(torch.equal(whole["model_state"][n], again["model_state"][n]) for n in whole["model_state"])


def test_every_class_has_an_average_precision_with_its_overlap(runs: dict[str, Path], tmp_path: Path) -> None:
    given = [
        "--cfg_file",
        CFGS / "new_class.yaml",
        "--ckpt",
        checkpoint(runs["new_class"], 2),
        "--workers",
        0,
    ]
    more = ["--output_dir", tmp_path, "--device", "cpu", "--batch_size", 2, "--set", *SMALL]
    assert main(["test", *map(str, [*given, *more, *sets_of("new_class")])]) == 0
    (result,) = tmp_path.rglob("result.json")
    values = json.loads(result.read_text())
    assert {f"{name}_3d_0.50/moderate_R40" for name in ("Car", "Pedestrian", "Cyclist")} <= set(values)
