"""Checks of Python, packages and the machine: each trouble is provoked, a sound machine has none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from doctor_cases import CPU_TORCH, GB, TORCH, check, facts, runs, trouble, versions

from pcdet_freeze.doctor import Case
from pcdet_freeze.doctor.facts import Child, Facts, look, numbers, run_python

MACHINE = ("python", "requirements", "torch", "cuda", "gpu-arch", "numpy-spconv", "spconv", "numba", "disk",
           "output", "memory", "shm", "open-files")  # fmt: skip
DIES = Child(-8)
FAILS = Child(1, {}, "ImportError: libc10.so: undefined symbol")


@pytest.mark.parametrize("name", MACHINE[2:])
def test_a_sound_machine_has_no_trouble(name: str, tmp_path: Path) -> None:
    assert check(name, Case(facts(), output=tmp_path)).state == "sound"


@pytest.mark.parametrize(("name", "changed", "word"), [
    ("python", {"python": (3, 9)}, "3.9"),
    ("requirements", {"versions": {}}, "easydict"),
    ("torch", {"versions": versions(torch=None)}, "not installed"),
    ("torch", {"versions": versions(torch="1.13.1+cu117")}, "1.13.1"),
    ("torch", {"run": runs(torch=FAILS)}, "undefined symbol"),
    ("cuda", {"run": runs(torch=Child(0, CPU_TORCH))}, "build for CPUs"),
    ("cuda", {"run": runs(torch=Child(0, {**TORCH, "available": False}))}, "driver 550.54"),
    ("cuda", {"run": runs(torch=Child(0, CPU_TORCH)), "environ": {"CUDA_VISIBLE_DEVICES": ""}}, "hides"),
    ("gpu-arch", {"run": runs(torch=Child(0, {**TORCH, "arch": ["sm_120"]}))}, "sm_120"),
    ("gpu-arch", {"run": runs(torch=Child(0, {**TORCH, "arch": ["sm_35"]}))}, "sm_35"),
    ("numpy-spconv", {"versions": versions(numpy="2.1.0")}, "SIGFPE"),
    ("spconv", {"run": runs(spconv=DIES)}, "SIGFPE"),
    ("spconv", {"versions": versions(spconv_cu120="1.2.1")}, "version 2"),
    ("spconv", {"versions": versions(spconv_cu118="2.3.6")}, "several builds"),
    ("numba", {"versions": versions(numba=None)}, "not installed"),
    ("numba", {"run": runs(numba=Child(1, {}, "ImportError: Numba needs NumPy 2.0 or less"))}, "NumPy 2.0"),
    ("disk", {"free_disk": GB}, "1.00 GB"),
    ("memory", {"free_memory": GB}, "1.00 GB"),
    ("shm", {"free_shm": 64 * 10**6}, "Bus error"),
    ("open-files", {"open_files": 256}, "Too many open files"),
])  # fmt: skip
def test_each_trouble_is_found(name: str, changed: dict[str, Any], word: str) -> None:
    assert word in trouble(name, Case(facts(**changed)))


@pytest.mark.parametrize(("name", "changed"), [
    ("cuda", {"driver": ""}),
    ("gpu-arch", {"run": runs(torch=Child(0, CPU_TORCH))}),
    ("cuda", {"run": runs(torch=FAILS)}),
    ("numpy-spconv", {"versions": versions(cumm_cu120=None)}),
    ("spconv", {"versions": versions(spconv_cu120=None)}),
    ("shm", {"free_shm": None}),
    ("memory", {"free_memory": None}),
])  # fmt: skip
def test_where_there_is_nothing_to_look_at_the_reason_is_said(name: str, changed: dict[str, Any]) -> None:
    found = check(name, Case(facts(**changed)))
    assert found.state == "not applicable" and found.text


def test_numpy_2_with_a_later_spconv_is_sound() -> None:
    later = versions(numpy="2.3.0", cumm_cu120=None, cumm_cu126="0.8.2")
    assert check("numpy-spconv", Case(facts(versions=later))).state == "sound"


def test_without_loader_processes_shared_memory_does_not_matter() -> None:
    assert check("shm", Case(facts(free_shm=0), workers=0)).state == "not applicable"


def test_an_output_folder_below_a_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "no folder" in trouble("output", Case(facts(), output=tmp_path / "file" / "below"))


def test_a_process_that_dies_is_reported_by_its_signal_and_a_sound_one_by_its_result() -> None:
    assert run_python("import os, signal; os.kill(os.getpid(), signal.SIGFPE)").code == -8
    child = run_python("import json; print('noise'); print(json.dumps({'a': 1}))")
    assert child.works and child.result == {"a": 1}
    assert run_python("raise ValueError('why')").error == "ValueError: why"


def test_versions_are_read_as_numbers() -> None:
    assert numbers("2.13.0+cpu") == (2, 13, 0) and numbers("1.26.4rc1") == (1, 26, 4)
    assert numbers("") == () and numbers("dev") == ()


def test_this_machine_is_looked_at(tmp_path: Path) -> None:
    found = look(tmp_path / "not" / "there")
    assert isinstance(found, Facts) and found.version("torch", "none") is not None
    assert found.free_disk and found.version("none") is None
