"""Whole trainings, each in a process of its own: where their time goes, and what the allocator costs."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pcdet_freeze.bench.timing import Spread
from pcdet_freeze.errors import PCDetFreezeError
from pcdet_freeze.utils.allocator import SWITCH

IMPORTS, BUILD, FIRST_STEP = "interpreter, imports", "data set, model, freeze", "checks of the first step"
FIRST_BATCH, WAIT, MOVE = "first batch", "waiting for batches", "voxels"
MODEL, OTHER, END = "forward, backward, optimizer", "loop, loader processes", "end of the process"
Row = dict[str, Any]


class TrainingFailedError(PCDetFreezeError):
    """A training that was to be measured has failed; its own message stands above."""


@dataclass(frozen=True)
class WholeTraining:
    """What is trained."""

    cfg: str
    """a file, or the name of a packaged config"""
    overrides: Sequence[str] = ()
    """words of ``--set``"""
    options: Mapping[str, Any] = field(default_factory=dict)
    """fields of TrainOptions"""
    threads: int = 1
    """threads of torch's operators"""


def train_once(training: WholeTraining, variables: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Train in a new process; returns the result of ``one_training`` and what the process has used.

    ``user``, ``system``: seconds of all threads and of the loader processes; ``faults``: minor page faults;
    ``wall``: seconds from its start to its end. The evaluation is left out.
    Raises TrainingFailedError.
    """
    with tempfile.TemporaryDirectory() as folder:
        request, result = Path(folder, "request.json"), Path(folder, "result.json")
        given = {"num_epochs_to_eval": 0, "fix_random_seed": True, "output_dir": folder, **training.options}
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
        plain = {"cfg": training.cfg, "overrides": list(training.overrides), "options": given}
        request.write_text(json.dumps({**plain, "started": started}))
        words = [
            sys.executable,
            "-m",
            "pcdet_freeze.bench.whole_runs.one_training",
            str(request),
            str(result),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": str(training.threads), **(variables or {})}
        done = subprocess.run(words, env=environment, stdout=subprocess.DEVNULL, check=False)
        ended, after = time.time(), resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            raise TrainingFailedError(
                f"The measured training must succeed, but ended with exit code {done.returncode}"
            )
        found: dict[str, Any] = json.loads(result.read_text())
    found["parts"][END] = ended - found.pop("ended")
    return found | {
        "user": after.ru_utime - before.ru_utime,
        "system": after.ru_stime - before.ru_stime,
        "faults": after.ru_minflt - before.ru_minflt,
        "wall": ended - started,
    }


def measure_parts(training: WholeTraining) -> list[Row]:
    """One row for each part of a training, with seconds and share of the wall time; the model comes first.

    ``cpu`` and ``cpu_share`` are the same of the process time, without the end of the process.
    """
    found = train_once(training)
    parts = sorted(found["parts"].items(), key=lambda part: (part[0] != MODEL, -part[1]))
    cpu, total = found["cpu"], sum(found["cpu"].values())
    shared = {key: value for key, value in found.items() if key not in ("parts", "cpu")}
    return [
        {
            "part": name,
            "seconds": seconds,
            "share": seconds / found["wall"],
            "cpu": cpu.get(name, 0.0),
            "cpu_share": cpu.get(name, 0.0) / total,
            **shared,
        }
        for name, seconds in parts
    ]


def measure_allocator(training: WholeTraining, rounds: int) -> list[Row]:
    """Rows for trainings with the allocator as it is, and with freed memory kept; the two alternate."""
    kinds = {"as it is": "0", "kept": "1"}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in kinds}
    for number in range(rounds):
        names = list(kinds) if number % 2 == 0 else list(kinds)[::-1]
        for name in names:
            found[name].append(train_once(training, {SWITCH: kinds[name]}))
    base = found["as it is"]
    return [_allocator_row(name, results, base) for name, results in found.items()]


def _allocator_row(name: str, results: list[dict[str, Any]], base: list[dict[str, Any]]) -> Row:
    def cpu(one: dict[str, Any]) -> float:
        return float(one["user"] + one["system"])

    ratio = Spread.of([cpu(own) / cpu(other) for own, other in zip(results, base, strict=True)])
    row: Row = {"variant": name, "rounds": len(results), "time_ratio": ratio.median}
    row["time_ratio_quartiles"] = [ratio.low, ratio.high]
    for key in ("user", "system", "faults", "peak_rss", "worker_rss", "step_seconds"):
        row[key] = Spread.of([float(one[key]) for one in results]).median
    return row
