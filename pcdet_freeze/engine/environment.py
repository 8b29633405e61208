"""The environment of a run, for its report, and the warnings in its logs."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pcdet_freeze import __version__

LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d+ +([A-Z]+)  (.*)")
"""first line of a message in a log: time, level, text"""
MOST = 100
"""different warnings of a report"""
LONGEST, CUT = 4000, " ..."
"""characters of a warning, and the end of one that is longer"""


def environment_of(device: torch.device, processes: int, seed: int) -> dict[str, str]:
    """Versions and hardware of this process."""
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    gpu = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    return {
        "pcdet_freeze": __version__,
        "Python": platform.python_version(),
        "torch": f"{torch.__version__}, {cuda}",
        "numpy": np.__version__,
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "device": f"{device}{gpu}",
        "processes": f"{processes}, threads each: {torch.get_num_threads()}",
        "random seed": str(seed),
    }


def peak_memory(device: torch.device) -> dict[str, int]:
    """'process' and 'device' -> peak bytes since the process began, as far as the system tells."""
    found: dict[str, int] = {}
    if sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        found["process"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if device.type == "cuda":
        found["device"] = torch.cuda.max_memory_allocated(device)
    return found


def warnings_in(folder: Path) -> list[dict[str, Any]]:
    """The warnings and errors of all training logs in ``folder``: text, time of the first, count."""
    found: dict[str, dict[str, Any]] = {}
    for file in sorted(folder.glob("train_*.log")):
        for time, level, words in _messages(file):
            if level in ("WARNING", "ERROR", "CRITICAL") and (words in found or len(found) < MOST):
                one = found.setdefault(words, {"time": time, "count": 0, "text": words})
                one["count"] += 1
    return list(found.values())


def _messages(file: Path) -> Iterator[tuple[str, str, str]]:
    """Time, level and text of each message; further lines of an INFO are left out."""
    time = level = words = ""
    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            start = LINE.match(line)
            if start:
                if level:
                    yield time, level, words
                time, level, words = start.groups()
            elif level not in ("", "INFO") and not words.endswith(CUT):
                words += "\n" + line.rstrip("\n")
            if len(words) > LONGEST:
                words = words[:LONGEST] + CUT
    if level:
        yield time, level, words
