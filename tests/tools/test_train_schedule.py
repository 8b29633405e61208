"""tools/train.py with a schedule, and resumed under another list: what the log says, and to which bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tool_runs import CFG, FREEZE, SMALL, folder, train

from pcdet_freeze.__main__ import main as command

PHASE = "{EPOCH: 1, TRAIN: [backbone_2d.blocks.2], LR_SCALE: 0.1}"
SCHEDULE = [*FREEZE, "MODEL.FREEZE.SCHEDULE", f"[{PHASE}]"]
ENTERS = "after 1 epoch, backbone_2d.blocks.2 begins to train (6 parameter tensors, learning rate x 0.1)"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of a run that froze nothing."""
    out = tmp_path_factory.mktemp("base")
    assert train(out) == 0
    return folder(out) / "ckpt"


@pytest.fixture(scope="module")
def scheduled(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scheduled")
    start = base / "checkpoint_epoch_2.pth"
    assert train(out, "--pretrained_model", start, "--epochs", 3, sets=SCHEDULE) == 0
    return folder(out)


def log_of(run: Path) -> str:
    return "".join(path.read_text() for path in sorted(run.glob("train_*.log")))


def state_of(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def moved(a: Path, b: Path) -> set[str]:
    left, right = (state_of(path)["model_state"] for path in (a, b))
    return {name for name in left if not torch.equal(left[name], right[name])}


def without_ours(checkpoint: Path, out: Path) -> Path:
    """As OpenPCDet would have written it."""
    state = state_of(checkpoint)
    del state["pcdet_freeze"]
    torch.save(state, out)
    return out


def test_r3_a_part_of_the_trunk_trains_from_its_epoch_on(base: Path, scheduled: Path) -> None:
    ckpt, start = scheduled / "ckpt", base / "checkpoint_epoch_2.pth"
    inside = ("vfe.", "backbone_2d.blocks.")
    assert not {name for name in moved(start, ckpt / "checkpoint_epoch_1.pth") if name.startswith(inside)}
    entered = {name for name in moved(start, ckpt / "checkpoint_epoch_2.pth") if name.startswith(inside)}
    assert entered and all(name.startswith("backbone_2d.blocks.2.") for name in entered)


def test_r3_the_log_says_what_will_begin_and_what_began(scheduled: Path) -> None:
    log = log_of(scheduled)
    assert log.count(f"schedule: {ENTERS}") == 1 and log.count(f"Epoch 2: {ENTERS}") == 1
    assert "6 start with a fresh one. Certificate renewed." in log


@pytest.mark.parametrize("is_ours", [True, False])
def test_p7_verify_compares_what_was_frozen_in_the_phase_of_b(
    base: Path, scheduled: Path, tmp_path: Path, capsys: Any, is_ours: bool
) -> None:
    start, yaml = base / "checkpoint_epoch_2.pth", tmp_path / "m.yaml"
    block = f"[vfe, backbone_2d.blocks]\n  FREEZE:\n    SCHEDULE: [{PHASE}]\n"
    yaml.write_text(f"MODEL:\n  NOT_TRAIN_IN_MULTI_TASK: {block}")
    ends = [scheduled / "ckpt" / f"checkpoint_epoch_{epoch}.pth" for epoch in (1, 2)]
    if not is_ours:
        ends = [without_ours(end, tmp_path / end.name) for end in ends]
    cfg = ["--cfg_file", str(yaml)]
    for words in [[], cfg] if is_ours else [cfg]:
        assert [command(["verify", str(start), str(end), *words]) for end in ends] == [0, 0]
        told = " ".join(capsys.readouterr().out.split()).split("EQUAL: ")[1:]
        assert [text.split()[0] for text in told] == ["42", "30"]
        assert ["(without backbone_2d.blocks.2" in text for text in told] == [False, True]
    assert command(["verify", str(start), str(ends[1]), "--names", "backbone_2d.blocks"]) == 1


@pytest.mark.parametrize("epoch", [1, 2])
def test_r1_a_resume_at_the_switch_and_after_it_ends_as_the_run_without_a_break(
    scheduled: Path, tmp_path: Path, epoch: int
) -> None:
    before = scheduled / "ckpt" / f"checkpoint_epoch_{epoch}.pth"
    assert train(tmp_path, "--ckpt", before, "--epochs", 3, sets=SCHEDULE) == 0
    ends = [run / "ckpt" / "checkpoint_epoch_3.pth" for run in (scheduled, folder(tmp_path))]
    assert moved(*ends) == set()
    states = [state_of(end) for end in ends]
    names = [state["pcdet_freeze"]["optimizer_names"] for state in states]
    assert names[0] == names[1] and len(names[0]) == 4
    scales = [
        [group.get("lr_scale") for group in state["optimizer_state"]["param_groups"]] for state in states
    ]
    assert scales == [[None, None, 0.1, 0.1]] * 2


def test_r3_all_faults_of_a_schedule_are_one_message_before_anything_is_written(
    tmp_path: Path, capsys: Any
) -> None:
    wrong = "[{EPOCH: 1, TRAIN: [backbone_2d.block, dense_head]}, {EPOCH: 2, TRAIN: [vfe]}]"
    assert train(tmp_path, sets=[*FREEZE, "MODEL.FREEZE.SCHEDULE", wrong]) == 1
    text = capsys.readouterr().out.rpartition("ERROR")[2]
    assert "'backbone_2d.block' names no module" in text and "Nearest: backbone_2d.blocks" in text
    assert "nothing in 'dense_head' is frozen" in text and "a run of 2" in text and "Traceback" not in text
    assert not (folder(tmp_path) / "ckpt").exists()


def test_r2_a_resume_with_another_list_prints_both_diffs_and_goes_on(base: Path, tmp_path: Path) -> None:
    before = base / "checkpoint_epoch_1.pth"
    assert train(tmp_path, "--ckpt", before, sets=FREEZE) == 0
    log = log_of(folder(tmp_path))
    assert "without a freeze list: it froze nothing (- then, + now)\n  + vfe\n  + backbone_2d.blocks\n" in log
    assert "Optimizer state, by parameter name:\n  kept" in log and "dropped     21  vfe." in log
    still = state_of(before)["model_state"].keys() - moved(
        before, folder(tmp_path) / "ckpt/checkpoint_epoch_2.pth"
    )
    assert {
        n for n in state_of(before)["model_state"] if n.startswith(("vfe.", "backbone_2d.blocks."))
    } <= still


def test_r2_a_checkpoint_of_openpcdet_is_resumed_under_a_list(base: Path, tmp_path: Path) -> None:
    foreign = without_ours(base / "checkpoint_epoch_1.pth", tmp_path / "foreign.pth")
    assert train(tmp_path, "--ckpt", foreign, sets=FREEZE) == 0
    log = log_of(folder(tmp_path))
    assert "this resume is not bit-exact" in log and "dropped     21  vfe." in log


def test_r2_a_state_that_fits_no_order_is_refused_and_nothing_starts_anew(
    scheduled: Path, tmp_path: Path, capsys: Any
) -> None:
    ckpt = folder(tmp_path) / "ckpt"
    ckpt.mkdir(parents=True)
    without_ours(scheduled / "ckpt" / "checkpoint_epoch_1.pth", ckpt / "checkpoint_epoch_1.pth")
    assert train(tmp_path, sets=FREEZE) == 1
    text = capsys.readouterr().out.rpartition("ERROR")[2]
    assert "stores no parameter names" in text and "--pretrained_model" in text
    assert [path.name for path in ckpt.iterdir()] == ["checkpoint_epoch_1.pth"]


def test_r2_a_finished_run_under_another_list_is_an_error_that_names_pretrained_model(
    base: Path, tmp_path: Path, capsys: Any
) -> None:
    assert train(tmp_path, "--ckpt", base / "checkpoint_epoch_2.pth", sets=FREEZE) == 1
    text = capsys.readouterr().out.rpartition("ERROR")[2]
    assert (
        "finished run" in text
        and "checkpoint_epoch_2.pth" in text
        and "--pretrained_model" in text
        and "+ vfe" in text
    )
    assert train(tmp_path, "--ckpt", base / "checkpoint_epoch_2.pth") == 0


def test_r3_explain_prints_the_schedule_and_its_faults(capsys: Any) -> None:
    words = ["explain", "--cfg_file", str(CFG), "--device", "cpu", "--depth", "1"]
    assert command([*words, "--set", *SMALL, *SCHEDULE]) == 0
    assert f"schedule: {ENTERS}" in " ".join(capsys.readouterr().out.split())
    late = "[{EPOCH: 900, TRAIN: [vfe]}]"
    assert command([*words, "--json", "--set", *SMALL, *FREEZE, "MODEL.FREEZE.SCHEDULE", late]) == 1
    found = json.loads(capsys.readouterr().out)
    assert "EPOCH must leave epochs to train in" in found["problems"][0] and found["schedule"] == []
