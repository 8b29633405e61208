"""`explain`: which modules each loss reaches, found by a backward pass, and the table (P6)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from task_cases import task_batch, task_config, task_model
from torch import nn
from toy_parts import Part, toy, toy_batch

from pcdet_freeze.__main__ import main
from pcdet_freeze.engine.explain import dropout_is_off, explain
from pcdet_freeze.freezing import FreezePlan, freeze
from pcdet_freeze.freezing.checks.loss_reachability import trace_losses

SMALL = [
    "DATA_CONFIG.NUM_SCENES.train", "2", "DATA_CONFIG.SENSOR.BEAMS", "VLP-16", "DATA_CONFIG.MIN_CARS", "1",
    "MODEL.BACKBONE_2D.LAYER_NUMS", "[1, 1, 1]", "MODEL.BACKBONE_2D.NUM_FILTERS", "[8, 8, 8]",
    "MODEL.BACKBONE_2D.NUM_UPSAMPLE_FILTERS", "[8, 8, 8]",
]  # fmt: skip
FREEZE = ["MODEL.NOT_TRAIN_IN_MULTI_TASK", "[vfe, backbone_2d.blocks]"]
OPTIM = {"OPTIMIZER": "adam_onecycle", "LR": 0.01, "WEIGHT_DECAY": 0, "MOMS": [0.9, 0.8], "DIV_FACTOR": 10}
HEADS = ("DENSE_HEAD", "LANE_HEAD")


def explained(*entries: str, model: Any = None, depth: int = 2) -> Any:
    model = model or toy(*HEADS)
    batch = toy_batch("label", "lane_label")
    return explain(freeze(model, list(entries)), OPTIM, batch, depth)


def rows(found: Any) -> dict[str, Any]:
    return {row.module: row for row in found.rows}


def test_p6_each_module_names_the_heads_whose_loss_reaches_it() -> None:
    found = rows(explained())
    assert found["vfe"].losses == ("dense_head", "lane_head")
    assert found["backbone_2d.deblocks"].losses == ("dense_head",)
    assert found["backbone_2d.lane_deblocks"].losses == ("lane_head",)


def test_p6_reach_is_found_by_gradient_and_not_by_name() -> None:
    model = toy(*HEADS)
    model.dense_head.source, model.lane_head.source = "lane_features", "features"
    found = rows(explained(model=model))
    assert found["backbone_2d.deblocks"].losses == ("lane_head",)
    assert found["backbone_2d.lane_deblocks"].losses == ("dense_head",)


def test_p6_a_frozen_module_says_by_which_entry_and_is_in_no_group() -> None:
    found = rows(explained("vfe", "backbone_2d.bl*"))
    assert (found["vfe"].frozen, found["vfe"].entries, found["vfe"].groups) == ("yes", ("vfe",), ())
    assert found["backbone_2d"].frozen == "partly"
    assert found["backbone_2d.blocks"].entries == ("backbone_2d.bl*",)
    assert found["backbone_2d.deblocks"].groups == (0, 1)


def test_p6_norm_and_dropout_modes_are_counted() -> None:
    found = rows(explained("backbone_2d.blocks", "dense_head"))
    assert (found["backbone_2d"].norm_locked, found["backbone_2d"].norm_train) == (1, 2)
    assert (found["dense_head"].dropout_off, found["lane_head"].dropout_on) == (1, 1)


def test_p6_parts_that_live_without_learning_are_marked_and_are_an_error() -> None:
    found = explained("dense_head")
    assert "backbone_2d.deblocks.0.weight" in rows(found)["backbone_2d.deblocks"].unreached
    (problem,) = found.problems
    assert problem.startswith("backbone_2d.deblocks is trainable, but no loss depends on it")


def test_p6_live_statistics_without_a_loss_are_found_even_without_weights() -> None:
    model = toy(*HEADS)
    model.backbone_2d.deblocks[1] = nn.BatchNorm1d(6, affine=False)
    model.backbone_2d.lane_deblocks[1] = nn.BatchNorm1d(6, affine=False)
    entries = [
        "vfe",
        "dense_head",
        "backbone_2d.blocks",
        "backbone_2d.deblocks.0",
        "backbone_2d.lane_deblocks.0",
    ]
    found = explained(*entries, model=model)
    assert [problem.split()[0] for problem in found.problems] == ["backbone_2d.deblocks"]
    assert rows(found)["backbone_2d.lane_deblocks"].losses == ("lane_head",)


def test_p6_a_frozen_head_gives_no_loss_and_the_lint_is_told() -> None:
    found = explained("dense_head", "backbone_2d.deblocks")
    assert rows(found)["dense_head"].head == "no loss"
    assert found.heads == ("lane_head",)
    assert any("dense_head is frozen, but" in warning for warning in found.warnings)
    assert any("dense_head gives no loss" in note for note in found.notes)


def test_p6_learned_loss_weights_are_reached_by_the_loss_that_they_weigh() -> None:
    model = task_model(config=task_config("lane") | {"LEARN_LOSS_WEIGHTS": True})
    found = trace_losses(model, task_batch()).found
    assert found["lane_head.loss_scale.log_variance"] == ("lane_head",)
    assert found["dense_head.loss_scale.log_variance"] == ("dense_head",)


def test_p6_where_nothing_could_train_the_table_is_there_and_the_error_with_it() -> None:
    found = explained("vfe", "backbone_2d", "dense_head", "lane_head")
    assert len(found.rows) == 4 + 1 + 3 + 4
    assert "must have a trainable parameter" in found.problems[0]
    assert "At least one head must give a loss" in found.problems[1]


def test_p6_modules_with_locked_norm_layers_only_are_not_called_frozen() -> None:
    handle = freeze(toy(*HEADS), FreezePlan(("vfe",), parameters=False))
    row = explain(handle, OPTIM, toy_batch("label", "lane_label"), 1).rows[0]
    assert (row.frozen, row.norm_locked, row.groups) == ("locked", 1, (0, 1))


def test_p6_a_phase_in_which_no_loss_reaches_what_begins_to_train_is_an_error() -> None:
    entries = ("dense_head", "backbone_2d.deblocks")
    found = []
    for train in (["backbone_2d.deblocks"], ["backbone_2d.deblocks", "dense_head"]):
        plan = FreezePlan(entries, schedule=({"EPOCH": 3, "TRAIN": train},))
        found.append(explain(freeze(toy(*HEADS), plan), OPTIM, toy_batch("label", "lane_label")))
    assert [problem.partition(" is trainable")[0] for problem in found[0].problems] == [
        "after EPOCH 3: backbone_2d.deblocks"
    ]
    assert found[1].problems == ()
    assert "backbone_2d.deblocks, dense_head begin to train" in found[1].schedule[0]
    assert rows(found[1])["dense_head"].frozen == "yes"


def test_p6_depth_chooses_how_far_down_the_table_goes() -> None:
    assert [row.module for row in explained(depth=1).rows] == [
        "vfe",
        "backbone_2d",
        "dense_head",
        "lane_head",
    ]
    assert "backbone_2d.blocks.1" in rows(explained(depth=3))


def test_tracing_leaves_the_model_as_it_was() -> None:
    model = toy(*HEADS).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = toy_batch("label", "lane_label")
    keys = set(batch)
    trace_losses(model, batch)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training and not any(p.grad is not None for p in model.parameters())
    assert set(batch) == keys and all(part.calls == [] for part in model.modules() if isinstance(part, Part))


def test_dropout_of_recurrent_and_attention_layers_counts() -> None:
    layers = nn.ModuleList([nn.LSTM(2, 2, 2, dropout=0.5), nn.MultiheadAttention(2, 1, 0.1), nn.LSTM(2, 2)])
    assert [dropout_is_off(layer) for layer in layers] == [False, False, None]
    freeze(layers, ["0", "1", "2"])
    assert [dropout_is_off(layer) for layer in layers] == [True, True, None]


def cfg_file(root: Path, folder: str = "synthetic_models") -> str:
    return str(root / "cfgs" / folder / "pointpillar.yaml")


def test_p6_the_command_prints_a_table_that_fits(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    flags = ["--cfg_file", cfg_file(root), "--device", "cpu", "--set", *SMALL, *FREEZE]
    assert main(["explain", *flags]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    (line,) = (line for line in printed.splitlines() if "─ blocks" in line)
    assert line.split()[-1] == "backbone_2d.blocks" and "frozen" in line and "locked" in line
    assert "one batch of SyntheticDataset" in printed


def test_p6_json_gives_the_same_as_data(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--cfg_file", cfg_file(root), "--device", "cpu", "--json", "--set", *SMALL, *FREEZE]
    assert main(["explain", *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    blocks = next(row for row in found["rows"] if row["module"] == "backbone_2d.blocks")
    assert blocks["entries"] == ["backbone_2d.blocks"] and blocks["groups"] == []
    assert found["heads"] == ["dense_head"] and found["problems"] == []


def test_f7_what_a_cache_would_keep_is_told_without_writing_anything(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = ["MODEL.FREEZE.CACHE", f"{{FOLDER: {tmp_path}, VARIANTS: 3}}"]
    flags = ["--cfg_file", cfg_file(root), "--device", "cpu", "--json", "--set", *SMALL, *FREEZE]
    assert main(["explain", *flags, *cache]) == 0
    (note,) = (note for note in json.loads(capsys.readouterr().out)["notes"] if "Cache of" in note)
    assert "backbone_2d.blocks.0, backbone_2d.blocks.1" in note and "samples x 3 variants = " in note
    assert list(tmp_path.iterdir()) == []


def test_f7_a_cache_that_a_training_would_refuse_is_a_problem(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--cfg_file", cfg_file(root), "--device", "cpu", "--json", "--set", *SMALL, *FREEZE]
    assert main(["explain", *flags, "MODEL.FREEZE.CACHE", str(tmp_path)]) == 1
    assert "shuffle_points are random" in json.loads(capsys.readouterr().out)["problems"][0]


def test_p6_without_data_a_random_batch_is_used_and_named(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["MODEL.BACKBONE_2D.LAYER_NUMS", "[0, 0, 0]", "DATA_CONFIG.DATA_PATH", str(tmp_path)]
    flags = ["--cfg_file", cfg_file(root, "kitti_models"), "--batch_size", "1", "--device", "cpu"]
    assert main(["explain", *flags, "--depth", "1", "--set", *small]) == 0
    assert "a random batch (1 frames), since there is no data" in capsys.readouterr().out


def test_p6_what_fits_of_a_checkpoint_is_loaded_and_counted(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--cfg_file", cfg_file(root), "--device", "cpu", "--depth", "1"]
    file = tmp_path / "a.pth"
    torch.save({"model_state": {"dense_head.conv_cls.bias": torch.zeros(18), "other": torch.zeros(1)}}, file)
    assert main(["explain", *flags, "--ckpt", str(file), "--set", *SMALL]) == 0
    assert "weights: 1 tensors of" in (printed := capsys.readouterr().out)
    assert "1 unexpected, 0 of another shape" in " ".join(printed.split())
    torch.save({"model_state": {"other": torch.zeros(1)}}, file)
    assert main(["explain", *flags, "--ckpt", str(file), "--set", *SMALL]) == 1
    assert "none fits" in capsys.readouterr().err


def test_p6_a_list_that_leaves_no_loss_makes_the_command_exit_with_1(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = ["MODEL.NOT_TRAIN_IN_MULTI_TASK", "[dense_head]"]
    assert main(["explain", "--cfg_file", cfg_file(root), "--device", "cpu", "--set", *SMALL, *entries]) == 1
    assert "ERROR: At least one head must give a loss" in capsys.readouterr().out


def test_a_data_set_that_is_not_built_is_explained_with_random_frames(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = str(root / "cfgs/nuscenes_models/cbgs_pp_multihead.yaml")
    small = ["DATA_CONFIG.POINT_CLOUD_RANGE", "[-6.4,-6.4,-5,6.4,6.4,3]"]
    frozen = ["DATA_CONFIG.DATASET", "LyftDataset", "MODEL.NOT_TRAIN_IN_MULTI_TASK", "vfe"]
    assert main(["explain", "--cfg_file", cfg, "--json", "--set", *small, *frozen]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["batch"] == "a random batch (2 frames), since LyftDataset is not implemented"
    assert told["heads"] == ["dense_head"]


def test_a_random_batch_has_lane_maps_of_the_size_of_the_configs(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = str(root / "cfgs/nuscenes_models/stage3_lane.yaml")
    small = ["DATA_CONFIG.POINT_CLOUD_RANGE", "[-6.4,-6.4,-5,6.4,6.4,3]"]  # cells of 0.2 m, lanes of 0.4 m
    assert main(["explain", "--cfg_file", cfg, "--json", "--set", *small]) == 0
    told = json.loads(capsys.readouterr().out)
    assert "there is no data" in told["batch"] and "lane_head" in told["heads"]
