"""Keep freed memory in the process, so that each step does not get its pages from the system again.

By default glibc returns large blocks to the system when they are freed. A training step frees and allocates
hundreds of megabytes in such blocks: the kernel clears every page anew, which is most of the system time of a
training on a CPU (``bench --what allocator``). ``mallopt`` raises the two thresholds at which glibc does so.

The setting applies to the whole process, until its end. It has no effect on CUDA's allocator.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys

SWITCH = "PCDET_FREEZE_KEEP_MEMORY"
"""environment variable; 0 leaves the allocator as it is"""
OF_THE_USER = ("GLIBC_TUNABLES", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_")
"""variables by which the user has set glibc's allocator: their values stay"""
THRESHOLD = 1 << 30
"""bytes; larger blocks are still returned"""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # of malloc.h


def keep_freed_memory() -> bool:
    """Raise glibc's thresholds for this process; returns whether it was done.

    Loader processes that are forked inherit the setting; others call this themselves. Nothing happens on a
    system without glibc, where the user has set the allocator, or where ``PCDET_FREEZE_KEEP_MEMORY`` is 0.
    """
    if os.environ.get(SWITCH, "1") == "0" or any(name in os.environ for name in OF_THE_USER):
        return False
    libc = _glibc()
    if libc is None or not libc.mallopt(_M_TRIM_THRESHOLD, THRESHOLD):
        return False
    # glibc before 2.35 refuses a threshold above 32 MiB, but can be kept from mapping blocks at all
    return bool(libc.mallopt(_M_MMAP_THRESHOLD, THRESHOLD) or libc.mallopt(_M_MMAP_MAX, 0))


def return_freed_memory() -> None:
    """Return the memory that is free now to the system, as at the end of a training in a notebook."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
