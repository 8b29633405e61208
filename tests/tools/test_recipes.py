"""``pcdet-freeze recipes``: what a recipe changes, and the cells of its row."""

from __future__ import annotations

from typing import Any

import pytest
from tool_runs import LIST, ROOT

from pcdet_freeze.cli import recipes
from pcdet_freeze.config import cfg_from_list, cfg_from_yaml_file


def stage(detector: str, seconds: float) -> dict[str, Any]:
    figures = {recipes.AP: 60.04, recipes.MIOU: 50.0, recipes.F1: 0.5, "detector": [detector]}
    return figures | {"iterations": 100, "seconds_per_iteration": {"batch": seconds}}


def test_a_detector_that_changes_in_any_stage_is_reported() -> None:
    def verdict(*detectors: str) -> str:
        return recipes.row("a", [stage(each, 0.5) for each in detectors])[7]

    assert verdict("x", "x", "x") == "the same bits"
    assert verdict("x", "y", "y") == verdict("x", "x", "y") == verdict("x", "y", "x") == "changed"


def test_a_row_has_the_figures_of_each_stage_and_the_seconds_of_all_iterations() -> None:
    row = recipes.row("a", [stage("x", seconds) for seconds in (1.0, 0.5, 0.5)])
    assert row == ["a", "60.0", "60.0", "60.0", "50.0", "50.0", "0.500", "the same bits", "200"]
    assert len(row) == len(recipes.HEAD) and recipes.table([row]).count("\n") == 2


@pytest.mark.parametrize("trunk", recipes.TRUNKS.values())
@pytest.mark.parametrize("later", ["stage2_segment", "stage3_lane"])
def test_only_the_new_task_gives_a_loss_unless_the_recipe_says_otherwise(later: str, trunk: str) -> None:
    found = {}
    for name, recipe in recipes.RECIPES.items():
        cfg = cfg_from_yaml_file(ROOT / "cfgs" / "synthetic_models" / f"{trunk}{later}.yaml")
        cfg_from_list(recipes.options(recipe, later, []), cfg)
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
