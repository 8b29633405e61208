"""Trainings that faults hit at random: how many they survive, and what is lost.

A training is started, hit by a fault, and started again until it is complete. Its weights must then be those
of a training that nothing happened to, bit for bit.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from pcdet_freeze.engine.checkpoint.io import newest_checkpoint
from pcdet_freeze.engine.logger import create_logger
from pcdet_freeze.errors import TrainingError

Row = dict[str, Any]
CFG = "synthetic_models/pointpillar.yaml"
SMALL = (
    "DATA_CONFIG.NUM_SCENES.train", "6", "DATA_CONFIG.NUM_SCENES.test", "3",
    "DATA_CONFIG.SENSOR.BEAMS", "VLP-16", "DATA_CONFIG.MIN_CARS", "1",
    "MODEL.BACKBONE_2D.LAYER_NUMS", "[1, 1, 1]", "MODEL.BACKBONE_2D.NUM_FILTERS", "[8, 8, 8]",
    "MODEL.BACKBONE_2D.NUM_UPSAMPLE_FILTERS", "[8, 8, 8]",
)  # fmt: skip
"""three iterations an epoch, a tenth of a second each"""
REACHED = re.compile(r"Acc_iter (\d+) ")
FULL_DISK_BYTES = 100_000
"""less than a checkpoint"""
TORN = ".latest_model.pth.99999999.part"
"""the temporary file of a process that is gone"""
START_LIMIT_S = 300


@dataclass(frozen=True)
class Fault:
    """What happens to a running training.

    ``hit`` gets the process and its children; ``codes``: exit codes that count as survived.
    """

    name: str
    hit: Callable[[int, list[int]], None]
    codes: tuple[int, ...]
    loses_nothing: bool = False
    """the training writes a checkpoint before it ends"""


def _send(number: int, times: int = 1) -> Callable[[int, list[int]], None]:
    def hit(process: int, children: list[int]) -> None:
        for _ in range(times):
            os.kill(process, number)
            time.sleep(0.02)

    return hit


def _kill_rank(process: int, children: list[int]) -> None:
    os.kill(random.choice(children), signal.SIGKILL)


ONE_PROCESS = (
    Fault("SIGTERM", _send(signal.SIGTERM), (143,), True),
    Fault("SIGINT", _send(signal.SIGINT), (130,), True),
    Fault("SIGINT twice within 20 ms", _send(signal.SIGINT, 2), (130,), True),
    Fault("SIGUSR1", _send(signal.SIGUSR1), (138,), True),
    Fault("kill -9", _send(signal.SIGKILL), (-9,)),
    Fault("torn temporary files", _send(signal.SIGKILL), (-9,)),
    Fault("full disk", lambda process, children: None, (1,)),
)
SEVERAL_RANKS = (
    Fault("SIGTERM to torchrun", _send(signal.SIGTERM), (1, 143, -15), True),
    Fault("kill -9 of a rank", _kill_rank, (0,)),
    Fault("kill -9 of torchrun", _send(signal.SIGKILL), (-9,), True),
)


@dataclass
class Tally:
    """What became of one kind of fault."""

    tried: int = 0
    survived: int = 0
    lost: list[int] = field(default_factory=list)
    """iterations that were repeated"""


class Soak:
    """Trainings in folders below ``out``; ``run`` returns one row for each kind of fault."""

    def __init__(self, out: Path, ranks: int, iterations: int, workers: int, seed: int) -> None:
        self.out, self.ranks, self.iterations, self.workers = out, ranks, iterations, workers
        self.random = random.Random(seed)
        self.faults = ONE_PROCESS if ranks == 1 else SEVERAL_RANKS
        self.tallies = {fault.name: Tally() for fault in self.faults}
        self.complete = self.exact = self.starts = 0
        self._log = out / "printed.txt"
        self.notes: list[str] = []

    def run(self, minutes: float) -> list[Row]:
        """Hit trainings for this time. Raises TrainingError where one without a fault fails."""
        create_logger(rank=1)  # errors only
        until = time.monotonic() + 60 * minutes
        print(f"a training of {self.iterations} iterations without a fault ...", flush=True)
        self._finish("unbroken")
        expected, number = self._weights("unbroken"), 0
        while time.monotonic() < until:
            number += 1
            self._hit_until(f"run_{number}", until)
            self._finish(f"run_{number}")
            self.complete += 1
            found = self._weights(f"run_{number}")
            equal = all(torch.equal(found[key], expected[key]) for key in expected)
            self.exact += equal
            if not equal:
                self.notes.append(f"run_{number}: the weights differ from those of the unbroken training")
        return [self._row(name, tally) for name, tally in self.tallies.items()]

    def _row(self, name: str, tally: Tally) -> Row:
        lost = tally.lost or [0]
        return {
            "fault": name,
            "tried": tally.tried,
            "survived": tally.survived,
            "iterations lost (mean)": round(sum(lost) / len(lost), 1),
            "iterations lost (most)": max(lost),
        }

    def _hit_until(self, name: str, until: float) -> None:
        """Faults, one after another, until the training is complete or the time is over."""
        reached = 0
        for fault in iter(lambda: self.random.choice(self.faults), None):
            if time.monotonic() > until or reached >= self.iterations - 3:
                return
            reached = self._hit(name, fault)

    def _hit(self, name: str, fault: Fault) -> int:
        """Start the training ``name``, wait for some iterations, and hit it; returns the last iteration."""
        self.tallies[fault.name].tried += 1
        if fault.name == "torn temporary files":
            self._tear(name)
        process = self._start(name, full_disk=fault.name == "full disk")
        wait = self.random.randint(1, 6)
        while process.poll() is None and len(self._iterations()) < wait:
            time.sleep(0.01)
        time.sleep(self.random.uniform(0, 0.15))
        children = children_of(process.pid)
        if process.poll() is None:
            fault.hit(process.pid, children)
        code = self._end(process, children)
        self._judge(name, fault, code)
        return max(self._iterations(), default=0)

    def _judge(self, name: str, fault: Fault, code: int) -> None:
        """Count the fault, and what it cost."""
        tally = self.tallies[fault.name]
        ours = self.ranks == 1 or fault.name == "kill -9 of torchrun"
        faults = []
        if code not in (*fault.codes, 0):
            faults.append(f"exit code {code}")
        if ours and "Traceback" in self._printed():
            faults.append("traceback")
        if fault.name == "torn temporary files" and (self._folder(name) / "ckpt" / TORN).exists():
            faults.append("the torn file of an earlier run is still there")
        lost = self._lost(name)
        if fault.loses_nothing and lost:
            faults.append(f"{lost} iterations lost")
        tally.lost.append(lost)
        tally.survived += not faults
        if faults:
            self.notes.append(f"{fault.name}: {', '.join(faults)}; see {self._log}")

    def _lost(self, name: str) -> int:
        """Iterations that were made again after a restart, or will be at the next start."""
        found = newest_checkpoint(self._folder(name) / "ckpt", create_logger(rank=1))
        made = [*self._iterations(), int(found[1]["it"] if found else 0) + 1]
        return sum(max(before - after + 1, 0) for before, after in pairwise(made))

    def _finish(self, name: str) -> None:
        process = self._start(name)
        code = self._end(process, children_of(process.pid))
        if code != 0:
            raise TrainingError(
                f"A training without a fault must end with exit code 0, but {name} ended with {code}; "
                f"look at {self._log}."
            )

    def _start(self, name: str, full_disk: bool = False) -> subprocess.Popen[bytes]:
        folder = self.out / name
        self.starts += 1
        folder.mkdir(parents=True, exist_ok=True)
        launch = ["-m", "pcdet_freeze"]
        # the limit holds for the shared memory in which workers return batches, too
        workers = 0 if full_disk else self.workers
        if self.ranks > 1:
            ranks = f"--nproc_per_node={self.ranks}"
            launch = ["-m", "torch.distributed.run", ranks, "--max-restarts=3", "--rdzv-backend=c10d",
                      "--rdzv-endpoint=localhost:0", *launch]  # fmt: skip
        words = ["train", "--cfg_file", CFG, "--output_dir", str(folder), "--workers", str(workers),
                 "--device", "cpu", "--fix_random_seed", "--batch_size", "2", "--num_epochs_to_eval", "0",
                 "--max_iters", str(self.iterations), "--logger_iter_interval", "1", "--launcher",
                 "pytorch" if self.ranks > 1 else "none", "--set", *SMALL]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        if self.ranks == 1:
            launch = ["-c", PROGRAM.format(size=FULL_DISK_BYTES if full_disk else "resource.RLIM_INFINITY")]
        self._log = folder / f"printed_{self.starts}.txt"
        with self._log.open("wb") as log:
            return subprocess.Popen(
                [sys.executable, *launch, *words],
                stdout=log, stderr=log, env=environment, start_new_session=True,
            )  # fmt: skip

    def _end(self, process: subprocess.Popen[bytes], children: list[int]) -> int:
        """Wait for the end of the process and of its children; kill what hangs."""
        try:
            code = process.wait(START_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.notes.append(f"process {process.pid} hung for {START_LIMIT_S} s")
            code = 124
        limit = time.monotonic() + 30
        while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < limit:
            time.sleep(0.02)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        return code

    def _tear(self, name: str) -> None:
        """What a save that was killed in the middle leaves."""
        folder = self._folder(name) / "ckpt"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / TORN).write_bytes(self.random.randbytes(50_000))

    def _weights(self, name: str) -> dict[str, torch.Tensor]:
        found = newest_checkpoint(self._folder(name) / "ckpt", create_logger(rank=1))
        weights: dict[str, torch.Tensor] = found[1]["model_state"] if found else {}
        return weights

    def _folder(self, name: str) -> Path:
        return self.out / name / "synthetic_models" / "pointpillar" / "default"

    def _printed(self) -> str:
        return self._log.read_text(errors="replace")

    def _iterations(self) -> list[int]:
        """Those that the current start has made, in order."""
        return [int(number) for number in REACHED.findall(self._printed())]


PROGRAM = """
import resource, signal
resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
from pcdet_freeze.__main__ import program
program()
"""


def children_of(process: int) -> list[int]:
    """Process ids of the children; empty without /proc."""
    try:
        return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []
