"""Keys of this attempt only, in a store that outlives the processes which use it.

torchrun's store lives through restarts (``--rdzv-backend static`` and, in recent versions, c10d), and the
number of restarts may differ between machines. A rank that finds the address that a killed rank left there
cannot connect, or waits until the time-out.
"""

from __future__ import annotations

import time
import uuid
from typing import Any

import torch.distributed as dist

from pcdet_freeze.errors import TrainingError

POLL_S = 0.02


def fresh_store(store: Any, rank: int, size: int, timeout: float) -> Any:
    """Return ``store`` with a prefix that the ranks of this attempt agree on, and no earlier one knows.

    Each rank writes an id of its own, under which rank 0 answers with the prefix; answers to the ids of
    killed ranks are read by nobody. Rank 0 answers until all ranks have confirmed its prefix.

    Raises:
        TrainingError: a rank did not come within ``timeout`` seconds.
    """
    own, until = uuid.uuid4().hex, time.monotonic() + timeout
    if rank == 0:
        _answer(store, own, size, until)
        prefix = own
    else:
        store.set(f"join/{rank}", own)
        _wait(store, f"answer/{own}", until, "rank 0")
        prefix = store.get(f"answer/{own}").decode()
        store.set(f"confirm/{prefix}/{rank}", "1")
    return dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]  # not in __all__


def _answer(store: Any, prefix: str, size: int, until: float) -> None:
    missing = set(range(1, size))
    while missing:
        for rank in sorted(missing):
            if store.check([f"join/{rank}"]):
                store.set(f"answer/{store.get(f'join/{rank}').decode()}", prefix)
            if store.check([f"confirm/{prefix}/{rank}"]):
                missing.discard(rank)
        _pause(until, f"ranks {sorted(missing)}" if missing else "")


def _wait(store: Any, key: str, until: float, who: str) -> None:
    while not store.check([key]):
        _pause(until, who)


def _pause(until: float, who: str) -> None:
    if who and time.monotonic() > until:
        raise TrainingError(f"All ranks must start within --timeout, but {who} did not. Look at its log.")
    if who:
        time.sleep(POLL_S)
