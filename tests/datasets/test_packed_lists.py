"""Packed lists: equal to the lists in memory, made again where they are not up to date, made once."""

from __future__ import annotations

import fcntl
import logging
import os
import pickle
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pcdet_freeze.datasets.packed import INFOS, Rows, opening, read_infos
from pcdet_freeze.datasets.packed.format import PackedFile, Source, UnusableError, Writer
from pcdet_freeze.datasets.packed.kinds import Kind, list_of_frames
from pcdet_freeze.datasets.packed.packing import pack
from pcdet_freeze.datasets.packed.rows import InMemory
from pcdet_freeze.errors import DataError

LOG = logging.getLogger("pcdet_freeze")
pytestmark = pytest.mark.usefixtures("packs")
OTHER = Kind(f"{__name__}:OTHER", 1, list_of_frames, lambda info: {"even": info % 2 == 0})


def frames() -> list[dict[str, Any]]:
    annos = {"name": np.array(["Car", "Bus"]), "boxes": np.arange(14.0).reshape(2, 7).T.copy(order="F").T}
    first = {"frame_id": "a", "annos": annos, "flag": np.bool_(True), "pose": np.eye(4, dtype=np.float32)}
    return [
        first,
        {"frame_id": "b", "pair": (1, 2.5, None), "empty": np.zeros((0, 7), np.int8)},
        {"annos": None},
    ]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "data/infos.pkl"
    path.parent.mkdir()
    path.write_bytes(pickle.dumps(frames()))
    return path


def read(source: Path) -> Rows:
    return read_infos([source], LOG)


def test_entries_are_those_of_the_list_to_the_bit(source: Path) -> None:
    rows = read(source)
    assert isinstance(rows.store, PackedFile) and len(rows) == 3
    # one pickle each, since a pickle of all would refer to strings that entries share
    assert [pickle.dumps(row) for row in rows] == [
        pickle.dumps(pickle.loads(pickle.dumps(f))) for f in frames()
    ]
    assert rows.column("labelled").tolist() == [True, False, False]
    assert rows[0]["annos"]["boxes"].flags.writeable


def test_rows_are_chosen_without_reading_them(source: Path) -> None:
    rows = read(source)
    assert [row.get("frame_id") for row in rows[::2]] == ["a", None]
    assert len(rows.where(rows.column("labelled"))) == 1 and rows[-1] == {"annos": None}
    assert [len(part) for part in (rows + rows[:1], rows.group(0, ""), rows.group(1, ""))] == [4, 3, 0]
    with pytest.raises(IndexError):
        rows[3]


def test_a_later_start_finds_the_file(source: Path, packs: list[Path]) -> None:
    read(source)
    read(source)
    assert packs == [source.with_suffix(".packed")]
    assert os.listdir(source.parent) == ["infos.packed", "infos.pkl"] or len(os.listdir(source.parent)) == 2


def test_short_lists_stay_in_memory(source: Path, packs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "PACK_FROM", 10**6)
    assert isinstance(read(source).store, InMemory) and not packs


def test_a_list_of_several_files_has_them_one_after_the_other(source: Path) -> None:
    other = source.with_name("other.pkl")
    other.write_bytes(pickle.dumps([{"frame_id": "c"}]))
    rows = read_infos([source, other], LOG)
    assert [row.get("frame_id") for row in rows] == ["a", "b", None, "c"]
    assert [row["frame_id"] for row in rows.group(1, "")] == ["c"]


def test_another_process_opens_the_file_for_itself(source: Path) -> None:
    rows = read(source)
    sent = pickle.dumps(rows[1:])
    assert len(sent) < 1500
    assert pickle.loads(sent)[0]["frame_id"] == "b"
    source.with_suffix(".packed").unlink()
    assert rows[1]["frame_id"] == "b"  # this process keeps the file that it has opened
    with pytest.raises(DataError, match=r"infos\.packed"):
        pickle.loads(sent)


def changed(source: Path, how: str) -> None:
    target = source.with_suffix(".packed")
    raw = bytearray(target.read_bytes())
    if how == "newer source":
        source.write_bytes(pickle.dumps([*frames(), {"frame_id": "new"}]))
    elif how == "touched source":
        os.utime(source, ns=(1, 1))
    elif how == "other kind":
        numbers = source.with_name("numbers.pkl")
        numbers.write_bytes(pickle.dumps([1, 2]))
        pack(OTHER, [numbers], target)
    elif how == "cut off":
        target.write_bytes(raw[:-7])
    elif how == "cut short":
        target.write_bytes(raw[:40])
    elif how == "empty":
        target.write_bytes(b"")
    elif how == "text":
        target.write_text("not a packed list\n" * 30)
    elif how == "index":
        raw[raw.index(b'{"kind"') - 1] ^= 1
        target.write_bytes(raw)
    elif how == "footer":
        raw[raw.index(b'"groups"') + 3] ^= 1
        target.write_bytes(raw)


CHANGES = ["newer source", "touched source", "other kind", "cut off", "cut short", "empty", "text", "index",
           "footer"]  # fmt: skip


@pytest.mark.parametrize("how", CHANGES)
def test_a_file_that_is_stale_torn_or_foreign_is_made_again_and_logged(
    source: Path, packs: list[Path], caplog: pytest.LogCaptureFixture, how: str
) -> None:
    read(source)
    changed(source, how)
    with caplog.at_level(logging.INFO):
        rows = read(source)
    assert [row.get("frame_id") for row in rows][:2] == ["a", "b"]
    assert len(rows) == (4 if how == "newer source" else 3)
    assert "infos.packed is made again: it " in caplog.text and len(packs) == 2
    read(source)
    assert len(packs) == 2


def test_cuts_and_flipped_bytes_behind_the_entries_are_noticed(source: Path) -> None:
    rows = read(source)
    target, sources = source.with_suffix(".packed"), [Source.of(source)]
    raw, end = target.read_bytes(), int(rows.store.column("offsets")[-1])
    unnoticed = set()
    for at in range(end, len(raw), 11):
        for damaged in (raw[:at], raw[:at] + bytes([raw[at] ^ 0x55]) + raw[at + 1 :]):
            target.write_bytes(damaged)
            try:
                PackedFile(target, INFOS, sources)
            except UnusableError:
                continue
            unnoticed.add((len(damaged), raw[at]))
    assert unnoticed == {(len(raw), 0)}  # padding between two parts of the index


def test_a_damaged_entry_is_an_error_that_names_the_file(source: Path) -> None:
    rows = read(source)
    target = source.with_suffix(".packed")
    with target.open("r+b") as file:
        file.seek(60)
        file.write(b"\0\0\0")
    with pytest.raises(DataError, match=r"infos\.packed: entry 0 .*checksum.*Delete the file"):
        rows[0]
    os.truncate(target, 50)
    with pytest.raises(DataError, match=r"entry 1"):
        rows[1]


def test_a_foreign_entry_runs_no_code(source: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "evil"),)

    target = source.with_suffix(".packed")
    with target.open("wb") as file:
        writer = Writer(file.write, INFOS, [Source.of(source)])
        writer.add({"frame": Evil()})
        writer.groups.append((0, "", 0, 1))
        writer.end()
    with pytest.raises(DataError, match=r"mkdir"):
        read(source)[0]
    assert not (tmp_path / "evil").exists()


def test_a_folder_that_cannot_be_written_leaves_the_list_in_the_temporary_folder(
    source: Path, packs: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target = source / "infos.packed"  # below a file
    rows = read_infos([source], LOG, target=target)
    assert isinstance(rows.store, PackedFile) and rows.store.path.is_relative_to(tmp_path / "tmp")
    assert "infos.packed cannot be made" in caplog.text
    read_infos([source], LOG, target=target)
    assert len(packs) == 1


def test_where_nothing_can_be_written_the_list_stays_in_memory(
    source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(source))
    rows = read_infos([source], LOG, target=source / "infos.packed")
    assert isinstance(rows.store, InMemory) and len(rows) == 3
    assert "are kept in the memory of each process" in caplog.text


def test_a_temporary_folder_of_somebody_else_is_not_used(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tmp" / f"pcdet_freeze_{os.getuid()}"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    assert isinstance(read_infos([source], LOG, target=source / "infos.packed").store, InMemory)


def test_two_that_start_at_once_pack_once(
    source: Path, packs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    within, go = threading.Event(), threading.Event()
    here = opening._run_child

    def slow(*args: Any) -> None:
        within.set()
        go.wait(10)
        here(*args)

    monkeypatch.setattr(opening, "_run_child", slow)
    found: list[Rows] = []
    threads = [threading.Thread(target=lambda: found.append(read(source))) for _ in range(2)]
    threads[0].start()
    within.wait(10)
    threads[1].start()
    go.set()
    for thread in threads:
        thread.join()
    assert len(packs) == 1 and [len(rows) for rows in found] == [3, 3]
    assert sorted(path.name for path in source.parent.iterdir()) == ["infos.packed", "infos.pkl"]


def test_a_kill_while_packing_leaves_nothing_that_is_believed(source: Path, packs: list[Path]) -> None:
    source.write_bytes(pickle.dumps([{"frame_id": "x"}] * 20_100))
    target = source.with_suffix(".packed")
    child = os.fork()
    if not child:
        pack(
            INFOS,
            [source],
            target,
            lambda text: os.kill(os.getpid(), signal.SIGKILL) if "written" in text else None,
        )
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    left = [path for path in source.parent.iterdir() if path != source]
    assert len(left) == 1 and left[0] != target and left[0].stat().st_size > 10**5
    assert len(read(source)) == 20_100 and packs == [target]
    assert sorted(path.name for path in source.parent.iterdir()) == ["infos.packed", "infos.pkl"]


def test_a_source_that_changes_while_it_is_packed_is_not_believed(source: Path) -> None:
    target = source.with_suffix(".packed")
    with pytest.raises(DataError, match="changed while it was read"):
        pack(INFOS, [source], target, lambda text: os.utime(source, ns=(1, 1)))
    assert not target.exists()


def test_what_is_no_list_is_the_same_error_as_without_packing(source: Path) -> None:
    source.write_bytes(pickle.dumps({"not": "a list"}))
    with pytest.raises(DataError, match=r"infos\.pkl: an info file holds a list of frames; got dict"):
        read(source)


@pytest.mark.slow
def test_a_process_of_its_own_packs_with_its_own_limit_of_time(
    source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(opening, "PACK_FROM", 0)
    monkeypatch.setattr(opening, "REPORT_S", 0.0)
    with caplog.at_level(logging.INFO):
        rows = read(source)
    assert isinstance(rows.store, PackedFile) and rows[1]["frame_id"] == "b"
    assert "packing: " in caplog.text
    source.write_bytes(b"no pickle")
    with pytest.raises(DataError, match="not an info file"):
        read(source)
    assert "the packing process ended with code 1" in caplog.text and "not an info file" in caplog.text


def test_who_waited_for_a_lock_holds_the_lock_that_the_next_one_finds(tmp_path: Path) -> None:
    place, free, seen = tmp_path / "infos.packed", threading.Event(), []

    def waits() -> None:
        free.set()
        with opening._alone(place, LOG) as alone, (tmp_path / ".infos.packed.lock").open("a") as next_one:
            with pytest.raises(BlockingIOError):
                fcntl.flock(next_one, fcntl.LOCK_EX | fcntl.LOCK_NB)
            seen.append(alone)

    other = threading.Thread(target=waits)
    with opening._alone(place, LOG):
        other.start()
        free.wait()
        time.sleep(0.1)  # until it waits for this lock
    other.join()
    assert seen == [True] and not list(tmp_path.glob(".infos*"))
