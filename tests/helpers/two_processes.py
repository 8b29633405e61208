"""Starting real processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

HELPERS = Path(__file__).resolve().parent


def worker(name: str) -> str:
    """Path of a script of this folder that runs in each process."""
    return str(HELPERS / name)


def torchrun(*words: str, processes: int = 2, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run a script in two processes; its output is in the result."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    launch = ["torch.distributed.run", f"--nproc_per_node={processes}", "--master_port", str(port)]
    command = [sys.executable, "-m", *launch, *words]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False, **more)
