"""Which OpenPCDet, or fork of it, a script will import: its folder, version and commit."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path

GET_ONE = (
    "Install OpenPCDet in it: git clone https://github.com/open-mmlab/OpenPCDet, then "
    "`python setup.py develop` in its folder."
)
WITHOUT = {
    "cfg_from_list": "a list that --set gives is not read",
    "build_optimizer": "the optimizer is not checked",
    "train_model": "the training ends with the script",
    "train_one_epoch": "FREEZE.SCHEDULE is refused",
    "checkpoint_state": "checkpoints store no certificate",
}
"""optional function of OpenPCDet -> what a fork without it lacks"""


def find_pcdet(*folders: Path) -> Path | None:
    """The folder of the ``pcdet`` that Python imports, else of one in ``folders``; it is not imported."""
    try:
        spec = importlib.util.find_spec("pcdet")  # editable installs are found by finders of their own
    except ValueError:  # a module without a spec
        spec = None
    spec = spec or PathFinder.find_spec("pcdet", list(map(str, folders)))
    places = list(spec.submodule_search_locations or []) if spec is not None else []
    return Path(places[0]) if places else None


def is_first_rank() -> bool:
    """Whether this process is rank 0 by the variables of torchrun or SLURM; True without a launcher."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def describe(pcdet: Path) -> str:
    """For example ``OpenPCDet 0.6.0 (commit 8caccce) in /home/user/OpenPCDet``."""
    commit = _commit(pcdet)
    return f"OpenPCDet {_version(pcdet)}{f' (commit {commit})' if commit else ''} in {pcdet.parent}"


def say_found(folders: Sequence[Path]) -> None:
    """Print which OpenPCDet a script will use, on rank 0."""
    pcdet = find_pcdet(*folders)
    if pcdet is not None and is_first_rank():
        print(f"pcdet_freeze: {describe(pcdet)}", file=sys.stderr)


def missing_note(module: str, missing: Sequence[str]) -> str:
    """One line about functions that the plugin replaces and this fork does not have; empty if it has all."""
    lacks = "; ".join(f"without {name}, {WITHOUT[name]}" for name in missing if name in WITHOUT)
    return f"{module} of this OpenPCDet has no {', '.join(missing)}: {lacks}" if lacks else ""


def _version(pcdet: Path) -> str:
    file = pcdet / "version.py"  # written by OpenPCDet's setup.py; read, not executed
    found = re.search(r"__version__\s*=\s*['\"]([^'\"]+)", file.read_text()) if file.is_file() else None
    if found:
        return found.group(1).partition("+")[0]
    try:
        return metadata.version("pcdet").partition("+")[0]
    except metadata.PackageNotFoundError:
        return "of unknown version"


def _commit(pcdet: Path) -> str:
    """The first seven digits of the commit, if ``pcdet`` lies in a checkout and git is installed."""
    if not (pcdet.parent / ".git").exists():
        return ""
    command = ["git", "-C", str(pcdet.parent), "rev-parse", "--short=7", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
