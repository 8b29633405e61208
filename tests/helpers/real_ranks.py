"""Start ``ranks_worker.py`` as real processes, send signals to them, and read what they print."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from two_processes import worker

WAIT_S = 240


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def children(process: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def lives(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def until(condition: Callable[[], object], what: str = "") -> None:
    """Wait until ``condition`` holds; fails after WAIT_S seconds."""
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, f"waited {WAIT_S} s in vain for {what or condition}"
        time.sleep(0.02)


class Processes:
    """Real processes that print to one file."""

    def __init__(self, out: Path) -> None:
        self.file, self.started = out / "printed.txt", list[subprocess.Popen[bytes]]()
        out.mkdir(parents=True, exist_ok=True)

    def start(self, *command: str, **env: str) -> subprocess.Popen[bytes]:
        everything = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", **env}
        with self.file.open("ab") as file:
            process = subprocess.Popen(
                [sys.executable, *command], stdout=file, stderr=file, env=everything, start_new_session=True
            )
        self.started.append(process)
        return process

    @property
    def text(self) -> str:
        return self.file.read_text(errors="replace")

    def printed(self, line: str) -> None:
        """Wait for a line."""
        until(lambda: line in self.text or all(p.poll() is not None for p in self.started), line)
        assert line in self.text, self.text

    def codes(self) -> list[int]:
        return [process.wait(WAIT_S) for process in self.started]


@contextmanager
def processes(out: Path) -> Iterator[Processes]:
    """Processes that are killed at the end, whatever happens."""
    made = Processes(out)
    try:
        yield made
    finally:
        for process in made.started:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def start_ranks(
    made: Processes, out: Path, iterations: int, step_s: float = 0.02, timeout: float = 60
) -> None:
    """Two ranks without torchrun."""
    port = str(free_port())
    for rank in "01":
        env = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        words = [worker("ranks_worker.py"), str(out), str(iterations), str(step_s), str(timeout)]
        made.start(*words, **env, MASTER_PORT=port)


def start_torchrun(made: Processes, out: Path, iterations: int, step_s: float = 0.02) -> int:
    """Two ranks under torchrun with three restarts; returns its process id."""
    launch = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--max-restarts=3"]
    words = [worker("ranks_worker.py"), str(out), str(iterations), str(step_s), "60"]
    return made.start(*launch, "--master_port", str(free_port()), *words).pid


def start_agents(made: Processes, out: Path, iterations: int, step_s: float = 0.02) -> list[int]:
    """Two torchruns with a rank each, as on two machines that meet at an address; their process ids."""
    launch = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", "--max-restarts=3",
              "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--rdzv-id=test",
              "--local-addr=127.0.0.1"]  # fmt: skip
    words = [worker("ranks_worker.py"), str(out), str(iterations), str(step_s), "60"]
    return [made.start(*launch, *words).pid for _ in range(2)]


def final_weights(out: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(out / "final.pt")
    return found
