"""`pcdet-freeze compare`: runs side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from html_checks import Page

from pcdet_freeze.__main__ import main
from pcdet_freeze.report.record import Certificate, RunRecord, Task


def write(folder: Path, **fields: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(RunRecord(name="m/x", **fields).to_json())
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    config = {"OPTIMIZATION": {"LR": 0.01, "OPTIMIZER": "adam"}, "AUG": [{"NAME": "flip"}]}
    other = {"OPTIMIZATION": {"LR": 0.02, "OPTIMIZER": "adam"}, "AUG": [{"NAME": "scale"}]}
    digest = Certificate({"vfe.w": "x"}, "0123456789abcdef", "blake2b")
    a = write(tmp_path / "out/a/default", entries=["vfe", "dense_head"], after={"mAP": 0.5, "NDS": 0.6},
              tasks=[Task("detection", ["dense_head"], "identical")], certificate=digest, iterations=100,
              seconds_per_iteration={"batch": 0.2}, seconds=30, config=config)  # fmt: skip
    b = write(tmp_path / "out/b/default", entries=["vfe"], after={"mAP": 0.4}, config=other, seconds=4000)
    return [a, b]


def compare(*words: object) -> int:
    return main(["compare", *map(str, words)])


def rows(out: str) -> dict[str, list[str]]:
    """First word of each line -> the words after it."""
    return {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.strip()}


def test_frozen_sets_tasks_metrics_cost_and_differing_keys_are_in_the_table(
    runs: list[Path], capsys: Any
) -> None:
    assert compare(*runs) == 0
    found = rows(capsys.readouterr().out)
    assert found["dense_head"] == ["frozen", "-"] and found["vfe"] == ["frozen", "frozen"]
    assert found["detection"] == ["identical", "-"]
    assert found["mAP"] == ["0.500", "0.400"] and found["NDS"] == ["0.600", "-"]
    assert found["duration"] == ["30.0", "s", "1", "h", "06", "min"]
    assert found["OPTIMIZATION.LR"] == ["0.01", "0.02"] and found["AUG.0.NAME"] == ['"flip"', '"scale"']
    assert "OPTIMIZATION.OPTIMIZER" not in found


def test_runs_go_by_the_parts_of_their_folders_that_tell_them_apart(runs: list[Path], capsys: Any) -> None:
    assert compare(*runs) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["a/default", "b/default"]


@pytest.mark.parametrize("limit", [60, 80, 120])
def test_the_table_fits_the_terminal_and_nothing_is_cut(
    limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("COLUMNS", str(limit))
    names = ["a_folder_with_a_name_of_its_own", "b", "c", "d"]
    words = [f"{name} {'and more ' * 12}end" for name in names]
    runs = [
        write(tmp_path / name / "default", config={"A_LONG_KEY." * 5: word, "LR": 0.1 * n}, iterations=n)
        for n, (name, word) in enumerate(zip(names, words, strict=True))
    ]
    assert compare(*runs) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= limit
    assert all(
        f"{name}/default" in out and word in " ".join(out.split())
        for name, word in zip(names, words, strict=True)
    )
    assert rows(out)["iterations"] == ["0", "1", "2", "3"]


def test_the_page_is_valid_and_has_the_same_rows(runs: list[Path], tmp_path: Path) -> None:
    assert compare(*runs, "--html", tmp_path / "new" / "page.html") == 0
    found = Page((tmp_path / "new" / "page.html").read_text())
    assert found.faults == [] and all(word in found.text for word in ("a/default", "mAP", "OPTIMIZATION.LR"))


def test_json_has_each_run(runs: list[Path], capsys: Any) -> None:
    assert compare(*runs, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["a/default"]["metrics"] == {"mAP": "0.500", "NDS": "0.600"}
    assert found["b/default"]["config keys that differ"]["OPTIMIZATION.LR"] == "0.02"


def test_aps_of_different_overlaps_are_different_rows(tmp_path: Path, capsys: Any) -> None:
    folders = [
        write(tmp_path / iou, after={"Car_3d/moderate_R40": 50.0, f"Car_3d_{iou}/moderate_R40": 50.0})
        for iou in ("0.50", "0.70")
    ]
    assert compare(*folders, "--json") == 0
    found = [run["metrics"] for run in json.loads(capsys.readouterr().out).values()]
    names = ["Car_3d/moderate_R40 at IoU 0.50", "Car_3d/moderate_R40 at IoU 0.70"]
    assert [[run[name] for name in names] for run in found] == [["50.000", "-"], ["-", "50.000"]]


def test_one_run_and_a_folder_above_it_will_do(runs: list[Path], capsys: Any) -> None:
    assert compare(runs[0].parent) == compare(runs[0] / "report.json") == 0
    assert rows(capsys.readouterr().out)["mAP"] == ["0.500"]


def test_a_checkpoint_is_an_error_that_names_verify(tmp_path: Path, capsys: Any) -> None:
    assert compare(tmp_path / "ckpt/checkpoint_epoch_1.pth") == 2
    assert "pcdet-freeze verify" in capsys.readouterr().err


def test_a_folder_with_several_runs_or_none_is_an_error_that_says_so(
    runs: list[Path], tmp_path: Path, capsys: Any
) -> None:
    assert compare(tmp_path / "out") == 2
    assert str(runs[0]) in capsys.readouterr().err
    assert compare(tmp_path / "nowhere") == 2
    assert "report.json" in capsys.readouterr().err
