"""F7, the files: a row is returned exactly as it was stored, or it is not there."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pcdet_freeze.engine.prefix_cache.compression import (
    Compression,
    compression_for,
    smallest,
    stored_as,
)
from pcdet_freeze.engine.prefix_cache.disk import size_text
from pcdet_freeze.engine.prefix_cache.step import Entry, StoreStep
from pcdet_freeze.engine.prefix_cache.store import Store
from pcdet_freeze.errors import FreezeError
from pcdet_freeze.freezing.prefix.boundary import Slot

CPU = torch.device("cpu")
MAP = Slot("blocks.0", 0, "", (3, 2, 2), torch.float32)
CLASSES = Slot("vfe", 0, "labels", (4,), torch.int64)
RAW, ZSTD, LZ4 = Compression(), Compression("zstd"), Compression("lz4", shuffle=True)
every_compression = pytest.mark.parametrize("how", [RAW, ZSTD, LZ4], ids=lambda how: how.codec)


def opened(
    folder: Path,
    rows: int = 5,
    dtype: torch.dtype = torch.float32,
    how: Compression = RAW,
    slots: tuple[Slot, ...] = (MAP, CLASSES),
    limit: int | None = None,
) -> Store:
    store = Store(folder, slots, rows, dtype, how, limit)
    store.open({"versions": "1"})
    return store


def put(store: Store, row: int, source: int = 7) -> list[torch.Tensor]:
    """Random tensors, written and marked."""
    draw = torch.Generator().manual_seed(row)
    values = [torch.randint(9, slot.shape, generator=draw).to(slot.dtype) for slot in store.slots]
    assert store.begin(row)
    for slot, value in zip(store.slots, values, strict=True):
        assert store.write(slot, row, value)
    store.mark(row, source)
    return values


@every_compression
def test_f7_a_row_comes_back_to_the_bit_in_another_process_too(tmp_path: Path, how: Compression) -> None:
    first = opened(tmp_path, how=how)
    values = {row: put(first, row) for row in (3, 1)}
    again = opened(tmp_path, how=how)
    assert again.filled == 2 and again.holds(3, 7) and again.holds(1, 7)
    for number, slot in enumerate((MAP, CLASSES)):
        expected = torch.stack([values[1][number], values[3][number]])
        assert torch.equal(again.read(slot, [1, 3], CPU), expected)


@every_compression
def test_f7_nan_and_negative_zero_come_back_too(tmp_path: Path, how: Compression) -> None:
    store = opened(tmp_path, how=how, slots=(MAP,))
    odd = torch.tensor([float("nan"), -0.0, float("inf"), 1e-45]).repeat(3).view(3, 2, 2)
    store.begin(0)
    store.write(MAP, 0, odd)
    store.mark(0, 7)
    assert torch.equal(store.read(MAP, [0], CPU)[0].view(torch.int32), odd.view(torch.int32))


@every_compression
def test_f7_a_bf16_store_takes_half_the_space_and_rounds_once(tmp_path: Path, how: Compression) -> None:
    store = opened(tmp_path, dtype=torch.bfloat16, how=how, slots=(MAP,))
    value = torch.randn(3, 2, 2)
    store.begin(2)
    store.write(MAP, 2, value)
    store.mark(2, 7)
    assert torch.equal(store.read(MAP, [2], CPU)[0], value.bfloat16().float())
    assert torch.equal(store.rounded(MAP, value[None])[0], value.bfloat16().float())
    assert store.row_bytes == [12 * 2]


@every_compression
def test_f7_a_map_comes_back_in_its_memory_format(tmp_path: Path, how: Compression) -> None:
    slot = Slot("blocks.0", 0, "", (3, 4, 5), torch.float32, channels_last=True)
    store = opened(tmp_path, how=how, slots=(slot,))
    values = {row: put(store, row)[0] for row in (2, 0)}
    found = store.read(slot, [0, 2], CPU)
    assert torch.equal(found, torch.stack([values[0], values[2]]))
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_f7_a_mostly_constant_map_is_compressed_without_loss(tmp_path: Path) -> None:
    slot = Slot("blocks.0", 0, "", (8, 64, 64), torch.float32)
    store, value = opened(tmp_path, how=ZSTD, slots=(slot,)), torch.full((8, 64, 64), 0.3)
    value[:, 20:30] = torch.randn(8, 10, 64).relu_()
    store.begin(4)
    store.write(slot, 4, value)
    store.mark(4, 7)
    assert torch.equal(store.read(slot, [4], CPU)[0], value)
    assert store.used < 0.15 * value.nbytes
    assert (tmp_path / "0.bin").stat().st_blocks * 512 < 0.3 * value.nbytes < 4 * value.nbytes


def test_f7_the_filter_is_the_one_that_makes_the_samples_smaller() -> None:
    zeros = torch.randn(64, 1024, generator=torch.Generator().manual_seed(0)).relu_()
    low_bits = torch.arange(2**16, dtype=torch.int32).view(torch.float32)
    assert smallest("zstd", [zeros]) == Compression("zstd")
    assert smallest("zstd", [low_bits]) == Compression("zstd", shuffle=True)


def test_f7_an_uncompressed_folder_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    store = opened(tmp_path)
    (value, _) = put(store, 3)
    (tmp_path / "storage.json").unlink()  # version 0.3.0 wrote none
    how, line = compression_for(tmp_path, "zstd", [value])
    assert how == RAW and "stored with COMPRESS: none" in line
    again = opened(tmp_path, how=how)
    assert again.holds(3, 7) and torch.equal(again.read(MAP, [3], CPU)[0], value)


def test_f7_without_blosc2_the_cache_is_not_compressed_and_a_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(tmp_path / "full", how=ZSTD)
    monkeypatch.setitem(sys.modules, "blosc2", None)
    how, line = compression_for(tmp_path / "new", "zstd", [torch.ones(3)])
    assert how == RAW and "blosc2 is not installed: pip install" in line
    with pytest.raises(FreezeError, match=r"full was compressed by blosc2, which is not installed"):
        compression_for(tmp_path / "full", "zstd", [torch.ones(3)])


def test_f7_a_storage_file_that_cannot_be_read_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "storage.json").write_text("{")
    with pytest.raises(FreezeError, match=r"storage\.json cannot be read .*Delete"):
        compression_for(tmp_path, "zstd", [])


def test_f7_samples_within_the_limit_are_written_and_no_others(tmp_path: Path) -> None:
    store = opened(tmp_path, limit=3 * (48 + 32) + 10)
    for row in (4, 0, 2):
        put(store, row)
    assert not store.begin(1) and store.used == 240
    assert [store.holds(row, 7) for row in range(5)] == [True, False, True, False, True]


def test_f7_rows_that_are_begun_and_rows_larger_than_expected_count_in_the_limit(tmp_path: Path) -> None:
    store = opened(tmp_path, how=ZSTD, slots=(MAP,), limit=200)
    store.expected_row = 80
    assert [store.begin(row) for row in range(3)] == [True, True, False]
    for row in range(2):
        store.write(MAP, row, torch.randn(3, 2, 2))  # cannot be compressed
        store._sizes[row][0] += 50 * row
        store.mark(row, 7)
    assert store.used <= 200 and [store.holds(row, 7) for row in range(3)] == [True, False, False]


def test_f7_a_row_that_another_process_writes_is_left_to_it(tmp_path: Path) -> None:
    store = opened(tmp_path)
    code = (
        "import fcntl, os, sys, time; fd = os.open(sys.argv[1], os.O_RDWR);"
        "fcntl.lockf(fd, fcntl.LOCK_EX, 1, 2); print(flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "marks.bin")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline()
        assert not store.begin(2) and store.begin(1)
        other.kill()
        other.wait()
    assert store.begin(2)  # the lock of a killed process is released


def test_f7_a_disk_that_is_full_ends_the_writing_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    store = opened(tmp_path)
    put(store, 0)
    step = StoreStep(store, [Entry(0, 7), Entry(1, 7)], CPU, None)
    monkeypatch.setattr(os, "pwrite", full)
    for slot in store.slots:
        value = torch.ones(2, *slot.shape, dtype=slot.dtype)
        assert torch.equal(step.take(slot, value)[1], value[1])
    step.finish()
    assert "No space left" in store.fault and not store.begin(3)
    assert store.holds(0, 7) and not store.holds(1, 7)


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


@every_compression
def test_f7_a_row_of_which_a_byte_was_lost_is_not_there(tmp_path: Path, how: Compression) -> None:
    store = opened(tmp_path, how=how)
    put(store, 0)
    put(store, 1)
    with open(tmp_path / "0.bin", "r+b") as file:
        file.seek(5)
        file.write(b"\x55")
    again = opened(tmp_path, how=how)
    assert not again.holds(0, 7) and again.holds(1, 7)


@every_compression
def test_f7_rows_behind_the_end_of_a_file_that_was_cut_off_are_not_there(
    tmp_path: Path, how: Compression
) -> None:
    store = opened(tmp_path, how=how)
    for row in range(5):
        put(store, row)
    os.truncate(tmp_path / "0.bin", store._pitch(0) * 2 + 3)
    again = opened(tmp_path, how=how)
    assert [again.holds(row, 7) for row in range(5)] == [True, True, False, False, False]
    (value, _) = put(again, 3)
    assert torch.equal(again.read(MAP, [3], CPU)[0], value)


def test_f7_marks_that_were_cut_off_are_an_error_that_names_them(tmp_path: Path) -> None:
    opened(tmp_path)
    os.truncate(tmp_path / "marks.bin", 10)
    with pytest.raises(FreezeError, match=r"marks\.bin must have 80 bytes, but has 10: .*Delete"):
        opened(tmp_path)


def test_f7_sizes_that_were_lost_make_a_row_that_is_not_there(tmp_path: Path) -> None:
    put(opened(tmp_path, how=ZSTD), 0)
    for size in (-1, 2**40):
        again = opened(tmp_path, how=ZSTD)
        again._marks[0, 2] = size
        assert not again.holds(0, 7)


def test_f7_a_disk_without_room_is_an_error_before_anything_is_written(tmp_path: Path) -> None:
    store = Store(tmp_path / "key", [MAP, CLASSES], 5)
    with pytest.raises(FreezeError, match=r"needs 1,000\.\d GB and .* free.*fewer VARIANTS.*LIMIT: "):
        store.require_room(10**12)
    store.limit = 1000
    store.require_room(10**12)
    assert list(tmp_path.iterdir()) == []


def test_f7_a_folder_that_cannot_be_written_to_is_an_error_with_the_cure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FreezeError, match=r"needs a folder in which .*Choose another FOLDER"):
        opened(tmp_path / "file" / "key")


def test_f7_the_folder_says_what_it_is_and_holds_no_more_than_was_written(tmp_path: Path) -> None:
    store = opened(tmp_path, rows=1000)
    put(store, 999)
    assert (tmp_path / "0.bin").stat().st_blocks * 512 <= 3 * 4096
    assert json.loads((tmp_path / "cache.json").read_text()) == {"versions": "1"}
    assert stored_as(tmp_path) == RAW
    store.prefetch([0, 999])


def test_f7_a_forward_that_did_not_end_leaves_no_row(tmp_path: Path) -> None:
    store = opened(tmp_path)
    step = StoreStep(store, [Entry(0, 7), Entry(1, 7)], CPU, None)
    step.take(MAP, torch.ones(2, 3, 2, 2))
    assert store.filled == 0
    step.take(CLASSES, torch.ones(2, 4, dtype=torch.int64))
    step.finish()
    assert store.filled == 2 and StoreStep(store, [Entry(1, 7)], CPU, None).supplies


def test_f7_rows_of_forwards_that_did_not_end_count_in_no_limit(tmp_path: Path) -> None:
    store = opened(tmp_path, slots=(CLASSES,), limit=2 * 32)
    StoreStep(store, [Entry(0, 7), Entry(1, 7)], CPU, None).abort()
    assert store.begin(0) and store.begin(1)  # and of one that was interrupted before it could abort
    step = StoreStep(store, [Entry(2, 7), Entry(3, 7)], CPU, None)
    step.take(CLASSES, torch.ones(2, 4, dtype=torch.int64))
    step.finish()
    assert [store.holds(row, 7) for row in range(5)] == [False, False, True, True, False]


def test_f7_a_sample_that_is_there_keeps_its_values_when_its_batch_is_computed_again(tmp_path: Path) -> None:
    store = opened(tmp_path)
    kept = put(store, 0)[0]
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


def test_f7_an_unknown_codec_is_an_error_that_names_the_folder(tmp_path: Path) -> None:
    put(opened(tmp_path), 3)
    (tmp_path / "storage.json").write_text('{"codec": "brotli", "shuffle": false}')
    with pytest.raises(FreezeError, match=r"storage\.json .*'brotli'.*Delete"):
        stored_as(tmp_path)
