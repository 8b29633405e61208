"""The configs of the three stages: what each adds, what each holds, and that their checkpoints fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pcdet_freeze.config import cfg_from_yaml_file
from pcdet_freeze.datasets import build_dataset
from pcdet_freeze.freezing import FreezePlan, freeze
from pcdet_freeze.freezing.data_flow.drift_lint import lint
from pcdet_freeze.freezing.data_flow.module_graph import explain_steps, require_loss
from pcdet_freeze.models import build_network

FOLDER = Path(__file__).parents[2] / "cfgs" / "synthetic_models"
LIVE = {
    "stage1_detect": {"vfe", "backbone_2d.blocks", "backbone_2d.deblocks", "dense_head"},
    "stage2_segment": {"backbone_2d.segblocks", "backbone_2d.seg_out_conv", "segment_head"},
    "stage3_lane": {"backbone_2d.laneblocks", "backbone_2d.mixsegnet", "lane_head"},
}
LIVE["car_pedestrian"], LIVE["new_class"] = LIVE["stage1_detect"], {"cyclist_head"}
LIVE["multi_task"] = LIVE["stage1_detect"] | LIVE["stage2_segment"] | LIVE["stage3_lane"]


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {name: build(name) for name in LIVE}


def build(name: str) -> Any:
    cfg = cfg_from_yaml_file(FOLDER / f"{name}.yaml")
    data = build_dataset(cfg.DATA_CONFIG, cfg.CLASS_NAMES, training=False)
    model = build_network(cfg.MODEL, len(cfg.CLASS_NAMES), data)
    if plan := FreezePlan.from_cfg(cfg):
        freeze(model, plan)
    return model


def part_of(name: str) -> str:
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] == "backbone_2d" else parts[0]


@pytest.mark.parametrize("stage", LIVE)
def test_a_stage_trains_its_own_parts_and_nothing_feeds_a_frozen_one(
    models: dict[str, Any], stage: str
) -> None:
    model = models[stage]
    assert {part_of(n) for n, p in model.named_parameters() if p.requires_grad} == LIVE[stage]
    assert lint(model) == []
    require_loss(model)


def test_t1_a_stage_does_not_run_what_earlier_stages_trained(models: dict[str, Any]) -> None:
    lines = explain_steps(models["stage3_lane"])
    assert "backbone_2d does not compute seg_features_2d, spatial_features_2d in training" in lines[0]
    assert [line.split(" gives no loss; in training it is skipped")[0] for line in lines[1:]] == [
        *("dense_head", "segment_head")
    ]


def test_a_stages_checkpoint_holds_all_that_the_next_one_freezes(models: dict[str, Any]) -> None:
    for before, after in (("stage1_detect", "stage2_segment"), ("stage2_segment", "stage3_lane")):
        then, now = models[before].state_dict(), models[after].state_dict()
        added = {part_of(name) for name in now if name not in then}
        assert added == LIVE[after]
        assert all(then[name].shape == now[name].shape for name in then)


def test_all_tasks_at_once_are_the_model_of_the_last_stage(models: dict[str, Any]) -> None:
    last, joint = models["stage3_lane"].state_dict(), models["multi_task"].state_dict()
    assert {name: value.shape for name, value in last.items()} == {n: v.shape for n, v in joint.items()}
