"""The list as a data set sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, overload

import numpy as np

from pcdet_freeze.datasets.packed.format import Group
from pcdet_freeze.datasets.packed.kinds import Kind
from pcdet_freeze.errors import DataError


class Store(Protocol):
    """Where the entries are."""

    groups: list[Group]

    def __len__(self) -> int:
        """Number of entries."""

    def record(self, number: int) -> Any:
        """Entry ``number``."""

    def column(self, name: str) -> np.ndarray:
        """(N,) values of all entries, see :class:`.kinds.Kind`."""


class InMemory:
    """Entries as Python objects, for short lists and where nothing can be written."""

    def __init__(self, kind: Kind, items: list[Any], groups: list[Group]) -> None:
        self.kind, self.items, self.groups = kind, items, groups
        self._columns: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.items)

    def record(self, number: int) -> Any:
        """Entry ``number``, the object itself."""
        return self.items[number]

    def column(self, name: str) -> np.ndarray:
        """(N,) values of all entries; all columns are computed with the first one."""
        if not self._columns and self.items:
            values = [self.kind.columns(item) for item in self.items]
            self._columns = {key: np.array([value[key] for value in values]) for key in values[0]}
        return self._columns.get(name, np.zeros(0, bool))


class Rows(Sequence[Any]):
    """Some entries of a store, in order; ``rows[i]`` reads one, ``rows[a:b:c]`` and ``where`` read none.

    An entry of a packed file is read anew each time, so a change of it is not seen again.
    """

    def __init__(self, store: Store, numbers: np.ndarray | None = None) -> None:
        self.store = store
        self.numbers = np.arange(len(store)) if numbers is None else numbers

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Rows: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return Rows(self.store, self.numbers[index])
        return self.store.record(int(self.numbers[index]))

    def get(self, index: int) -> Any:
        """Entry ``index``, None where it cannot be read: for its name in a message."""
        try:
            return self[index]
        except DataError:
            return None

    def column(self, name: str) -> np.ndarray:
        """(N,) values of these entries."""
        return self.store.column(name)[self.numbers] if len(self.numbers) else np.zeros(0, bool)

    def where(self, chosen: np.ndarray) -> Rows:
        """The entries that the mask (N,) chooses."""
        return Rows(self.store, self.numbers[chosen])

    def group(self, source: int, name: str) -> Rows:
        """All entries of the store in group ``name`` of the file number ``source``."""
        ranges = [np.arange(b, e) for s, n, b, e in self.store.groups if (s, n) == (source, name)]
        return Rows(self.store, np.concatenate([np.zeros(0, np.int64), *ranges]))

    def __add__(self, other: Rows) -> Rows:
        return Rows(self.store, np.concatenate([self.numbers, other.numbers]))
