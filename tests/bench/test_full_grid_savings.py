"""What freezing [vfe, backbone_2d.blocks] saves on KITTI's full grid, in figures that no machine changes."""

from __future__ import annotations

import pytest
import torch
from bench_toys import CFG

from pcdet_freeze.bench import Contender, RandomScenes, build_contenders, exact_figures, make_batch
from pcdet_freeze.config import cfg_from_yaml_file
from pcdet_freeze.models import build_network
from pcdet_freeze.utils.memory import optimizer_tensors, peak_bytes

LIMITS = {"flops": 0.40, "saved_bytes": 0.43, "peak_bytes": 0.55, "checkpoint_bytes": 0.45}


def figures_of(contender: Contender) -> dict[str, int]:
    """FLOPs, saved bytes and peak of steps after the first, which makes and checks the frozen prefix."""
    contender.step()
    trainer, found = contender.trainer, {}
    fixed = [*contender.batch.values(), *trainer.model.parameters(), *trainer.model.buffers()]

    def step() -> None:
        found["saved_bytes"] = exact_figures.count_saved_bytes(contender.step, fixed)

    trainer.optimizer.zero_grad(set_to_none=True)
    found["flops"] = exact_figures.count_flops(step)
    trainer.optimizer.zero_grad(set_to_none=True)
    own = [*fixed, *optimizer_tensors(trainer.optimizer)]
    found["peak_bytes"] = peak_bytes(contender.step, own, torch.device("cpu"))
    found["checkpoint_bytes"] = exact_figures.checkpoint_bytes(trainer)
    return found


@pytest.mark.slow
def test_an_unfrozen_step_on_the_default_grid_saves_half_of_what_it_would_save_padded() -> None:
    cfg = cfg_from_yaml_file(CFG)
    torch.manual_seed(0)
    scenes = RandomScenes(cfg.DATA_CONFIG, cfg.CLASS_NAMES)
    model = build_network(cfg.MODEL, len(cfg.CLASS_NAMES), scenes)
    batch = make_batch(scenes, 2, torch.device("cpu"))
    saved = {}
    for contender in build_contenders(model, cfg, batch, ["none_ragged", "unfrozen"]):
        fixed = [*contender.batch.values(), *model.parameters(), *contender.trainer.model.parameters()]
        fixed += list(contender.trainer.model.buffers())
        saved[contender.name] = exact_figures.count_saved_bytes(contender.step, fixed)
    assert saved["none_ragged"] <= 0.665 * saved["none"]  # the maps behind the encoder have 0.645
    assert saved["unfrozen"] <= 0.50 * saved["none"]  # without the scattered map and the padded one


@pytest.fixture(scope="module")
def ratios() -> dict[str, float]:
    cfg = cfg_from_yaml_file(CFG.parents[1] / "kitti_models" / "pointpillar.yaml")
    cfg.MODEL.NOT_TRAIN_IN_MULTI_TASK = ["vfe", "backbone_2d.blocks"]
    torch.manual_seed(0)
    scenes = RandomScenes(cfg.DATA_CONFIG, cfg.CLASS_NAMES)
    model = build_network(cfg.MODEL, len(cfg.CLASS_NAMES), scenes)
    contenders = build_contenders(model, cfg, make_batch(scenes, 1, torch.device("cpu")), ["exact"])
    none, exact = map(figures_of, contenders)
    return {name: exact[name] / none[name] for name in LIMITS}


@pytest.mark.slow
@pytest.mark.parametrize("figure", LIMITS)
def test_the_default_list_on_the_full_grid_stays_below_its_limit(
    ratios: dict[str, float], figure: str
) -> None:
    assert ratios[figure] <= LIMITS[figure]
