"""A store of keys in rank 0, apart from torch's own: torchrun's ends with torchrun."""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from typing import Protocol

import torch.distributed as dist

from pcdet_freeze.utils import distributed


class Store(Protocol):
    """What the ranks need of a ``torch.distributed.Store``."""

    def set(self, key: str, value: str) -> object:
        """Write a key."""

    def get(self, key: str) -> bytes:
        """Read a key, which must exist."""

    def multi_get(self, keys: list[str], /) -> list[bytes]:
        """Read several keys, which must exist."""

    def check(self, keys: list[str], /) -> bool:
        """Whether all keys exist."""


def open_store(timeout: float) -> Store:
    """A TCPStore on a free port of rank 0's machine (MASTER_ADDR); a collective call."""
    host, wait = os.environ.get("MASTER_ADDR") or socket.gethostname(), timedelta(seconds=timeout)
    tcp_store = dist.TCPStore  # type: ignore[attr-defined]  # not in __all__
    if distributed.rank() == 0:
        store = tcp_store(host, 0, is_master=True, wait_for_workers=False, timeout=wait)
        distributed.from_main((host, store.port))
        return store
    host, port = distributed.from_main((host, 0))
    return tcp_store(host, port, is_master=False, wait_for_workers=False, timeout=wait)
