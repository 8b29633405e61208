"""What a report shows of a run, as plain data: ``report.json`` beside ``report.html``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from pcdet_freeze.errors import DataError
from pcdet_freeze.report.plain_types import require_types

FILE, PAGE = "report.json", "report.html"
LARGEST = 64_000_000
"""bytes of a report.json that is read"""


@dataclass
class Part:
    """One module of the tree."""

    path: str
    kind: str
    """name of its class"""
    parameters: int
    state: str
    """'frozen', 'locked' (norm layers only), 'partly', 'trainable', or 'none': no parameters, no buffers"""
    norms: int = 0
    """norm layers in it, itself included"""
    norms_locked: int = 0
    entry: str = ""
    """entry of the list that freezes it"""
    released: str = ""
    """'after epoch 10' where the schedule released it"""


@dataclass
class Certificate:
    """The frozen state in digests."""

    tensors: dict[str, str] = field(default_factory=dict)
    """name -> dtype, shape and digest"""
    digest: str = ""
    """of all of them"""
    algorithm: str = ""


@dataclass
class Task:
    """One task, and the head that the list keeps or trains."""

    name: str
    """as metrics begin: ``segmentation``; ``detection`` for boxes"""
    heads: list[str] = field(default_factory=list)
    state: str = "trainable"
    """'identical' (proven), 'drift', 'noise', 'CHANGED', 'frozen' (not compared), 'partly' or 'trainable'"""
    fed_by: list[str] = field(default_factory=list)
    """trainable modules that its frozen head gets inputs from"""


@dataclass
class Picture:
    """One fixed frame."""

    name: str
    note: str
    file: str
    """relative to the run's folder"""


@dataclass
class RunRecord:
    """One run. Every field has a default, so that a part that could not be collected leaves a report."""

    name: str = ""
    folder: str = ""
    version: str = ""
    finished: str = ""
    """local time of its end"""
    outcome: str = "finished"
    """'finished', 'stopped early', or the error that ended it"""
    summary: str = ""
    """what is frozen, in one line"""
    entries: list[str] = field(default_factory=list)
    """MODEL.NOT_TRAIN_IN_MULTI_TASK"""
    schedule: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tree: list[Part] = field(default_factory=list)
    parameters: int = 0
    parameters_frozen: int = 0
    certificate: Certificate | None = None
    drift: dict[str, Any] = field(default_factory=dict)
    """module -> verdict, fed_by, relative_difference"""
    tasks: list[Task] = field(default_factory=list)
    before: dict[str, float] = field(default_factory=dict)
    before_source: str = ""
    """where the metrics of the start are from; or why there are none"""
    after: dict[str, float] = field(default_factory=dict)
    after_source: str = ""
    iterations: int = 0
    epochs: int = 0
    seconds: float = 0.0
    """of training, evaluation included"""
    seconds_per_iteration: dict[str, float] = field(default_factory=dict)
    savings: dict[str, Any] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)
    """'process' and 'device' -> largest memory"""
    curves: dict[str, list[list[float]]] = field(default_factory=dict)
    """name -> [iteration, value] of each drawn point"""
    pictures: list[Picture] = field(default_factory=list)
    pictures_note: str = ""
    """why there are none"""
    warnings: list[dict[str, Any]] = field(default_factory=list)
    """text, time of the first, count"""
    environment: dict[str, str] = field(default_factory=dict)
    command: str = ""
    checks: list[str] = field(default_factory=list)
    """commands that check what the report claims"""
    config: dict[str, Any] = field(default_factory=dict)
    data_digest: str = ""
    """of what the metrics depend on: data, classes, the rule of the metric"""
    pretrained: str = ""
    checkpoint: str = ""

    def to_json(self) -> str:
        """The whole record; numbers that are not finite become null."""
        return json.dumps(_finite(asdict(self)), indent=1, default=str) + "\n"

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> RunRecord:
        """Read what :meth:`to_json` wrote, of this version or another; unknown keys are left out.

        Raises TypeError, AttributeError or ValueError for a value of another type.
        """
        values = {key: value for key, value in plain.items() if key in {f.name for f in fields(cls)}}
        nested: dict[str, type] = {"tree": Part, "tasks": Task, "pictures": Picture}
        for key, kind in nested.items():
            values[key] = [_read(kind, item) for item in values.get(key, [])]
        if values.get("certificate") is not None:
            values["certificate"] = _read(Certificate, values["certificate"])
        record = cls(**values)
        require_types(record)
        return record


def _read(kind: type, plain: Mapping[str, Any]) -> Any:
    known = {f.name for f in fields(kind)}
    return kind(**{key: value for key, value in plain.items() if key in known})


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value


def load_record(folder: Path) -> RunRecord:
    """Read the record of the run in ``folder``. Raises DataError where there is none, or it is damaged."""
    found = read_plain(folder / FILE)
    if found is None:
        raise DataError(
            f"A run must have {FILE}, which a training writes at its end; found none that can be read in "
            f"{folder}. Run the same training command again: a finished run writes it without training."
        )
    try:
        record = RunRecord.from_plain(found)
    except (TypeError, AttributeError, ValueError) as error:
        raise DataError(f"{folder / FILE} must be what a training wrote, but: {error}") from error
    record.folder = str(folder)
    return record


def read_plain(file: Path) -> dict[str, Any] | None:
    """The mapping in a JSON file; None where it is absent, too large, or no JSON."""
    try:
        if file.stat().st_size > LARGEST:
            return None
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
