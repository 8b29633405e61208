"""docs/your_data.md: every file and every command of the page, in its order, as printed."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kitti_maker import make_kitti

from pcdet_freeze.__main__ import main

pytestmark = pytest.mark.slow
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMANDS = ("pcdet-freeze", "python")


def steps_of(page: str) -> Iterator[tuple[str, str]]:
    """(file name, text) of each file of the page, and ("", command) of each command, in order."""
    for kind, text in BLOCK.findall(page):
        lines = text.replace("\\\n", " ").splitlines()
        if kind in ("python", "yaml"):
            yield lines[0].removeprefix("# "), text
        else:
            yield from (("", line) for line in lines if line.startswith(COMMANDS))


def run_command(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command of the page in this process; returns what it printed."""
    program, *words = shlex.split(line)
    if program == "python":
        exec(compile(Path(words[0]).read_text(), words[0], "exec"), {"__name__": "__main__"})
    else:
        assert main(words) == 0, line
    return capsys.readouterr().out


def digests(printed: str) -> dict[str, str]:
    return {words[0]: words[1] for words in map(str.split, printed.splitlines()) if len(words) == 3}


@pytest.mark.filterwarnings("ignore")
def test_the_page_leads_from_a_folder_to_a_frozen_and_evaluated_model(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["pcdet-freeze"])
    make_kitti(tmp_path / "data/kitti")
    for image in (tmp_path / "data/kitti/training/image_2").iterdir():
        image.unlink()
    printed: dict[str, str] = {}
    for name, text in steps_of((root / "docs/your_data.md").read_text()):
        if name:
            Path(name).parent.mkdir(exist_ok=True)
            Path(name).write_text(text)
        else:
            printed[text] = run_command(text, capsys)
    assert sum(line.startswith("pcdet-freeze train") for line in printed) == 3
    first, last = (digests(text) for line, text in printed.items() if "digest" in line)
    for output in ("dense_head", "pred_boxes", "pred_scores", "pred_labels"):
        assert first[output] == last[output]
    run = tmp_path / "output/my_models/stage3_lane/default"
    scores = [json.loads(path.read_text()) for path in run.glob("eval/**/result.json")]
    for found in scores:
        assert {"Car_3d/moderate_R40", "Pedestrian_3d/moderate_R40", "segmentation/mIoU", "lane/F1"} <= set(
            found
        )
    assert len(scores) >= 1 and list((tmp_path / "output/demo").glob("*.png"))
    assert "frames: 3 train" in next(text for line, text in printed.items() if "prepare kitti" in line)
