"""A command in a process of its own: one line, the exit code, no traceback, no worker left."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from real_ranks import children, lives, processes, until
from tool_runs import words

from pcdet_freeze.engine.slurm import requeue_after
from pcdet_freeze.utils.signals.stop_signals import LAUNCHERS

PROGRAM = """
import signal, sys, time
for number in (signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
from pcdet_freeze.__main__ import leave
from pcdet_freeze.cli.common.program_signals import ProgramSignals
with ProgramSignals("it"):
    try:
        print("ready", flush=True)
        {body}
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        {after}
leave(130)
"""


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under torchrun or SLURM repeated signals count later."""
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)


def program(body: str, after: str = "pass") -> subprocess.Popen[str]:
    code = PROGRAM.format(body=body, after=after)
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", code], stdout=pipe, stderr=pipe, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGTERM, 143, "\nit: stopped by SIGTERM\n"),
        (signal.SIGUSR1, 138, "\nit: stopped by SIGUSR1\n"),
        (signal.SIGHUP, 129, "\nit: stopped by SIGHUP\n"),
        (signal.SIGINT, 130, ""),
    ],
)
def test_a_signal_ends_a_command_with_one_line(number: int, code: int, said: str) -> None:
    with program("time.sleep(60)") as process:
        process.send_signal(number)
        assert process.communicate(timeout=60)[1] == said
    assert process.returncode == code


def test_a_second_ctrl_c_ends_a_process_that_does_not_end_by_the_first() -> None:
    with program("time.sleep(60)", "print('still here', flush=True); time.sleep(60)") as process:
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["interrupted\n", "still here\n"]

        def pressed_again() -> bool:  # on a loaded machine the first one may be read late
            process.send_signal(signal.SIGINT)
            time.sleep(0.2)
            return process.poll() is not None

        until(pressed_again)
        assert process.communicate(timeout=60)[1] == "\nit: interrupted\n"
    assert process.returncode == 130


def test_the_first_ctrl_c_interrupts_also_after_a_long_call_of_compiled_code() -> None:
    """Python calls its handler when the call returns, here about a second after the signal."""
    body = "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 4_000_000); time.sleep(60)"
    with program(body) as process:
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == ("interrupted\n", "")
    assert process.returncode == 130


def test_a_second_ctrl_c_within_five_seconds_does_not_count_under_a_launcher(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A training in its loop has handlers of its own; only the thread could end it."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    own = "got = []; signal.signal(signal.SIGINT, lambda *_: got.append(print('received', flush=True)))"
    wait = "[time.sleep(0.05) for _ in iter(lambda: len(got), 2)]; time.sleep(0.3)"  # the thread reads both
    body = f"{own}; print('own', flush=True); {wait}; print('end')"
    with program(body) as process:
        assert process.stdout is not None and process.stdout.readline() == "own\n"
        for _ in range(2):
            time.sleep(0.6)
            process.send_signal(signal.SIGINT)
            assert process.stdout.readline() == "received\n"
        assert process.communicate(timeout=60) == ("end\n", "")


def test_a_child_process_gets_the_signal_and_a_worker_is_killed() -> None:
    body = (
        "import multiprocessing, subprocess; w = multiprocessing.Process(target=time.sleep, args=(60,)); "
        "w.start(); p = subprocess.Popen(['sleep', '60']); print(w.pid, p.pid, flush=True); time.sleep(60)"
    )
    with program(body) as process:
        assert process.stdout is not None
        pids = [int(word) for word in process.stdout.readline().split()]
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 143
    until(lambda: not any(map(lives, pids)))


@pytest.mark.slow
def test_a_training_that_gets_a_signal_with_its_workers_writes_a_checkpoint(tmp_path: Path) -> None:
    """SLURM and a terminal signal the whole group of processes."""
    flags = ["--batch_size", "2", "--max_iters", "3000", "--num_epochs_to_eval", "0", "--workers", "2"]
    command = ["-m", "pcdet_freeze", "train", *words(tmp_path / "out", *flags, "--logger_iter_interval", "1")]
    with processes(tmp_path) as made:
        training = made.start(*command)
        made.printed("Acc_iter 4 ")
        workers = children(training.pid)
        os.killpg(training.pid, signal.SIGTERM)
        assert made.codes() == [143] and not any(map(lives, workers))
        assert made.text.count("Stopped by SIGTERM. Run the same command to resume from ") == 1
        assert "Traceback" not in made.text and "latest_model.pth (iteration " in made.text


def fake_scontrol(folder: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    script = folder / "scontrol"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "17")


def test_sigusr1_requeues_the_job_and_other_signals_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:

    fake_scontrol(tmp_path, f"echo $* >> {tmp_path}/asked", monkeypatch)
    logger = logging.getLogger("pcdet_freeze.test")
    requeue_after(signal.SIGTERM, logger)
    assert not (tmp_path / "asked").exists()
    requeue_after(signal.SIGUSR1, logger)
    assert (tmp_path / "asked").read_text() == "requeue 17\n"


def test_a_job_that_slurm_does_not_requeue_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:

    fake_scontrol(tmp_path, "echo Access denied >&2; exit 1", monkeypatch)
    requeue_after(signal.SIGUSR1, logging.getLogger("pcdet_freeze.test"))
    assert "scontrol requeue 17" in caplog.text and "Access denied" in caplog.text
    monkeypatch.delenv("SLURM_JOB_ID")
    requeue_after(signal.SIGUSR1, logging.getLogger("pcdet_freeze.test"))
    assert "SLURM_JOB_ID" in caplog.messages[-1]
