"""Pickles of plain values and numpy arrays, loaded without running code."""

from __future__ import annotations

import os
import pickle
import tracemalloc
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pcdet_freeze.utils.untrusted_files.safe_pickle import load_plain

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


class RunsCode:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("owned",)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_values_of_every_protocol_are_loaded(protocol: int) -> None:
    value = {"a": [1, 2.5, None, True], "b": (b"", b"raw", "text"), "c": {"d": -3}}
    assert load_plain(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "array",
    [np.zeros(3, ">i4"), np.asfortranarray(np.eye(3, 4)), np.zeros((0, 7), "f4"), np.array(["a", "bc"]),
     np.array(5), np.array([True, False]), np.arange(4, dtype=np.uint8)],
)  # fmt: skip
def test_arrays_keep_dtype_shape_and_values_and_are_writable(array: np.ndarray, protocol: int) -> None:
    found = load_plain(pickle.dumps(array, protocol))
    assert (found.dtype, found.shape) == (array.dtype, array.shape) and found.flags.writeable
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("core", [b"numpy.core", b"numpy._core"])
def test_arrays_of_numpy_1_and_2_are_loaded(core: bytes) -> None:
    raw = pickle.dumps(np.arange(3), 2)  # protocol 2 spells module names without a length
    raw = raw.replace(b"numpy._core", b"numpy.core").replace(b"numpy.core", core)
    np.testing.assert_array_equal(load_plain(raw), np.arange(3))


@pytest.mark.parametrize(
    "value",
    [RunsCode(), {"a": [RunsCode()]}, np.array([RunsCode()], object), np.zeros(2, "i4,f4"), Path("x"), eval,
     OrderedDict(a=1), {1, 2}],
)  # fmt: skip
def test_other_values_are_an_error_and_no_code_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(pickle.UnpicklingError):
        load_plain(pickle.dumps(value))
    assert list(tmp_path.iterdir()) == []


class SharedBytes:
    """An array, or scalar, that is rebuilt from bytes that others are rebuilt from, too."""

    def __init__(self, raw: bytes, scalar: bool) -> None:
        self.raw, self.scalar = raw, scalar

    def __reduce__(self) -> Any:
        function, arguments, _ = np.zeros(1, "u1").__reduce__()  # type: ignore[misc]
        if self.scalar:
            return np.bytes_(b"x").__reduce__()[0], (np.dtype(f"S{len(self.raw)}"), self.raw)
        return function, arguments, (1, (len(self.raw),), np.dtype("u1"), False, self.raw)


@pytest.mark.parametrize("scalar", [False, True])
@pytest.mark.parametrize("protocol", [2, 4])
def test_memory_is_bounded_where_arrays_share_their_bytes(protocol: int, scalar: bool) -> None:
    raw = bytes(20_000)
    stream = pickle.dumps([SharedBytes(raw, scalar) for _ in range(1000)], protocol)
    assert len(stream) < 100_000
    tracemalloc.start()
    with pytest.raises(pickle.UnpicklingError, match=r"share their bytes|a scalar of 20000 bytes"):
        load_plain(stream)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1000 * len(raw) / 2
