"""python -m pcdet_freeze bench: tables, JSON, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench_toys import CFG, SMALL

from pcdet_freeze.__main__ import main
from pcdet_freeze.cli import bench
from pcdet_freeze.config import find_config

KEYS = {"variant", "time_ratio", "flops_ratio", "saved_bytes_ratio", "peak_memory_ratio", "seconds"}


def run(*words: str) -> int:
    return main(["bench", "--rounds", "1", *words, "--set", *SMALL])


def test_a_run_prints_a_table_and_writes_a_list_of_objects(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "new" / "rows.json"
    words = ["--variants", "bn_only,requires_grad,exact", "--freeze", "[vfe, backbone_2d.blocks]"]
    assert run(*words, "--json", str(file)) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = json.loads(file.read_text())
    assert [row["variant"] for row in rows] == ["none", "bn_only", "requires_grad", "exact"]
    assert all(row.keys() >= KEYS for row in rows)
    assert max(map(len, lines)) <= 100
    assert {line.split()[0] for line in lines if line} >= {"none", "bn_only", "requires_grad", "exact"}


def test_the_variants_can_be_chosen(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    assert run("--cfg_file", str(CFG), "--variants", "exact", "--json", str(file)) == 0
    assert [row["variant"] for row in json.loads(file.read_text())] == ["none", "exact"]


def test_the_grid_can_be_that_of_kitti(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "--grid", "full", "--rounds", "1", "--variants", "none"]
    assert (
        main([*words, "--set", "DATA_CONFIG.POINT_CLOUD_RANGE", "[0, -2.56, -3, 5.12, 2.56, 1]", *SMALL[2:4]])
        == 0
    )
    assert "grid 32x32" in capsys.readouterr().out


def test_json_without_a_file_is_all_of_the_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--variants", "exact", "--json") == 0
    shown = capsys.readouterr()
    assert [row["variant"] for row in json.loads(shown.out)] == ["none", "exact"]
    assert "exact" in shown.err


def test_another_list_freezes_something_else(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    assert run("--variants", "exact", "--freeze", "vfe", "--json", str(file)) == 0
    none, exact = json.loads(file.read_text())
    assert 0.5 < exact["flops_ratio"] < 1
    assert none["trainable"] > exact["trainable"] > 0.5 * none["trainable"]


def test_a_config_of_a_data_set_that_is_not_there_can_be_measured(capsys: pytest.CaptureFixture[str]) -> None:
    other = str(CFG.parents[1] / "synthetic_models" / "pointpillar.yaml")
    words = ["bench", "--cfg_file", other, "--rounds", "1", "--batch_size", "1", "--variants", "none"]
    assert main([*words, "--set", *SMALL[-6:]]) == 0
    assert "Ratios to none" in capsys.readouterr().out


@pytest.mark.parametrize("what", ["hold", "guards", "certificate", "loading", "operators", "scaling"])
def test_the_other_comparisons_fit_the_terminal_too(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--what", what) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 100


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--variants", "speedy"], "got 'speedy'"),
        (["--freeze", "backbone"], "backbone_2d"),
        (["--what", "scaling", "--freeze", "[]"], "--what scaling needs a list"),
        (["--rounds", "0"], "--rounds must be at least 1"),
        (["--what", "loading", "--workers", "-1"], "--workers must be at least 0"),
        (["--cfg_file", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_what_cannot_be_measured_is_an_error_that_says_why(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words) == 1
    assert said in capsys.readouterr().err


def test_the_default_config_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config(bench.DEFAULT_CFG) == CFG
    assert all(find_config(name).is_file() for name in bench.DEFAULT_CFGS.values())


def test_an_unwritable_json_file_is_an_error_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert run("--variants", "none", "--json", str(tmp_path / "file" / "rows.json")) == 1
    shown = capsys.readouterr()
    assert "--json must be a file that can be written" in shown.err and "grid" not in shown.out


def test_a_cache_without_a_prefix_has_no_time_but_the_reason(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    words = ["--variants", "cached", "--freeze", "backbone_2d.blocks", "--json", str(file)]
    assert run(*words) == 0
    row = json.loads(file.read_text())[1]
    assert row["seconds"] is None and "nothing to cache" in row["untimed"]
