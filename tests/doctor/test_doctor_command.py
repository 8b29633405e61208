"""The command `doctor`: exit codes, --only and --skip, --json, checks that fail."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from doctor_cases import GB, facts

from pcdet_freeze import doctor
from pcdet_freeze.__main__ import main
from pcdet_freeze.doctor import CHECKS
from pcdet_freeze.doctor.checks import Check


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A sound machine; the test may replace its facts."""
    found = facts()
    monkeypatch.setattr(doctor, "look", lambda output: found)
    monkeypatch.chdir(tmp_path)
    return found


def examine(*words: object) -> int:
    return main(["doctor", "--skip", "requirements", *map(str, words)])


def test_a_sound_machine_is_exit_code_0_and_a_line_for_each_check(capsys: Any) -> None:
    assert examine() == 0
    out = capsys.readouterr().out
    assert (
        ", 0 with a problem, 0 failed" in out
        and "ok      torch: " in out
        and "-       config, data-path, " in out
    )


def test_a_trouble_is_exit_code_1_and_comes_first_with_its_cure(machine: Any, capsys: Any) -> None:
    machine.free_shm = 1
    assert examine() == 1
    out = capsys.readouterr().out
    assert out.startswith("WARNING shm: ") and "-> docker run --shm-size=8g" in out


def test_a_check_that_itself_fails_is_exit_code_2_unless_there_is_a_trouble(
    machine: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def broken(case: Any) -> Any:
        raise KeyError("MemTotal")

    monkeypatch.setitem(CHECKS, "memory", Check("memory", "free memory", "warning", "cure", broken))
    assert examine() == 2
    out = capsys.readouterr().out
    assert "FAILED memory" in out and "KeyError: 'MemTotal'" in out and "--skip memory" in out
    machine.free_disk = GB
    assert examine() == 1


def test_only_and_skip_choose_checks(machine: Any, capsys: Any) -> None:
    machine.free_disk = GB
    assert main(["doctor", "--only", "shm,python", "memory", "--json"]) == 0
    assert {one["id"] for one in json.loads(capsys.readouterr().out)} == {"shm", "python", "memory"}
    assert main(["doctor", "--skip", "requirements", "disk"]) == 0
    assert " disk:" not in capsys.readouterr().out


def test_json_has_severity_state_text_and_cure(machine: Any, capsys: Any) -> None:
    machine.python = (3, 9)
    assert main(["doctor", "--only", "python", "--json"]) == 1
    (found,) = json.loads(capsys.readouterr().out)
    assert found["severity"] == "error" and found["state"] == "trouble" and "3.9" in found["text"]
    assert set(found) == {"id", "about", "severity", "state", "text", "cure"}


def test_an_unknown_id_is_exit_code_2_with_the_nearest(capsys: Any) -> None:
    assert main(["doctor", "--only", "numy-spconv"]) == 2
    assert "numpy-spconv" in capsys.readouterr().err


def test_list_prints_every_check_and_makes_none(machine: Any, capsys: Any) -> None:
    machine.python = (3, 9)
    assert main(["doctor", "--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(CHECKS)


def test_the_command_starts_without_the_packages_that_may_be_broken() -> None:
    code = (
        "import sys, pcdet_freeze.cli.doctor as command; "
        "sys.exit(', '.join({'torch', 'numpy', 'numba', 'spconv'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""


def test_every_check_has_a_cure_and_a_place_in_the_documentation(root: Path) -> None:
    assert all(one.cure and one.severity in ("error", "warning") for one in CHECKS.values())
    page = (root / "docs" / "troubleshooting.md").read_text()
    named = {
        name
        for line in re.findall(r"^Checks? ([^.]*)\.", page, re.M)
        for name in re.findall(r"`([\w-]+)`", line)
    }
    assert named <= set(CHECKS) and len(named) >= 12
