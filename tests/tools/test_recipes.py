"""tools/recipes.py: what a recipe changes, and what its row of the table says."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
from tool_runs import LIST, ROOT, tool

from pcdet_freeze.config import cfg_from_list, cfg_from_yaml_file


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "tools")  # as where a user starts it: it shares the demo's steps
    return tool("compare")


def stage(compare: ModuleType, detector: str, seconds: float) -> dict[str, Any]:
    figures = {compare.AP: 60.04, compare.MIOU: 50.0, compare.F1: 0.5, "detector": [detector]}
    return figures | {"iterations": 100, "seconds_per_iteration": {"batch": seconds}}


def test_a_detector_that_changes_in_any_stage_is_told(compare: ModuleType) -> None:
    def told(*detectors: str) -> str:
        return compare.row("a", [stage(compare, each, 0.5) for each in detectors])[7]

    assert told("x", "x", "x") == "the same bits"
    assert told("x", "y", "y") == told("x", "x", "y") == told("x", "y", "x") == "changed"


def test_a_row_has_the_figures_of_each_stage_and_the_seconds_of_all_iterations(compare: ModuleType) -> None:
    row = compare.row("a", [stage(compare, "x", seconds) for seconds in (1.0, 0.5, 0.5)])
    assert row == ["a", "60.0", "60.0", "60.0", "50.0", "50.0", "0.500", "the same bits", "200"]
    assert len(row) == len(compare.HEAD) and compare.table([row]).count("\n") == 2


@pytest.mark.parametrize("later", ["stage2_segment", "stage3_lane"])
def test_only_the_new_task_gives_a_loss_unless_the_recipe_says_otherwise(
    compare: ModuleType, later: str
) -> None:
    found = {}
    for name, recipe in compare.RECIPES.items():
        cfg = cfg_from_yaml_file(ROOT / "cfgs" / "synthetic_models" / f"{later}.yaml")
        cfg_from_list(compare.options(recipe, later, []), cfg)
        live = [h for h in ("dense_head", "segment_head", "lane_head") if h.upper() in cfg.MODEL]
        frozen = (
            cfg.MODEL[LIST.partition(".")[2]] if cfg.MODEL.get("FREEZE", {}).get("PARAMETERS", True) else []
        )
        weights = cfg.MODEL.get("LOSS_WEIGHTS", {})
        found[name] = [head for head in live if head not in frozen and weights.get(head) != 0]
    own = ["segment_head"] if later == "stage2_segment" else ["lane_head"]
    everything = ["dense_head", "segment_head", "lane_head"][: 2 if later == "stage2_segment" else 3]
    assert found.pop("fine-tuning, all losses") == everything
    assert list(found.values()) == [own] * 3
