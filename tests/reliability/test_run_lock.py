"""One training at a time in a folder; a dead process keeps no lock and no temporary files."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pcdet_freeze.engine.checkpoint.io import remove_unfinished
from pcdet_freeze.engine.run_lock import run_lock
from pcdet_freeze.errors import ConfigError

HOLDS = """
import os, sys, time
from pathlib import Path
from pcdet_freeze.engine.run_lock import run_lock
with run_lock(Path(sys.argv[1])):
    child = os.fork()  # as a data worker
    if child:
        print(child, flush=True)
    time.sleep(60)
"""
LOGGER = logging.getLogger("pcdet_freeze.test")


def test_a_second_process_is_refused_and_the_first_is_named(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDS, tmp_path], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        worker = int(holder.stdout.readline())
        with pytest.raises(ConfigError, match=rf"in use by process {holder.pid} on .*--extra_tag"):
            run_lock(tmp_path, wait_s=0).__enter__()
        holder.kill()
        holder.wait()
        os.kill(worker, 0)  # lives on
        with run_lock(tmp_path, wait_s=60):  # a child that has just begun closes its copy of the file first
            os.kill(worker, 9)


def test_a_second_run_of_the_same_process_is_refused(tmp_path: Path) -> None:
    with run_lock(tmp_path), pytest.raises(ConfigError, match=f"process {os.getpid()}"):
        run_lock(tmp_path, wait_s=0).__enter__()
    with run_lock(tmp_path, wait_s=0):
        pass
    assert list(tmp_path.iterdir()) == []


def test_one_of_many_processes_that_start_together_gets_the_lock(tmp_path: Path) -> None:
    """The owner deletes the file at its end, while the others wait for it."""
    code = (
        "import sys, os; from pathlib import Path; from pcdet_freeze.engine.run_lock import run_lock\n"
        "for _ in range(20):\n"
        "    with run_lock(Path(sys.argv[1]), 60):\n"
        "        os.close(os.open(sys.argv[2], os.O_CREAT | os.O_EXCL)); os.unlink(sys.argv[2])\n"
    )
    command = [sys.executable, "-c", code, tmp_path, tmp_path / "alone"]
    assert [one.wait(60) for one in [subprocess.Popen(command) for _ in range(3)]] == [0, 0, 0]


def test_temporary_files_of_killed_saves_are_deleted(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = [f".latest_model.pth.{dead.pid}.part", f".latest_model.pth.{os.getpid()}.part"]
    for name in [*names, "latest_model.pth", ".notes.part"]:
        (tmp_path / name).write_text("x")
    assert sorted(path.name for path in remove_unfinished(tmp_path, LOGGER)) == sorted(names)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".notes.part", "latest_model.pth"]


def test_the_temporary_file_of_a_living_process_remains(tmp_path: Path) -> None:
    path = tmp_path / f".latest_model.pth.{os.getpid()}.part"
    with path.open("wb"):
        assert remove_unfinished(tmp_path, LOGGER) == []
    assert remove_unfinished(tmp_path, LOGGER) == [path]
