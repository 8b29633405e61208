"""`suggest`: the shortest list that keeps the outputs of given heads."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from bench_toys import subject
from torch import nn

from pcdet_freeze.__main__ import main
from pcdet_freeze.config import cfg_from_list, cfg_from_yaml_file
from pcdet_freeze.datasets.file_formats.point_files import PointFiles
from pcdet_freeze.errors import FreezeError
from pcdet_freeze.freezing import freeze
from pcdet_freeze.freezing.data_flow.drift_lint import lint
from pcdet_freeze.freezing.data_flow.module_graph import stages
from pcdet_freeze.freezing.data_flow.suggestion import suggest, without
from pcdet_freeze.freezing.verification.digest import tensor_digests
from pcdet_freeze.models import build_network
from pcdet_freeze.utils.tensors import tensors_with_path

ROOT = Path(__file__).resolve().parents[2]
CFGS = sorted(str(path.relative_to(ROOT / "cfgs")) for path in (ROOT / "cfgs").glob("*_models/*.yaml"))
STAGE3 = "synthetic_models/stage3_lane.yaml"
SMALL = [
    "DATA_CONFIG.POINT_CLOUD_RANGE", "[-12.8, -12.8, -3, 12.8, 12.8, 1]",
    "MODEL.BACKBONE_2D.NUM_FILTERS", "[8, 8, 8]", "MODEL.BACKBONE_2D.LAYER_NUMS", "[0, 0, 0]",
    "MODEL.BACKBONE_2D.NUM_UPSAMPLE_FILTERS", "[8, 8, 8]", "MODEL.BACKBONE_2D.MIXSEGNET.WIDTH", "16",
]  # fmt: skip
HEADS = ("dense_head", "segment_head", "lane_head")


def model_of(name: str) -> nn.Module:
    cfg = cfg_from_yaml_file(ROOT / "cfgs" / name)
    return build_network(cfg.MODEL, len(cfg.CLASS_NAMES), PointFiles(cfg.DATA_CONFIG, cfg.CLASS_NAMES, []))


def subsets(names: list[str]) -> list[tuple[str, ...]]:
    return [chosen for size in range(1, len(names) + 1) for chosen in combinations(names, size)]


@pytest.mark.parametrize("name", CFGS)
def test_nothing_drifts_with_the_list_and_a_kept_head_does_without_any_entry(name: str) -> None:
    model = model_of(name)
    for keep in subsets([stage.name for stage in stages(model) if stage.has_loss]):
        found = suggest(model, keep)
        handle = freeze(model, list(found.entries), certify=False)
        assert lint(model) == []
        handle.release()
        assert all(without(model, found, entry) for entry in found.entries)


def test_the_lists_are_those_of_the_stage_configs() -> None:
    for number, name in enumerate(("stage2_segment", "stage3_lane"), start=1):
        cfg = cfg_from_yaml_file(ROOT / f"cfgs/synthetic_models/{name}.yaml")
        found = suggest(model_of(f"synthetic_models/{name}.yaml"), HEADS[:number])
        assert set(found.entries) == set(cfg.MODEL.NOT_TRAIN_IN_MULTI_TASK)
        assert found.losses == (HEADS[number],) and found.certain


def outputs(model: nn.Module, batch: dict[str, Any], heads: tuple[str, ...]) -> list[str]:
    model.eval()
    out = dict(batch)
    with torch.no_grad():
        model(out)
    model.train()
    kept = [stage for stage in stages(model) if stage.name in heads]
    return tensor_digests(
        [t for stage in kept for _, t in tensors_with_path({k: out.get(k) for k in sorted(stage.writes)})]
    )


def changes(entries: tuple[str, ...], heads: tuple[str, ...]) -> bool:
    """Whether three steps with ``entries`` frozen change the outputs of ``heads``."""
    cfg = cfg_from_yaml_file(ROOT / "cfgs" / STAGE3)
    cfg_from_list(SMALL, cfg)
    cfg.DATA_CONFIG.RANDOM_SCENES = {"POINTS": 2000, "BOXES": 5}
    model, batch = subject(cfg)
    before = outputs(model, batch, heads)
    freeze(model, list(entries), certify=False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model.train()
        model(dict(batch))[0]["loss"].backward()
        optimizer.step()
    return outputs(model, batch, heads) != before


@pytest.mark.slow
@pytest.mark.parametrize("keep", [HEADS[1:2], HEADS[:2]], ids=str)
def test_three_steps_change_nothing_with_the_list_and_something_without_any_entry(
    keep: tuple[str, ...],
) -> None:
    found = suggest(model_of(STAGE3), keep)
    assert not changes(found.entries, keep)
    for left_out in found.entries:
        assert changes(tuple(entry for entry in found.entries if entry != left_out), keep), left_out


def test_a_name_that_is_no_head_is_an_error_that_lists_them() -> None:
    with pytest.raises(FreezeError, match=r"--keep.*dense_head, segment_head.*'backbone_2d'"):
        suggest(model_of(STAGE3), ["backbone_2d"])


def test_the_command_prints_yaml_that_can_be_pasted(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    words = ["--cfg_file", STAGE3, "--keep", "dense_head", "--keep", "segment_head", "--rounds", "0"]
    assert main(["suggest", *words]) == 0
    text = capsys.readouterr().out
    assert text.startswith("MODEL:\n    NOT_TRAIN_IN_MULTI_TASK: [vfe, backbone_2d.blocks, ")
    assert "lane_head (" in text and "without one entry" in text and max(map(len, text.splitlines())) <= 80
    assert main(["suggest", *words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert yaml.safe_load(text.partition("\n\n")[0]) == {
        "MODEL": {"NOT_TRAIN_IN_MULTI_TASK": found["entries"]}
    }
    assert found["entries"][0] == "vfe" and found["needed_by"]["vfe"] == ["dense_head", "segment_head"]


def test_a_list_that_leaves_nothing_to_train_is_an_error(capsys: Any) -> None:
    words = ["--cfg_file", "kitti_models/pointpillar.yaml", "--keep", "dense_head", "--rounds", "0"]
    assert main(["suggest", *words]) == 1
    assert "no head is left to train" in capsys.readouterr().out


def test_the_cost_of_a_step_is_measured(capsys: Any) -> None:
    words = ["--cfg_file", STAGE3, "--keep", "dense_head", "--rounds", "1", "--batch_size", "1"]
    assert main(["suggest", *words, "--json", "--set", *SMALL]) == 0
    assert 0 < json.loads(capsys.readouterr().out)["cost"] < 1
