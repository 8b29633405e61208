"""One verdict for all ranks: none raises while another goes on and waits for it for ever."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def agree(findings: Sequence[str]) -> list[str]:
    """What all ranks found, each line with its rank; in a single process, ``findings`` as they are.

    Every rank of the default group must call this.
    """
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return list(findings)
    gathered: list[list[str]] = [[] for _ in range(distributed.get_world_size())]
    distributed.all_gather_object(gathered, list(findings))
    return [f"rank {rank}: {line}" for rank, lines in enumerate(gathered) for line in lines]
