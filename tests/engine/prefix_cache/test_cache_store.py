"""F7, the files: a row is returned exactly as it was stored, or it is not there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from pcdet_freeze.engine.prefix_cache.step import Entry, StoreStep
from pcdet_freeze.engine.prefix_cache.store import Store, size_text
from pcdet_freeze.errors import FreezeError
from pcdet_freeze.freezing.prefix.boundary import Slot

CPU = torch.device("cpu")
MAP = Slot("blocks.0", 0, "", (3, 2, 2), torch.float32)
CLASSES = Slot("vfe", 0, "labels", (4,), torch.int64)


def opened(folder: Path, rows: int = 5, dtype: torch.dtype = torch.float32) -> Store:
    store = Store(folder, (MAP, CLASSES), rows, dtype)
    store.open({"versions": "1"})
    return store


def put(store: Store, row: int, source: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    """Two random tensors, written and marked."""
    draw = torch.Generator().manual_seed(row)
    values = torch.randn(3, 2, 2, generator=draw), torch.randint(9, (4,), generator=draw)
    store.begin(row)
    for slot, value in zip(store.slots, values, strict=True):
        store.write(slot, row, value)
    store.mark(row, source)
    return values


def test_f7_a_row_comes_back_to_the_bit_in_another_process_too(tmp_path: Path) -> None:
    first = opened(tmp_path)
    values = {row: put(first, row) for row in (3, 1)}
    again = opened(tmp_path)
    assert again.filled == 2 and again.holds(3, 7) and again.holds(1, 7)
    for number, slot in enumerate((MAP, CLASSES)):
        expected = torch.stack([values[1][number], values[3][number]])
        assert torch.equal(again.read(slot, [1, 3], CPU), expected)


def test_f7_nan_and_negative_zero_come_back_too(tmp_path: Path) -> None:
    store = opened(tmp_path)
    odd = torch.tensor([float("nan"), -0.0, float("inf"), 1e-45]).repeat(3).view(3, 2, 2)
    store.write(MAP, 0, odd)
    assert torch.equal(store.read(MAP, [0], CPU)[0].view(torch.int32), odd.view(torch.int32))


def test_f7_a_bf16_store_takes_half_the_space_and_rounds_once(tmp_path: Path) -> None:
    store = opened(tmp_path, dtype=torch.bfloat16)
    value, labels = put(store, 2)
    assert torch.equal(store.read(MAP, [2], CPU)[0], value.bfloat16().float())
    assert torch.equal(store.read(CLASSES, [2], CPU)[0], labels)
    assert (tmp_path / "0.bin").stat().st_size == 5 * 12 * 2


def test_f7_a_row_is_not_there_before_its_mark_nor_for_other_points(tmp_path: Path) -> None:
    store = opened(tmp_path)
    assert not store.holds(4, 7)
    store.begin(4)
    store.write(MAP, 4, torch.ones(3, 2, 2))
    assert not store.holds(4, 7) and not opened(tmp_path).holds(4, 7)
    store.mark(4, 7)
    assert store.holds(4, 7) and not store.holds(4, 8)


def test_f7_a_row_that_is_being_written_again_is_not_there_meanwhile(tmp_path: Path) -> None:
    store = opened(tmp_path)
    put(store, 0)
    store.begin(0)
    assert not store.holds(0, 7) and not opened(tmp_path).holds(0, 7)


def test_f7_a_row_of_which_a_byte_was_lost_is_not_there(tmp_path: Path) -> None:
    store = opened(tmp_path)
    put(store, 0)
    put(store, 1)
    with open(tmp_path / "0.bin", "r+b") as file:
        file.seek(5)
        file.write(b"\x55")
    again = opened(tmp_path)
    assert not again.holds(0, 7) and again.holds(1, 7)


def test_f7_a_file_that_was_cut_off_is_an_error_that_names_it(tmp_path: Path) -> None:
    opened(tmp_path)
    os.truncate(tmp_path / "0.bin", 100)
    with pytest.raises(FreezeError, match=r"0\.bin must have 240 bytes, but has 100: .*Delete"):
        opened(tmp_path)


def test_f7_a_disk_without_room_is_an_error_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(FreezeError, match=r"needs 9[\d,.]+ GB and .*fewer VARIANTS or DTYPE: bfloat16"):
        opened(tmp_path, rows=10**12)
    assert list(tmp_path.iterdir()) == []


def test_f7_a_folder_that_cannot_be_written_to_is_an_error_with_the_cure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FreezeError, match=r"needs a folder in which .*Choose another FOLDER"):
        opened(tmp_path / "file" / "key")


def test_f7_the_space_is_reserved_and_the_folder_says_what_it_is(tmp_path: Path) -> None:
    store = opened(tmp_path, rows=1000)
    assert (tmp_path / "0.bin").stat().st_blocks * 512 >= 1000 * 48
    assert store.nbytes == 1000 * (48 + 32 + 16)
    assert json.loads((tmp_path / "cache.json").read_text()) == {"versions": "1"}
    store.prefetch([0, 999])


def test_f7_a_forward_that_did_not_end_leaves_no_row(tmp_path: Path) -> None:
    store = opened(tmp_path)
    step = StoreStep(store, [Entry(0, 7), Entry(1, 7)], CPU, None)
    step.take(MAP, torch.ones(2, 3, 2, 2))
    assert store.filled == 0
    step.take(CLASSES, torch.ones(2, 4, dtype=torch.int64))
    step.finish()
    assert store.filled == 2 and StoreStep(store, [Entry(1, 7)], CPU, None).supplies


def test_f7_a_sample_that_is_there_keeps_its_values_when_its_batch_is_computed_again(tmp_path: Path) -> None:
    store = opened(tmp_path)
    (kept, _) = put(store, 0)
    step = StoreStep(store, [Entry(0, 7), Entry(1, 7)], CPU, None)
    assert not step.supplies and step.missing == [1]
    new = torch.full((2, 3, 2, 2), 5.0)
    assert torch.equal(step.take(MAP, new), torch.stack([kept, new[1]]))


@pytest.mark.parametrize("value", [torch.ones(1, 3, 2, 3), torch.ones(1, 3, 2, 2).double()])
def test_f7_an_output_of_another_shape_or_type_is_an_error(tmp_path: Path, value: Any) -> None:
    step = StoreStep(opened(tmp_path), [Entry(0, 7)], CPU, None)
    with pytest.raises(FreezeError, match="one shape in every step, but blocks"):
        step.take(MAP, value)


def test_sizes_are_told_in_units_that_read_well() -> None:
    assert [size_text(n) for n in (12, 1234, 5.6e6, 1.23e13)] == ["12 B", "1.23 kB", "5.6 MB", "12,300.0 GB"]
