"""What the checks know about this machine and its packages."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TIMEOUT = 120
"""seconds for a Python process that imports a package"""


@dataclass(frozen=True)
class Child:
    """How a Python process ended that imported and tried a package."""

    code: int
    """exit code; below 0: the signal that ended it"""
    result: Mapping[str, Any] = field(default_factory=dict)
    """the JSON that it printed"""
    error: str = ""
    """last line of its standard error"""

    @property
    def works(self) -> bool:
        """Whether it ended without error."""
        return self.code == 0


@dataclass
class Facts:
    """Figures and names that the checks judge. A figure that the system does not tell is None."""

    python: tuple[int, int]
    versions: Mapping[str, str]
    """distribution, in lower case -> version"""
    run: Callable[[str], Child]
    """runs Python code in a process of its own"""
    environ: Mapping[str, str] = field(default_factory=dict)
    driver: str = ""
    """version of the NVIDIA driver; "" without one"""
    free_disk: int | None = None
    """bytes where output is written"""
    free_memory: int | None = None
    """bytes that a new process can have, limits of a container included"""
    free_shm: int | None = None
    """bytes in /dev/shm"""
    open_files: int | None = None
    """files that a process may open"""

    def version(self, *names: str) -> tuple[int, ...] | None:
        """The version of the first installed distribution of ``names``, as numbers; None without one."""
        for name in names:
            if name in self.versions:
                return numbers(self.versions[name])
        return None

    def installed(self, prefix: str) -> list[str]:
        """Installed distributions whose name is ``prefix``, or begins with it and a hyphen."""
        return [name for name in self.versions if name == prefix or name.startswith(f"{prefix}-")]


def numbers(version: str) -> tuple[int, ...]:
    """``2.13.0+cpu`` -> (2, 13, 0)."""
    found = []
    for part in version.partition("+")[0].split("."):
        digits = re.match(r"\d+", part)
        if digits is None:
            break
        found.append(int(digits[0]))
    return tuple(found)


def look(output: Path) -> Facts:
    """Look at this process and its machine; ``output`` is where runs are written."""
    return Facts(
        python=sys.version_info[:2],
        versions=_versions(),
        run=run_python,
        environ=dict(os.environ),
        driver=_driver(),
        free_disk=_free_disk(output),
        free_memory=_free_memory(),
        free_shm=_free_disk(Path("/dev/shm")) if Path("/dev/shm").is_dir() else None,
        open_files=_open_files(),
    )


def run_python(code: str) -> Child:
    """Run ``code`` in a Python process of its own; it prints JSON in its last line."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=TIMEOUT
        )
    except subprocess.TimeoutExpired:
        return Child(1, error=f"no answer within {TIMEOUT} s")
    lines, errors = done.stdout.strip().splitlines(), done.stderr.strip().splitlines()
    try:
        result = json.loads(lines[-1]) if lines else {}
    except ValueError:
        result = {}
    return Child(done.returncode, result if isinstance(result, dict) else {}, errors[-1] if errors else "")


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name:  # the first on sys.path is the one that is imported
            found.setdefault(name.lower().replace("_", "-"), distribution.version or "")
    return found


def _driver() -> str:
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return ""
    return next((word for word in text.split() if word[:1].isdigit() and "." in word), "unknown")


def _free_disk(path: Path) -> int | None:
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None


def _free_memory() -> int | None:
    """MemAvailable, or what the limit of the control group leaves, where that is less."""
    found = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    except (OSError, ValueError, IndexError):
        pass
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            root = Path("/sys/fs/cgroup")
            found.append(int((root / limit).read_text()) - int((root / used).read_text()))
        except (OSError, ValueError):
            continue
    return min(found, default=None)


def _open_files() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if soft == resource.RLIM_INFINITY else soft
