"""Pickles of data frames as pandas 1 and 2 write them; pandas is not needed."""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np

_PythonPickler: Any = pickle._Pickler  # the one in C has no save_global to override


class Named:
    """Something that a pickle names as ``module.name`` and does not hold."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class Call:
    """The result of calling ``function`` with ``args``."""

    def __init__(self, function: Named, args: tuple[Any, ...]) -> None:
        self.function, self.args = function, args


class New:
    """An object of the class ``kind``, made without arguments; ``state`` is set afterwards."""

    def __init__(self, kind: Named, state: Any) -> None:
        self.kind, self.state = kind, state


class _Pickler(_PythonPickler):  # type: ignore[misc]  # typeshed does not list it
    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, Named):
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, Call):
            self.save(obj.function)
            self.save(obj.args)
            self.write(pickle.REDUCE)
        elif isinstance(obj, New):
            self.save(obj.kind)
            self.write(pickle.EMPTY_TUPLE + pickle.NEWOBJ)
            self.save(obj.state)
            self.write(pickle.BUILD)
        else:
            super().save(obj, save_persistent_id)


def dumps(value: Any, protocol: int = 3) -> bytes:
    """``value``, in which there may be ``Named`` and ``Call``, as a pickle."""
    out = io.BytesIO()
    _Pickler(out, protocol).dump(value)
    return out.getvalue()


def data_frame(version: int = 1, protocol: int = 3, **columns: Any) -> bytes:
    """The pickle of a DataFrame, with a block for each type of column, as pandas ``version`` has them."""
    names, groups = list(columns), dict[str, list[int]]()
    arrays = [np.asarray(values, object if _has_text(values) else None) for values in columns.values()]
    for place, values in enumerate(arrays):
        groups.setdefault(values.dtype.str, []).append(place)
    blocks = [(np.stack([arrays[place] for place in group]), group) for group in groups.values()]
    make = _manager_of_1 if version == 1 else _manager_of_2
    key = "_data" if version == 1 else "_mgr"
    axes = [_index(data=np.array(names, object)), _range(len(arrays[0]) if arrays else 0)]
    state = {key: make(axes, blocks), "_typ": "dataframe", "_metadata": [], "attrs": {}}
    return dumps(New(Named("pandas.core.frame", "DataFrame"), state), protocol)


def _has_text(values: Any) -> bool:
    return any(isinstance(value, str) or value is None for value in values)


def _slice(places: list[int]) -> Any:
    """Places as a slice where they are evenly spaced, as pandas stores them."""
    step = places[1] - places[0] if len(places) > 1 else 1
    even = list(range(places[0], places[0] + step * len(places), step))
    if even != places:
        return np.array(places)
    return slice(places[0], places[0] + step * len(places), step)


def _manager_of_1(axes: list[Any], blocks: list[tuple[np.ndarray, list[int]]]) -> New:
    parts = [{"values": values, "mgr_locs": _slice(places)} for values, places in blocks]
    items = [_index(data=np.array([f"c{place}" for place in places], object)) for _, places in blocks]
    state = (axes, [values for values, _ in blocks], items, {"0.14.1": {"axes": axes, "blocks": parts}})
    return New(Named("pandas.core.internals.managers", "BlockManager"), state)


def _manager_of_2(axes: list[Any], blocks: list[tuple[np.ndarray, list[int]]]) -> Call:
    unpickle = Named("pandas._libs.internals", "_unpickle_block")
    parts = tuple(Call(unpickle, (values, _slice(places), 2)) for values, places in blocks)
    return Call(Named("pandas.core.internals.managers", "BlockManager"), (parts, axes))


def _index(name: str = "Index", module: str = "base", **parts: Any) -> Call:
    kind = Named(f"pandas.core.indexes.{module}", name)
    return Call(Named("pandas.core.indexes.base", "_new_Index"), (kind, {**parts, "name": None}))


def _range(rows: int) -> Call:
    return _index("RangeIndex", "range", start=0, stop=rows, step=1)
