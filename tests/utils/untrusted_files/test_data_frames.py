"""Pickled data frames, loaded as numpy columns without pandas and without running code."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pandas_pickles import Call, Named, New, data_frame, dumps

from pcdet_freeze.utils.untrusted_files.data_frames import load_data_frame

COLUMNS = {"x": np.arange(4) / 2, "label": ["Car", None, "Bus", "Car"], "d": np.arange(4),
           "still": np.array([True, False, True, True]), "y": np.ones(4), "z": -np.arange(4.0)}  # fmt: skip
FRAME = Named("pandas.core.frame", "DataFrame")
MANAGER = Named("pandas.core.internals.managers", "BlockManager")


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_columns_keep_their_types_and_values(version: int, protocol: int) -> None:
    found = load_data_frame(data_frame(version, protocol, **COLUMNS))
    assert set(found) == set(COLUMNS)
    for name in ("x", "d", "still", "y", "z"):
        assert found[name].dtype == COLUMNS[name].dtype
        np.testing.assert_array_equal(found[name], COLUMNS[name])
    assert found["label"].tolist() == ["Car", "", "Bus", "Car"]


def test_a_missing_value_of_a_text_column_is_an_empty_text() -> None:
    found = load_data_frame(data_frame(a=["left", float("nan"), None]))
    assert found["a"].tolist() == ["left", "", ""]


def test_a_frame_without_rows_has_its_columns() -> None:
    found = load_data_frame(data_frame(x=np.zeros(0), d=np.zeros(0, np.int64)))
    assert {name: len(column) for name, column in found.items()} == {"x": 0, "d": 0}


class RunsCode:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("owned",)


@pytest.mark.parametrize("raw", [
    pickle.dumps(RunsCode()),
    data_frame(label=["Car", RunsCode()]),
    data_frame(x=np.zeros(3)).replace(b"pandas.core.frame\nDataFrame", b"os\nsystem"),
    dumps(New(FRAME, {"_mgr": Call(Named("pandas", "read_pickle"), ("other.pkl",))})),
    dumps(Call(Named("pandas.core.frame", "read_csv"), ())),
])  # fmt: skip
def test_other_names_are_an_error_and_no_code_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raw: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(pickle.UnpicklingError):
        load_data_frame(raw)
    assert list(tmp_path.iterdir()) == []


def frame_of(blocks: tuple[Any, ...], *names: str) -> bytes:
    index = Call(Named("pandas.core.indexes.base", "_new_Index"),
                 (Named("pandas.core.indexes.base", "Index"), {"data": np.array(names, object)}))  # fmt: skip
    parts = tuple(Call(Named("pandas._libs.internals", "_unpickle_block"), block) for block in blocks)
    return dumps(New(FRAME, {"_mgr": Call(MANAGER, (parts, [index]))}))


ROWS = np.zeros((1, 5))


@pytest.mark.parametrize("raw", [
    dumps({"x": np.zeros(3)}),
    dumps(New(FRAME, {"_mgr": {}})),
    frame_of(((ROWS, slice(0, 1, 1), 2),), "x", "y"),  # a column without values
    frame_of(((ROWS, slice(0, 1, 1), 2), (np.zeros((1, 6)), slice(1, 2, 1), 2)), "x", "y"),
    frame_of(((ROWS, slice(0, 2, 1), 2),), "x", "y"),
    frame_of(((ROWS, slice(0, 1, 1), 2),) * 3, "x"),
    frame_of(((np.zeros((10**9, 0)), slice(0, 10**9, 1), 2),), "x"),
    frame_of(((np.array([[[1], [2]]], object), slice(0, 1, 1), 2),), "x"),
])  # fmt: skip
def test_blocks_that_do_not_fit_the_columns_are_an_error(raw: bytes) -> None:
    with pytest.raises(pickle.UnpicklingError):
        load_data_frame(raw)


def test_a_list_that_many_columns_share_is_not_copied_without_bound() -> None:
    array = np.full((1, 20_000), "a", object)
    blocks = tuple((array, slice(n, n + 1, 1), 2) for n in range(400))
    raw = frame_of(blocks, *(f"c{n}" for n in range(400)))
    assert len(raw) < 200_000
    with pytest.raises(pickle.UnpicklingError, match="a column of objects"):
        load_data_frame(raw)
