"""Digests of what a model puts out: equal where the bits are, different where one is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from task_cases import STAGE_2, task_batch, task_config, task_model

from pcdet_freeze.__main__ import main
from pcdet_freeze.config import cfg_from_yaml_file
from pcdet_freeze.datasets import build_dataset
from pcdet_freeze.engine.run_context import EvalOptions, RunContext
from pcdet_freeze.engine.testing.output_digest import output_digests
from pcdet_freeze.errors import ConfigError
from pcdet_freeze.freezing import freeze
from pcdet_freeze.models import build_network
from pcdet_freeze.utils.distributed import World

DETECTION = ("dense_head", "pred_boxes", "pred_scores", "pred_labels")
ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")


def digests(model: Any) -> dict[str, str]:
    found = output_digests(model, [task_batch(seed=1), task_batch((30, 0), seed=2)], CPU)
    return {name: digest.hexdigest() for name, digest in found.items()}


def trained(*entries: str) -> Any:
    """The model after two steps with ``entries`` frozen."""
    model = task_model("segment", "lane")
    freeze(model, list(entries))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for seed in range(2):
        optimizer.zero_grad()
        model.train()(task_batch(seed=seed))[0]["loss"].backward()
        optimizer.step()
    return model


def test_every_head_and_every_prediction_has_a_digest() -> None:
    assert {*DETECTION, "segment_head", "pred_point_labels", "lane_head", "pred_lane_map", "pred_lanes"} <= (
        digests(task_model("segment", "lane")).keys()
    )


def test_what_is_frozen_keeps_its_digests_while_other_tasks_train() -> None:
    before, after = digests(task_model("segment", "lane")), digests(trained(*STAGE_2))
    changed = {name for name in before if before[name] != after[name]}
    assert not changed & set(DETECTION)
    assert {"segment_head", "lane_head"} <= changed


def test_without_the_list_they_change() -> None:
    before, after = digests(task_model("segment", "lane")), digests(trained())
    assert before["dense_head"] != after["dense_head"]


def test_a_model_with_fewer_tasks_has_the_same_digests_of_those_it_has() -> None:
    whole, small = task_model("segment", "lane"), task_model(config=task_config())
    small.load_state_dict(whole.state_dict(), strict=False)
    assert {name: digests(whole)[name] for name in DETECTION} == {
        name: digests(small)[name] for name in DETECTION
    }


def test_boxes_are_counted_and_the_mode_is_left_as_it_was() -> None:
    model = task_model().train()
    found = output_digests(model, [task_batch()], CPU)
    assert model.training
    assert found["pred_boxes"].count == sum(
        len(frame["pred_boxes"]) for frame in model.eval()(task_batch())[0]
    )


def test_the_command_and_an_evaluation_write_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = cfg_from_yaml_file(ROOT / "cfgs/synthetic_models/stage1_detect.yaml")
    cfg.DATA_CONFIG.NUM_SCENES.test = 1
    data = build_dataset(cfg.DATA_CONFIG, cfg.CLASS_NAMES, False)
    model = build_network(cfg.MODEL, len(cfg.CLASS_NAMES), data)
    torch.save({"model_state": model.state_dict()}, tmp_path / "a.pth")
    words = ["--cfg_file", str(ROOT / "cfgs/synthetic_models/stage1_detect.yaml"), "--device", "cpu"]
    words += ["--ckpt", str(tmp_path / "a.pth"), "--batch_size", "2"]
    few = ["--set", "DATA_CONFIG.NUM_SCENES.test", "1", "DATA_CONFIG.CACHE", str(tmp_path / "scenes")]
    assert main(["digest", *words, "--out", str(tmp_path / "a.json"), *few]) == 0
    written = json.loads((tmp_path / "a.json").read_text())
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()] == [
        [name, entry["digest"]] for name, entry in written.items()
    ]
    assert main(["test", *words, "--workers", "0", "--output_dir", str(tmp_path), "--digest", *few]) == 0
    (file,) = tmp_path.glob("**/digest.json")
    assert json.loads(file.read_text()) == written and (file.parent / "result.json").is_file()


def test_digests_of_an_evaluation_need_a_single_process() -> None:
    rest: Any = dict.fromkeys(("cfg", "device", "folders", "logger", "plan"))
    with pytest.raises(ConfigError, match=r"--digest .* one process .* got 2"):
        RunContext(EvalOptions(digest=True), world=World(0, 2, 0), **rest)
