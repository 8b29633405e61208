"""Checks of an OpenPCDet beside the working directory: its state, its build, its age."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from pcdet_freeze.doctor.checks import Case, NotApplicable, check

REMOVED = re.compile(r"\bnp\.(bool|int|float|object|complex|str)\b(?!_)")
"""aliases that numpy 1.24 removed"""
TRY_OPERATORS = """
import sys, torch
sys.path.insert(0, {folder!r})
from pcdet.ops.iou3d_nms import iou3d_nms_cuda
"""
SAFE_LOAD, REMOVED_IN = (2, 6), (1, 24)
"""torch since which torch.load reads plain data by default; numpy without the aliases"""


def find_openpcdet(start: Path) -> Path | None:
    """``start``, a folder above it, or one beside it, that has ``pcdet/`` and ``tools/train.py``."""
    beside = [start / "OpenPCDet", start.parent / "OpenPCDet"]
    return next((folder for folder in (start, *start.parents, *beside) if _is_one(folder)), None)


def _is_one(folder: Path) -> bool:
    return (folder / "pcdet" / "datasets").is_dir() and (folder / "tools" / "train.py").is_file()


@check(
    "openpcdet-git",
    "OpenPCDet is unmodified",
    "warning",
    "`git stash`, or `git checkout -- FILE`, where the changes are no longer wanted",
)
def git(case: Case) -> Iterator[str]:
    folder = _folder(case)
    done = subprocess.run(
        ["git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if done.returncode:
        raise NotApplicable(f"{folder} is no git repository: its version is not known")
    changed = [line[3:] for line in done.stdout.splitlines()]
    if changed:
        shown = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
        yield f"{len(changed)} files of {folder} differ from its commit: {shown}"


@check(
    "openpcdet-build", "OpenPCDet's operators are compiled", "error", "python setup.py develop, in its folder"
)
def build(case: Case) -> Iterator[str]:
    folder = _folder(case)
    sources = sorted(path.parent for path in (folder / "pcdet" / "ops").glob("*/src"))
    lacking = [part.name for part in sources if not list(part.glob("*.so")) + list(part.glob("*.pyd"))]
    if lacking:
        yield f"not compiled: {', '.join(lacking)} (cannot import name 'iou3d_nms_cuda')"
        return
    child = case.facts.run(TRY_OPERATORS.format(folder=str(folder.resolve())))
    if not child.works:
        yield f"compiled, but not for this torch: {child.error or f'exit code {child.code}'}"


@check("openpcdet-numpy", "numpy has the names that OpenPCDet uses", "warning", "pip install 'numpy<1.24'")
def numpy_names(case: Case) -> Iterator[str]:
    folder, version = _folder(case), case.facts.version("numpy") or (0,)
    if version < REMOVED_IN:
        return
    found = [(path, name) for path, text in _sources(folder) for name in REMOVED.findall(text)]
    if found:
        files = ", ".join(dict.fromkeys(str(path.relative_to(folder)) for path, _ in found))
        names = ", ".join(sorted({f"np.{name}" for _, name in found}))
        yield (
            f"numpy {case.facts.versions['numpy']} has no {names}, which {files} use: "
            "\"module 'numpy' has no attribute 'bool'\""
        )


@check("openpcdet-sharedarray", "SharedArray is installed", "error", "pip install SharedArray")
def shared_array(case: Case) -> Iterator[str]:
    folder = _folder(case)
    users = [path for path, text in _sources(folder) if re.search(r"^\s*import SharedArray", text, re.M)]
    if users and "sharedarray" not in case.facts.versions:
        yield f"{users[0].relative_to(folder)} imports SharedArray: \"No module named 'SharedArray'\""


@check(
    "openpcdet-torch-load",
    "OpenPCDet reads its checkpoints with this torch",
    "warning",
    "pip install 'torch<2.6', or `python -m pcdet_freeze.openpcdet tools/train.py ...` for checkpoints of "
    "plain data",
)
def torch_load(case: Case) -> Iterator[str]:
    folder, version = _folder(case), case.facts.version("torch") or (0,)
    if version < SAFE_LOAD:
        return
    calls = [path for path, text in _sources(folder) if "torch.load(" in text and "weights_only" not in text]
    if calls:
        yield (
            f"torch {case.facts.versions['torch']} reads plain data only by default, and "
            f'{calls[0].relative_to(folder)} does not set weights_only: "Weights only load failed" for '
            "checkpoints with numpy numbers or configs in them"
        )


@check(
    "openpcdet-display",
    "a display for OpenPCDet's demo",
    "warning",
    "use this project's tools/demo.py, which writes pictures without a display",
)
def display(case: Case) -> Iterator[str]:
    _folder(case)
    viewers = [name for name in ("open3d", "mayavi") if name in case.facts.versions]
    environ = case.facts.environ
    if not viewers:
        raise NotApplicable("neither open3d nor mayavi is installed")
    if not (environ.get("DISPLAY") or environ.get("WAYLAND_DISPLAY")):
        yield f"DISPLAY is not set, and OpenPCDet's tools/demo.py opens a window with {viewers[0]}"


def _folder(case: Case) -> Path:
    if case.openpcdet is None:
        raise NotApplicable("no OpenPCDet in or beside the working directory (--openpcdet FOLDER)")
    if not _is_one(case.openpcdet):
        raise ValueError(f"{case.openpcdet} has no pcdet/datasets and tools/train.py")
    return case.openpcdet


def _sources(folder: Path) -> Iterator[tuple[Path, str]]:
    for top in ("pcdet", "tools"):
        for path in sorted((folder / top).rglob("*.py")):
            yield path, path.read_text(errors="replace")
