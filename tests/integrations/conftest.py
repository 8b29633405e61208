"""Makes the stand-in for OpenPCDet importable during a test."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from standin_runs import Standin

from pcdet_freeze import openpcdet


@pytest.fixture
def standin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Standin]:
    """Removes modules, paths, working directory and plugin after the test."""
    here, path, argv, finders = os.getcwd(), sys.path[:], sys.argv[:], sys.meta_path[:]
    monkeypatch.setenv("STANDIN_ROOT", str(tmp_path))
    made = Standin(tmp_path, monkeypatch)
    yield made
    openpcdet.uninstall()
    made.forget()
    os.chdir(here)
    sys.path[:], sys.argv[:] = path, argv
    assert sys.meta_path == finders
