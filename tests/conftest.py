"""Fixtures that every room's tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("PCDET_FREEZE_SHARED", ROOT.parent / "shared"))


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's root folder."""
    return ROOT


@pytest.fixture(scope="session")
def reference() -> Path:
    """OpenPCDet's golden figures; the test is skipped where the folder is absent."""
    folder = SHARED / "reference"
    if not folder.is_dir():
        pytest.skip(f"golden figures not found at {folder} (set PCDET_FREEZE_SHARED)")
    return folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Real LiDAR frames, read-only; the test is skipped where the folder is absent."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"real frames not found at {folder} (set PCDET_FREEZE_SHARED)")
    return folder
