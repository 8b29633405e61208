"""Load pickles of plain Python values and numpy arrays without running code that they name.

A pickle names functions that rebuild its values. None of numpy's is called here: the stand-ins below rebuild
dtypes and arrays from a type code, a shape and raw bytes. They stand for ``numpy.core`` (numpy 1.x) and
``numpy._core`` (2.x); every other name is an error.
"""

from __future__ import annotations

import io
import pickle
import re
from typing import Any

import numpy as np

_PLAIN = re.compile(r"[biufcSU]\d+")  # numbers, booleans, text; no objects, no records


def load_plain(raw: bytes) -> Any:
    """Load the value in ``raw``.

    Raises:
        pickle.UnpicklingError: a name that is not allowed. Damaged bytes may raise any exception.
    """
    return _finished(_PlainUnpickler(io.BytesIO(raw)).load())


class _Dtype:
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


class _Array:
    """Stands for a numpy array until its state is set."""

    value: np.ndarray

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        self.value = _frombuffer(raw, dtype, shape, "F" if fortran else "C").copy(order="K")


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _frombuffer(raw: Any, dtype: _Dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    """Rebuild a large array of protocol 5."""
    if dtype.real.itemsize == 0:
        return np.zeros(shape, dtype.real)
    return np.frombuffer(raw, dtype.real).reshape(shape, order="F" if order == "F" else "C")


def _scalar(dtype: _Dtype, raw: bytes) -> Any:
    return _frombuffer(raw, dtype, (), "C")[()]


def _encode(text: str, encoding: str) -> bytes:
    """Rebuild bytes of protocols up to 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes encoded as {encoding}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """Rebuild empty bytes of protocols up to 2."""
    return b""


_CORES = ("numpy.core", "numpy._core")
NUMPY_SCALARS: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _no_bytes,
    **{(f"{core}.multiarray", "scalar"): _scalar for core in _CORES},
}
"""(module, name) in a pickled numpy scalar -> its stand-in"""
_ALLOWED: dict[tuple[str, str], Any] = {
    **NUMPY_SCALARS,
    ("numpy", "ndarray"): None,  # an argument of _reconstruct, never called
    **{(f"{core}.multiarray", "_reconstruct"): _reconstruct for core in _CORES},
    **{(f"{core}.numeric", "_frombuffer"): _frombuffer for core in _CORES},
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        raise pickle.UnpicklingError(f"{module}.{name} is neither a plain value nor a numpy array")


def _finished(value: Any) -> Any:
    """``value`` with arrays in place of their stand-ins."""
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, dict):
        return {key: _finished(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_finished(item) for item in value)
    if isinstance(value, np.ndarray):
        return value.copy(order="K")  # from a buffer of the file: make it writable
    if value is not None and not isinstance(value, str | bytes | int | float | complex | np.generic):
        raise pickle.UnpicklingError(f"{type(value).__name__} is neither a plain value nor a numpy array")
    return value
