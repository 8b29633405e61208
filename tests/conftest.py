"""Fixtures for the tests of every package."""

from __future__ import annotations

import logging
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

from pcdet_freeze.utils.signals.stop_signals import SIGNALS

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("PCDET_FREEZE_SHARED", ROOT.parent / "shared"))

# pytest-xdist gives its processes the width of the terminal, which commands that print tables would use
os.environ.pop("COLUMNS", None)

# the same examples in every run; `pytest --hypothesis-profile=default` draws new ones
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Each test begins with the same generators, whichever tests ran before it in its process."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def same_handlers() -> Iterator[None]:
    """A test leaves no handler of a signal or of the log to the tests after it in its process.

    torch's DataLoader sets one for SIGCHLD that raises wherever the process is when a worker ends.
    """
    signals = {number: signal.getsignal(number) for number in (signal.SIGCHLD, *SIGNALS)}
    logger = logging.getLogger("pcdet_freeze")
    handlers, level = list(logger.handlers), logger.level
    yield
    for number, handler in signals.items():
        if handler is not None and signal.getsignal(number) != handler:
            signal.signal(number, handler)
    for left in set(logger.handlers) - set(handlers):
        logger.removeHandler(left)
        left.close()
    logger.setLevel(level)


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's root folder."""
    return ROOT


@pytest.fixture(scope="session")
def reference() -> Path:
    """Golden figures of OpenPCDet; see tests/reference/README.md."""
    return ROOT / "tests" / "reference"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Real LiDAR frames, read-only; the test is skipped where the folder is absent."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"real frames not found at {folder} (set PCDET_FREEZE_SHARED)")
    return folder
