"""One training forward whose prefix is written to a store, or read from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pcdet_freeze.engine.prefix_cache.store import Store
from pcdet_freeze.errors import FreezeError
from pcdet_freeze.freezing.prefix.boundary import Slot
from pcdet_freeze.freezing.prefix.validate import output_error


@dataclass(frozen=True)
class Entry:
    """One sample as the data set draws it: the row that belongs to it, and what its points were."""

    row: int
    source: int


class StoreStep:
    """The keeper (see ``freeze.fast.supply``) of a forward on the samples ``entries``.

    Where a row is missing, all of the batch is computed, and the missing rows are written. In any case the
    forward goes on with what the store holds: a sample gives the same values whenever it comes.

    Args:
        limit: compute in any case, and compare with the rows that are there; FreezeError where the relative
            difference (L2) of one is above it.
    """

    def __init__(self, store: Store, entries: Sequence[Entry], device: torch.device, limit: float | None):
        self.store, self.entries, self.device, self.limit = store, list(entries), device, limit
        self.missing = [n for n, e in enumerate(self.entries) if not store.holds(e.row, e.source)]
        self.supplies = not self.missing and limit is None
        for number in self.missing:
            store.begin(self.entries[number].row)

    def take(self, slot: Slot, value: Tensor) -> Tensor:
        """Write the missing rows of ``value`` (B, *shape); returns what a later forward will be given."""
        if value.shape != (len(self.entries), *slot.shape) or value.dtype != slot.dtype:
            raise FreezeError(
                f"A cached output must have one shape in every step, but {slot.name} was {slot.shape} "
                f"({slot.dtype}) a sample and is {tuple(value.shape)} ({value.dtype}) for "
                f"{len(self.entries)} samples now. Set FREEZE.CACHE: null."
            )
        for number in self.missing:
            self.store.write(slot, self.entries[number].row, value[number])
        kept = self.give(slot)
        if self.limit is not None:
            self._compare(slot, value, kept, self.limit)
        return kept

    def give(self, slot: Slot) -> Tensor:
        """(B, *shape) from the store."""
        return self.store.read(slot, [entry.row for entry in self.entries], self.device)

    def finish(self) -> None:
        """All was written: from now on the rows are there."""
        for number in self.missing:
            self.store.mark(self.entries[number].row, self.entries[number].source)

    def _compare(self, slot: Slot, value: Tensor, kept: Tensor, limit: float) -> None:
        for number, entry in enumerate(self.entries):
            off = output_error([value[number]], [kept[number]])
            if not off <= limit:
                raise FreezeError(
                    f"A cache must hold what its prefix puts out, but row {entry.row} of {slot.name} in "
                    f"{self.store.folder} differs by {off:.1e} (relative L2): the code of a frozen module "
                    "changed, or what feeds it. Delete that folder; it is filled anew."
                )
