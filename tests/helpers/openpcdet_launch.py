"""Real processes of ``python -m pcdet_freeze.openpcdet`` on the stand-in."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from standin_runs import STANDIN


def _run(root: Path, command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    paths = [str(STANDIN), str(STANDIN / "tools_8caccce"), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "STANDIN_ROOT": str(root), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    env["PYTHONPATH"] = os.pathsep.join(path for path in (*paths, str(STANDIN.parents[2])) if path)
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False)


def launch(
    root: Path, *words: str, cwd: Path = STANDIN, module: bool = True
) -> subprocess.CompletedProcess[str]:
    """One process; what it trains is written below ``root``."""
    plugin = ["-m", "pcdet_freeze.openpcdet"] if module else []
    return _run(root, [sys.executable, *plugin, *words], cwd)


def torchrun_plugin(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """``torchrun --nproc_per_node=2 -m pcdet_freeze.openpcdet ...``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port", port]
    return _run(root, [sys.executable, *launcher, "-m", "pcdet_freeze.openpcdet", *words], STANDIN)
