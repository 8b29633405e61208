"""One training forward whose prefix outputs are written to a store or read from it."""

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
    """One sample as the data set draws it: its row, and the checksum of its points."""

    row: int
    source: int


class StoreStep:
    """Serves a ``CachedForward`` on the samples ``entries``.

    If a row is missing, the whole batch is computed and the missing rows are written, as far as the store
    takes them. The forward always continues with values as the store returns them, so that a sample has the
    same values in every epoch.

    Args:
        limit: compute the batch in any case and compare it with the rows that exist; FreezeError if the
            relative error (L2) of one is above ``limit``. None: do not compare.
    """

    def __init__(self, store: Store, entries: Sequence[Entry], device: torch.device, limit: float | None):
        self.store, self.entries, self.device, self.limit = store, list(entries), device, limit
        self.missing = [n for n, e in enumerate(self.entries) if not store.holds(e.row, e.source)]
        self.supplies = not self.missing and limit is None
        store.drop_begun()  # of a forward that was interrupted before its own end or abort
        self._written = [n for n in self.missing if store.begin(self.entries[n].row)]

    def take(self, slot: Slot, value: Tensor) -> Tensor:
        """Write the missing rows of ``value`` (B, *shape); returns what a later forward will read."""
        if value.shape != (len(self.entries), *slot.shape) or value.dtype != slot.dtype:
            raise FreezeError(
                f"A cached output must have one shape in every step, but {slot.name} was {slot.shape} "
                f"({slot.dtype}) a sample and is {tuple(value.shape)} ({value.dtype}) for "
                f"{len(self.entries)} samples now. Set FREEZE.CACHE: null."
            )
        rows = [entry.row for entry in self.entries]
        self._written = [n for n in self._written if self.store.write(slot, rows[n], value[n])]
        kept = self.store.rounded(slot, value)
        there = [number for number in range(len(rows)) if number not in self.missing]
        if there:
            kept[there] = self.store.read(slot, [rows[number] for number in there], self.device)
        if self.limit is not None:
            self._compare(slot, value, kept, self.limit)
        return kept

    def give(self, slot: Slot) -> Tensor:
        """(B, *shape) from the store."""
        return self.store.read(slot, [entry.row for entry in self.entries], self.device)

    def finish(self) -> None:
        """Mark the rows as valid: all of their tensors are written."""
        for number in self._written:
            self.store.mark(self.entries[number].row, self.entries[number].source)

    def abort(self) -> None:
        """Leave the missing rows invalid: the forward did not end. They count in no limit."""
        self._written = []
        self.store.drop_begun()

    def _compare(self, slot: Slot, value: Tensor, kept: Tensor, limit: float) -> None:
        for number, entry in enumerate(self.entries):
            error = output_error([value[number]], [kept[number]])
            if not error <= limit:
                raise FreezeError(
                    f"A cache must hold the outputs of its prefix, but row {entry.row} of {slot.name} in "
                    f"{self.store.folder} has a relative error (L2) of {error:.1e}: the code of a frozen "
                    "module or its input changed. Delete that folder; it will be filled again."
                )
