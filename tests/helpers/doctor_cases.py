"""A sound machine for the checks of ``doctor``, of which tests make one fact bad."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pcdet_freeze.doctor import Case, Facts, Outcome, examine
from pcdet_freeze.doctor.facts import Child

TORCH = {"version": "2.13.0", "cuda": "12.6", "available": True, "names": ["H200"], "arch": ["sm_90"],
         "compiled": ["sm_80", "sm_90"]}  # fmt: skip
CPU_TORCH = {
    "version": "2.13.0+cpu",
    "cuda": None,
    "available": False,
    "names": [],
    "arch": [],
    "compiled": [],
}
VERSIONS = {"torch": "2.13.0", "numpy": "1.26.4", "numba": "0.60", "spconv-cu120": "2.3.6",
            "cumm-cu120": "0.4.11"}  # fmt: skip
GB = 10**9


def runs(**ends: Child) -> Any:
    """A ``Facts.run`` whose processes end as ``ends`` says, by the package that they try."""

    def run(code: str) -> Child:
        tried = next(name for name in ("pcdet", "spconv", "numba", "torch") if name in code)
        return ends.get(tried, Child(0, TORCH if tried == "torch" else {}))

    return run


def facts(**changed: Any) -> Facts:
    """Facts of a sound machine with a GPU, of which ``changed`` are others."""
    sound = Facts((3, 11), VERSIONS, runs(), {"DISPLAY": ":0"}, "550.54", 100 * GB, 50 * GB, 10 * GB, 65536)
    return replace(sound, **changed)


def versions(**changed: str | None) -> Mapping[str, str]:
    """The versions of a sound environment; None: not installed. Underscores are hyphens."""
    found = {**VERSIONS, **{name.replace("_", "-"): version for name, version in changed.items()}}
    return {name: version for name, version in found.items() if version is not None}


def check(name: str, case: Case) -> Outcome:
    """What one check finds."""
    (found,) = examine(case, [name])
    return found


def trouble(name: str, case: Case) -> str:
    """The text of a trouble; the check must find one, and have a cure."""
    found = check(name, case)
    assert found.state == "trouble" and found.cure, found
    return found.text


def openpcdet(folder: Path, source: str = "") -> Path:
    """The files of an OpenPCDet that the checks look at."""
    for path in ("pcdet/datasets/__init__.py", "pcdet/ops/iou3d_nms/src/a.cpp", "tools/train.py"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()
    (folder / "pcdet/utils.py").write_text(source)
    (folder / "pcdet/ops/iou3d_nms/iou3d_nms_cuda.so").touch()
    return folder
