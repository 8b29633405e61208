"""Load a pickled pandas DataFrame as numpy columns: no pandas, and no code that the pickle names.

A frame is a block manager: arrays with one row for each column of a type, and the columns' places. The
stand-ins below keep these parts, as pandas 0.25 to 2 write them; every other name is an error.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

from pcdet_freeze.utils.untrusted_files.bounded import FEW_VALUES, VALUES_PER_BYTE
from pcdet_freeze.utils.untrusted_files.pickle_memo import check_memo
from pcdet_freeze.utils.untrusted_files.safe_pickle import (
    ALLOWED,
    Array,
    Dtype,
    Function,
    PlainUnpickler,
    from_buffer,
)

_STATE = "0.14.1"
"""key of a block manager's state in pandas before 1.3"""
_SCALARS = (str, int, float, bool, type(None))


def load_data_frame(raw: bytes) -> dict[str, np.ndarray]:
    """Columns (rows,) of the frame that is pickled in ``raw``, by name; arrays may be read-only.

    Columns of numbers have their dtype. Other columns are arrays of objects: text, numbers or booleans; a
    missing value (None, NaN) is an empty text.

    Raises:
        pickle.UnpicklingError: not a data frame, or a name that is not allowed.
            Damaged bytes may raise any exception.
    """
    check_memo(raw)
    frame = _FrameUnpickler(io.BytesIO(raw)).load()
    if not isinstance(frame, _Frame):
        raise pickle.UnpicklingError(f"a {type(frame).__name__}, not a pandas DataFrame")
    return _Columns(frame.manager, FEW_VALUES + VALUES_PER_BYTE * len(raw)).read()


class _Manager:
    """Stands for a block manager: its axes, and (values, places) of its blocks."""

    axes: Sequence[Any] = ()
    blocks: Sequence[Any] = ()

    def __init__(self, blocks: Sequence[Any], axes: Sequence[Any]) -> None:
        self.blocks, self.axes = blocks, axes

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        parts = state[3][_STATE]
        self.axes = parts["axes"]
        self.blocks = [(block["values"], block["mgr_locs"]) for block in parts["blocks"]]


class _Frame:
    """Stands for a DataFrame."""

    manager: _Manager

    def __setstate__(self, state: dict[str, Any]) -> None:
        manager = state["_mgr"] if "_mgr" in state else state["_data"]
        if not isinstance(manager, _Manager):
            raise pickle.UnpicklingError("a DataFrame without blocks")
        self.manager = manager


class _FrameDtype(Dtype):
    """A dtype of numbers or text, or that of Python objects."""

    def __init__(self, code: str, align: object = False, copy: object = True) -> None:
        self.objects = code in ("O", "O4", "O8")
        super().__init__("b1" if self.objects else code, align, copy)


class _FrameArray(Array):
    """An array of a frame, without a copy: numbers share the memory of the pickle, objects its list."""

    objects: list[Any] | None = None
    shape: tuple[int, ...]
    order: Literal["F", "C"]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        self.shape, self.order = shape, "F" if fortran else "C"
        if not dtype.objects:
            self.value = from_buffer(raw, dtype, shape, self.order)
        elif type(raw) is list:
            self.objects = raw
        else:
            raise pickle.UnpicklingError("an array of objects without their list")


def _new_index(kind: object, parts: dict[str, Any]) -> Any:
    """The labels of an index; None for a range, which numbers the rows."""
    return parts.get("data")


def _block(values: Any, places: Any, ndim: object = 2) -> tuple[Any, Any]:
    return values, places


_INDEX = "pandas.core.indexes"
_ALLOWED: dict[tuple[str, str], Any] = {
    **ALLOWED,
    **{
        (f"{core}.multiarray", "_reconstruct"): Function(lambda *_: _FrameArray())
        for core in ("numpy.core", "numpy._core")
    },
    ("numpy", "dtype"): _FrameDtype,
    ("pandas.core.frame", "DataFrame"): _Frame,
    ("pandas.core.internals.managers", "BlockManager"): _Manager,
    ("pandas._libs.internals", "_unpickle_block"): Function(_block),
    **{(module, "slice"): Function(range) for module in ("builtins", "__builtin__")},
    (f"{_INDEX}.base", "_new_Index"): Function(_new_index),
    (f"{_INDEX}.base", "Index"): None,  # arguments of _new_Index, never called
    (f"{_INDEX}.range", "RangeIndex"): None,
    (f"{_INDEX}.numeric", "Int64Index"): None,
}


class _FrameUnpickler(PlainUnpickler):
    allowed = _ALLOWED


class _Columns:
    """The columns of a block manager; several blocks may share one list, so objects are counted."""

    def __init__(self, manager: _Manager, most: int) -> None:
        self.manager, self.most = manager, most

    def read(self) -> dict[str, np.ndarray]:
        """Values of each column by name."""
        names = [str(name) for name in self._values(self.manager.axes[0])]
        found = dict(self._pairs(names))
        if len(found) != len(names) or len({len(column) for column in found.values()}) > 1:
            raise pickle.UnpicklingError(f"its blocks must give each of {len(names)} columns one value a row")
        return found

    def _pairs(self, names: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
        """Name and values of each column; together the blocks have one row a column."""
        left = len(names)
        for values, places in self.manager.blocks:
            rows = self._values(values)
            at = places if isinstance(places, range) else self._values(places)
            left -= len(rows)
            if rows.ndim != 2 or len(at) != len(rows) or left < 0:
                raise pickle.UnpicklingError("its blocks do not fit its columns")
            for place, row in zip(at, rows, strict=True):
                yield names[int(place)], row

    def _values(self, found: Any) -> np.ndarray:
        if isinstance(found, _FrameArray):
            return found.value if found.objects is None else self._objects(found, found.objects)
        if isinstance(found, np.ndarray):
            return found
        raise pickle.UnpicklingError(f"{type(found).__name__} is not an array")

    def _objects(self, array: _FrameArray, raw: list[Any]) -> np.ndarray:
        self.most -= len(raw)
        if self.most < 0 or not all(type(value) in _SCALARS for value in raw):
            raise pickle.UnpicklingError("a column of objects must hold one text, number or boolean a row")
        values = np.empty(len(raw), object)
        values[:] = ["" if value is None or value != value else value for value in raw]  # NaN is not itself
        return values.reshape(array.shape, order=array.order)
