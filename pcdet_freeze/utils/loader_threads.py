"""Threads that load batches ahead of a training loop, and draw random numbers meanwhile.

A loader such as ``class DataLoaderX(DataLoader): __iter__ = lambda self: BackgroundGenerator(...)`` runs a
DataLoader without workers in a thread. Its augmentations draw from the generators of the process. Code that
saves, seeds and restores these generators must not run at the same time: numbers drawn in between would be
others, and the next ones would be drawn twice.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from types import FrameType
from weakref import WeakSet

import torch.utils.data.dataloader as torch_loader

TIMEOUT = 30.0
"""seconds; a thread that loads without a limit is not waited for any longer"""
_PAUSE, _LOOKS = 0.005, 4
"""seconds between two looks, and looks in a row that must find no thread in a loader: between two batches,
or just after its queue was emptied, a thread is outside of it"""
_LOADER_FILE = str(Path(torch_loader.__file__))
_with_own_generators: WeakSet[threading.Thread] = WeakSet()


def draws_from_own_generators(thread: threading.Thread) -> threading.Thread:
    """Mark a thread that draws nothing from the generators of the process: it is never waited for."""
    _with_own_generators.add(thread)
    return thread


def wait_for_loader_threads(timeout: float = TIMEOUT) -> bool:
    """Wait until no other thread is loading a batch with a DataLoader: each has filled its queue.

    The thread that calls this is the one that empties the queues, so they stay idle until it goes on.

    Returns:
        False if one is still loading after ``timeout`` seconds.
    """
    deadline, idle_looks = time.monotonic() + timeout, 0
    while idle_looks < _LOOKS and threading.active_count() > 1:
        # a new thread may have the number of one that has ended
        own = {thread.ident for thread in _with_own_generators if thread.is_alive()}
        left_out = {threading.get_ident(), *own}
        is_loading = any(
            _is_loading(f) for ident, f in sys._current_frames().items() if ident not in left_out
        )
        if is_loading and time.monotonic() > deadline:
            return False
        idle_looks = 0 if is_loading else idle_looks + 1
        time.sleep(_PAUSE)
    return True


def _is_loading(frame: FrameType | None) -> bool:
    """Whether a thread is inside a DataLoader."""
    while frame is not None:
        if frame.f_code.co_filename == _LOADER_FILE:
            return True
        frame = frame.f_back
    return False
