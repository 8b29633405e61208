"""One training at a time in a folder. The system drops the lock of a process that has ended."""

from __future__ import annotations

import errno
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pcdet_freeze.errors import ConfigError

try:
    import fcntl
except ImportError:  # not a Unix
    fcntl = None  # type: ignore[assignment]

NAME = ".run.lock"
WAIT_S = 5.0
"""a run that was asked to stop may be writing its checkpoint"""
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_held: set[int] = set()


@contextmanager
def run_lock(folder: Path, wait_s: float = WAIT_S) -> Iterator[None]:
    """Hold the lock of ``folder``, which is created, for the block.

    A network file system without locks gives a warning instead.

    Raises:
        ConfigError: another process holds the lock for more than ``wait_s`` seconds; the message names it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    handle = _acquire(folder / NAME, time.monotonic() + wait_s)
    _held.add(handle)
    try:
        yield
    finally:
        _held.discard(handle)
        with suppress(
            OSError
        ):  # a folder that can no longer be written to must not hide an error of the block
            (folder / NAME).unlink(missing_ok=True)
        os.close(handle)


def _acquire(path: Path, until: float) -> int:
    """Open and lock ``path``; a file that its last owner has deleted in between is opened again."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(handle, path, until)
            if _is_same(handle, path):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _is_same(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _lock(handle: int, path: Path, until: float) -> None:
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > until:
                owner = os.pread(handle, 200, 0).decode(errors="replace") or "another process"
                raise ConfigError(
                    f"A folder can have one training at a time, but {path.parent} is in use by {owner}. Wait "
                    "for it, or choose another --extra_tag."
                ) from None
            time.sleep(0.1)
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
            logging.getLogger("pcdet_freeze").warning(
                "%s has no locks (%s): start one training at a time in it.", path.parent, error.strerror
            )
            return
    with suppress(OSError):  # a full disk; the lock holds without the name of its owner
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)


def _close_in_child() -> None:
    """A data worker must not keep the lock of a run whose main process was killed."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
