"""Trainings on the simulated device: how often the host waits, and that results are those of the CPU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from waits_cases import CASES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not shutil.which(os.environ.get("CXX", "g++")) or not shutil.which("ninja"),
        reason="the simulated device needs a C++ compiler and ninja",
    ),
]

ITERATIONS = 3
WAITS = 2
"""in an iteration: number of voxels and points; whether the step before was finite (docs/gpu.md)"""


@pytest.fixture(scope="session")
def trainings(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What ``count_waits.py`` finds for all cases."""
    folder = tmp_path_factory.mktemp("waits")
    (folder / "cases.json").write_text(json.dumps(CASES))
    script = root / "tests" / "helpers" / "second_device" / "count_waits.py"
    paths = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(script), str(folder / "out.json"), str(folder / "cases.json")],
        cwd=root,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found: dict[str, Any] = json.loads((folder / "out.json").read_text())
    return found


@pytest.mark.parametrize("name", CASES)
def test_the_host_waits_at_most_twice_an_iteration(trainings: dict[str, Any], name: str) -> None:
    waits: dict[str, int] = trainings[name]["waits"]
    assert sum(waits.values()) <= WAITS * ITERATIONS, waits
    assert all("wait_for" in line for line in waits)


@pytest.mark.parametrize("name", CASES)
def test_the_losses_are_those_of_the_cpu(trainings: dict[str, Any], name: str) -> None:
    # after a few steps: the pillar encoder sums in another order on a CPU (ops/pillars/_ragged_kernels.py)
    assert trainings[name]["losses"] == pytest.approx(trainings[name]["on_cpu"], rel=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_an_evaluation_copies_once_a_batch(trainings: dict[str, Any], name: str) -> None:
    waits: dict[str, int] = trainings[name]["evaluation"]
    assert sum(waits.values()) <= CASES[name].get("copies", 1), waits


@pytest.mark.parametrize("name", [name for name in CASES if "frozen" in name])
def test_a_certificate_copies_all_tensors_together(trainings: dict[str, Any], name: str) -> None:
    waits: dict[str, int] = trainings[name]["certificate"]
    assert 1 <= sum(waits.values()) <= 2, waits
