"""Load pickles of plain Python values and numpy arrays without running code that they name.

A pickle names functions that rebuild its values. None of numpy's is called here: the stand-ins below rebuild
dtypes and arrays from a type code, a shape and raw bytes. They stand for ``numpy.core`` (numpy 1.x) and
``numpy._core`` (2.x); every other name is an error.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from pcdet_freeze.utils.untrusted_files.bounded import FEW_VALUES, MAX_DEPTH, VALUES_PER_BYTE
from pcdet_freeze.utils.untrusted_files.pickle_memo import check_memo

LONGEST_SCALAR = 1024
"""bytes of a numpy scalar"""
_PLAIN = re.compile(r"[biufcSU]\d+")  # numbers, booleans, text; no objects, no records


def load_plain(raw: bytes) -> Any:
    """Load the value in ``raw``, in time and memory that its length bounds.

    Raises:
        pickle.UnpicklingError: a name that is not allowed, or values nested or repeated without bound.
            Damaged bytes may raise any exception.
    """
    check_memo(raw)
    value = PlainUnpickler(io.BytesIO(raw)).load()
    return _Finisher(FEW_VALUES + VALUES_PER_BYTE * len(raw))(value)


class Dtype:
    """Stands for a numpy dtype: a type code, and the byte order of its state."""

    def __init__(self, code: str, align: object = False, copy: object = True) -> None:
        if not isinstance(code, str) or not _PLAIN.fullmatch(code):
            raise pickle.UnpicklingError(f"an array of {code!r} is neither numbers nor text")
        self.code = code
        self.order = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = {"<": "<", ">": ">", "|": "=", "=": "="}[state[1]]

    @property
    def real(self) -> np.dtype:
        return np.dtype(self.order + self.code)


class Array:
    """Stands for a numpy array until its state is set."""

    value: np.ndarray

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        self.value = from_buffer(raw, dtype, shape, "F" if fortran else "C")  # no copy: raw may be shared


def _reconstruct(*_: object) -> Array:
    return Array()


def from_buffer(raw: Any, dtype: Dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    """Rebuild a large array of protocol 5."""
    if dtype.real.itemsize == 0:  # no bytes, whatever the shape says
        if math.prod(shape) > FEW_VALUES:
            raise pickle.UnpicklingError(f"an array of shape {shape} of empty strings")
        return np.zeros(shape, dtype.real)
    return np.frombuffer(raw, dtype.real).reshape(shape, order="F" if order == "F" else "C")


def _scalar(dtype: Dtype, raw: bytes) -> Any:
    if len(raw) > LONGEST_SCALAR:  # each use of the same bytes makes a copy
        raise pickle.UnpicklingError(f"a scalar of {len(raw)} bytes")
    return from_buffer(raw, dtype, (), "C")[()]


class _Encode:
    """Rebuilds bytes of protocols up to 2; a text that occurs again gives the same bytes."""

    def __init__(self) -> None:
        self.known: dict[int, tuple[str, bytes]] = {}

    def __call__(self, text: str, encoding: str) -> bytes:
        if encoding != "latin1":
            raise pickle.UnpicklingError(f"bytes encoded as {encoding}")
        if id(text) not in self.known:
            self.known[id(text)] = text, text.encode("latin1")
        return self.known[id(text)][1]


def _encode(text: str, encoding: str) -> bytes:
    return _Encode()(text, encoding)


def _no_bytes() -> bytes:
    """Rebuild empty bytes of protocols up to 2."""
    return b""


class Function:
    """A stand-in that a pickle may call, but not change: BUILD would set attributes of a plain function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("a pickle must not change the functions that it names")


_ENCODE = ("_codecs", "encode")
_CORES = ("numpy.core", "numpy._core")
NUMPY_SCALARS: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): Dtype,
    _ENCODE: Function(_encode),
    ("__builtin__", "bytes"): Function(_no_bytes),
    **{(f"{core}.multiarray", "scalar"): Function(_scalar) for core in _CORES},
}
"""(module, name) in a pickled numpy scalar -> its stand-in"""
ALLOWED: dict[tuple[str, str], Any] = {
    **NUMPY_SCALARS,
    ("numpy", "ndarray"): None,  # an argument of _reconstruct, never called
    **{(f"{core}.multiarray", "_reconstruct"): Function(_reconstruct) for core in _CORES},
    **{(f"{core}.numeric", "_frombuffer"): Function(from_buffer) for core in _CORES},
}
"""(module, name) in a pickle of plain values and arrays -> its stand-in, or None if it is never called"""


class PlainUnpickler(pickle.Unpickler):
    """Calls only the stand-ins in ``allowed``; every other name is an UnpicklingError."""

    allowed = ALLOWED

    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self.allowed = {**self.allowed, _ENCODE: Function(_Encode())}

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in of a name in the pickle, see :class:`pickle.Unpickler`."""
        if (module, name) in self.allowed:
            return self.allowed[module, name]
        raise pickle.UnpicklingError(f"{module}.{name} is neither a plain value nor a numpy array")


class _Finisher:
    """Puts arrays in place of their stand-ins, once for each object.

    A container that is referred to twice stays one object, but counts twice: code that walks over the
    value meets it twice. Doubled references, forty deep, would make 2**40 values of a few bytes.
    """

    def __init__(self, most: int) -> None:
        self.most, self.count, self.copied = most, 0, 0
        self.done: dict[int, tuple[Any, int] | None] = {}
        """id of an object in the pickle -> (what it became, values in it); None: not yet complete"""

    def __call__(self, value: Any, depth: int = 0) -> Any:
        if value is None or isinstance(value, str | bytes | int | float | complex | np.generic):
            self.count += 1
            return value
        if id(value) in self.done:
            found = self.done[id(value)]
            if found is None or self.count + found[1] > self.most:
                raise pickle.UnpicklingError(f"its references are nested: more than {self.most} values")
            self.count += found[1]
            return found[0]
        if depth > MAX_DEPTH:
            raise pickle.UnpicklingError(f"it is nested more than {MAX_DEPTH} levels deep")
        before = self.count
        self.done[id(value)] = None
        result = self._made(value, depth + 1)
        self.count += 1
        self.done[id(value)] = result, self.count - before
        return result

    def _made(self, value: Any, depth: int) -> Any:
        if isinstance(value, Array):
            return self._copied(value.value)
        if isinstance(value, dict):
            return {key: self(item, depth) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self(item, depth) for item in value)
        if isinstance(value, np.ndarray):
            return self._copied(value)
        raise pickle.UnpicklingError(f"{type(value).__name__} is neither a plain value nor a numpy array")

    def _copied(self, array: np.ndarray) -> np.ndarray:
        """A writable copy of an array that lies in the file's bytes; several may lie in the same ones."""
        self.copied += array.nbytes
        if self.copied > self.most:
            raise pickle.UnpicklingError(f"its arrays share their bytes: more than {self.most} in all")
        return array.copy(order="K")
