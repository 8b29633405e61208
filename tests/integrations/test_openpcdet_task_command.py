"""Task files and the documented example, by the command: training, resume, metric, ranks."""

from __future__ import annotations

import io
import os
import re
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from openpcdet_launch import torchrun_plugin
from openpcdet_tasks import CFG, LIST
from standin_runs import STANDIN, Standin

from pcdet_freeze import openpcdet
from pcdet_freeze.integrations.openpcdet.tasks import registry
from pcdet_freeze.integrations.openpcdet.tasks.task_file import load_task_file

pytestmark = pytest.mark.usefixtures("no_tasks")


def words_for(example: Path, tag: str, epochs: int, *more: str) -> list[str]:
    train = ["tools/train.py", "--cfg_file", CFG, "--epochs", str(epochs), "--extra_tag", tag, *more]
    return ["--task", str(example), *train, "--set", "DATA_CONFIG.DATA_PATH", str(example.parent)]


FROZEN = ["MODEL.NOT_TRAIN_IN_MULTI_TASK", LIST]


def run_in_process(standin: Standin, words: list[str]) -> str:
    """What the command prints."""
    standin.forget()
    registry.clear()
    sys.modules.pop("my_head", None)
    path, out = sys.path[:], io.StringIO()
    os.chdir(STANDIN)
    with redirect_stdout(out), redirect_stderr(out):
        code = openpcdet.main(words)
    openpcdet.uninstall()
    sys.path[:] = path
    assert code == 0, out.getvalue()
    return out.getvalue()


def state_of(root: Path, tag: str, epoch: int) -> dict[str, torch.Tensor]:
    file = root / f"output/scan_models/pointpillar/{tag}/ckpt/checkpoint_epoch_{epoch}.pth"
    return torch.load(file, weights_only=False)["model_state"]


def miou(text: str) -> dict[int, float]:
    """Epoch -> mIoU of its checkpoint."""
    found = re.findall(r"segment_head: mIoU ([\d.]+)\n.*evaluated checkpoint_epoch_(\d+).pth", text)
    return {int(epoch): float(value) for value, epoch in found}


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Largest difference of a weight of the head."""
    return max(float((a[name] - b[name]).abs().max()) for name in a if name.startswith("segment_head"))


def test_the_documented_example_trains_beside_a_frozen_detection_and_resumes(
    standin: Standin, example: Path
) -> None:
    detection = words_for(example, "first", 1)
    detection.remove("--task"), detection.remove(str(example))
    text = run_in_process(standin, detection)
    assert "MODEL.SEGMENT_HEAD became no module" in text and not miou(text)
    first = standin.root / "output/scan_models/pointpillar/first/ckpt/checkpoint_epoch_1.pth"
    words = [*words_for(example, "second", 12, "--pretrained_model", str(first)), *FROZEN]
    values = miou(run_in_process(standin, words))
    assert len(values) == 12 and values[12] > values[1] + 0.2
    before, after = state_of(standin.root, "first", 1), state_of(standin.root, "second", 12)
    assert {name.partition(".")[0] for name in set(after) - set(before)} == {"segment_head"}
    assert all(torch.equal(before[name], after[name]) for name in before if name != "global_step")
    words = [*words_for(example, "second", 13, "--pretrained_model", str(first)), *FROZEN]
    text = run_in_process(standin, words)
    assert "start training from epoch 12" in text and "certificate intact" in text
    again, resumed = miou(text), state_of(standin.root, "second", 13)
    assert again.pop(13) > values[1] + 0.2 and again == values
    start = state_of(standin.root, "second", 1)
    assert 0 < distance(resumed, after) < distance(start, after) / 4


def test_explain_shows_the_head_and_its_loss(standin: Standin, example: Path, capsys: Any) -> None:
    words = ["explain", "--cfg_file", CFG, "--set", "DATA_CONFIG.DATA_PATH", str(example.parent), *FROZEN]
    text = run_in_process(standin, ["--task", str(example), *words])
    row = next(line for line in text.splitlines() if "─ segment_head" in line)
    assert row.endswith("loss of segment_head") and "one batch of ScanDataset" in text


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nothing.py", "registered no task"),
        ("json.py", "Rename json.py"),
        ("a.txt", "got '.*a.txt'"),
        ("a-b.py", "got '.*a-b.py'"),
    ],
)
def test_a_task_file_that_cannot_be_used_is_an_error(
    tmp_path: Path, capsys: Any, name: str, words: str
) -> None:
    path = sys.path[:]
    (tmp_path / name).write_text("")
    assert openpcdet.main(["--task", str(tmp_path / name), "tools/train.py"]) == 1
    sys.path[:] = path
    assert re.search(words, capsys.readouterr().err)


def test_task_needs_a_file_and_a_script(example: Path, capsys: Any) -> None:
    path = sys.path[:]
    assert openpcdet.main(["--task"]) == 1 and openpcdet.main([f"--task={example}"]) == 1
    sys.path[:] = path
    err = capsys.readouterr().err
    assert "nothing follows" in err and "must follow --task" in err


@pytest.mark.slow
def test_two_ranks_with_spawned_workers_train_the_example(example: Path) -> None:
    root = example.parent
    words = words_for(example, "ranks", 2, "--launcher", "pytorch", "--workers", "1")
    done = torchrun_plugin(root, *words, *FROZEN, "MODEL.FREEZE.ALLOW_RANDOM", "True")
    assert done.returncode == 0, done.stderr
    sums = re.findall(r"weights of rank \d: (-?0x[\da-fp.+-]+)", done.stdout)
    assert len(sums) == 2 and sums[0] == sums[1] and "certificate intact" in done.stderr
    first, last = state_of(root, "ranks", 1), state_of(root, "ranks", 2)
    changed = {name.partition(".")[0] for name in first if not torch.equal(first[name], last[name])}
    assert changed == {"segment_head", "global_step"}


def test_a_task_file_registers_its_tasks_again_after_uninstall(example: Path) -> None:
    path = sys.path[:]
    for _ in range(2):
        openpcdet.install()
        load_task_file(str(example))
        assert [task.section for task in registry.registered()] == ["SEGMENT_HEAD"]
        openpcdet.uninstall()
    sys.path[:] = path
