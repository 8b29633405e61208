"""The benchmark of segment_head alone, beside a frozen detector."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bench_toys import CFG, SMALL, subject

from pcdet_freeze.bench import Contender, RandomScenes, build_contenders, exact_figures
from pcdet_freeze.config import cfg_from_list, cfg_from_yaml_file


def cfg_of(*sets: str) -> Any:
    cfg = cfg_from_yaml_file(CFG.with_name("multi_task.yaml"))
    cfg_from_list([*SMALL, *sets], cfg)
    return cfg


@pytest.fixture(scope="module")
def none_and_exact() -> list[Contender]:
    cfg = cfg_of()
    return build_contenders(*_in_order(cfg), ["exact"])


def _in_order(cfg: Any) -> tuple[Any, Any, Any]:
    model, batch = subject(cfg)
    return model, cfg, batch


def test_random_scenes_label_points_by_height() -> None:
    _, batch = subject(cfg_of())
    points, labels = batch["points"], batch["point_labels"]
    assert labels.shape == points.shape[:1] and labels.unique().tolist() == [0, 1, 2, 3]
    assert torch.equal(labels, ((points[:, 3] + 3) / 4 * 4).long().clamp(0, 3))  # z from -3 to 1


def test_scenes_without_point_classes_are_the_same_and_have_no_labels() -> None:
    _, labelled = subject(cfg_of())
    _, plain = subject(cfg_of("DATA_CONFIG.RANDOM_SCENES.POINT_CLASSES", "0", "MODEL.SEGMENT_HEAD", "null"))
    assert "point_labels" not in plain
    assert all(torch.equal(labelled[key], plain[key]) for key in ("points", "gt_boxes", "voxels"))


def test_f3_segment_head_alone_trains_and_the_dense_head_does_not_run(none_and_exact: Any) -> None:
    ran: dict[str, list[str]] = {}
    for contender in none_and_exact:
        calls = ran.setdefault(contender.name, [])
        contender.trainer.model.dense_head.register_forward_hook(lambda *_, calls=calls: calls.append("head"))
        contender.step()
    assert ran == {"none": ["head"], "exact": []}
    model = none_and_exact[1].trainer.model
    names = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert names == {"segment_head"}


def test_f3_segment_head_alone_needs_no_backward_of_the_trunk_and_nothing_of_the_dense_head(
    none_and_exact: Any,
) -> None:
    none, exact = (exact_figures.count_flops(contender.step) for contender in none_and_exact)
    assert exact < 0.4 * none


def test_any_stage_of_several_tasks_can_be_measured_without_its_data() -> None:
    cfg = cfg_from_yaml_file(CFG.parents[1] / "synthetic_models" / "stage3_lane.yaml")
    scenes = RandomScenes(cfg.DATA_CONFIG, cfg.CLASS_NAMES)
    sample = scenes.load_sample(0)
    assert len(scenes.semantic_class_names) == 11 and sample["point_labels"].max() == 10
    assert sample["lane_map"].shape == scenes.lane_map_shape == (160, 160)
    assert set(sample["lane_map"].flat) == {0, 255}
