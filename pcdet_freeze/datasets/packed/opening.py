"""Find the packed file of a list, or have it made by one process, while the others wait."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import select
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pcdet_freeze.datasets.file_formats.files import read_pickle
from pcdet_freeze.datasets.packed.format import Group, PackedFile, Source, UnusableError
from pcdet_freeze.datasets.packed.kinds import INFOS, Kind
from pcdet_freeze.datasets.packed.rows import InMemory, Rows
from pcdet_freeze.datasets.reading.timed_reads import current_limit, timed

try:
    import fcntl
except ImportError:  # not a Unix: lists stay in memory
    fcntl = None  # type: ignore[assignment]

PACK_FROM = 2**24
"""bytes of .pkl files from which on a list is packed; shorter ones are read in a second"""
POLL_S, REPORT_S = 0.2, 10.0
"""seconds between two looks at a lock, and between two lines of the log"""
_SUFFIX = ".lock"


def read_infos(
    paths: Sequence[Path], log: logging.Logger, kind: Kind = INFOS, target: Path | None = None
) -> Rows:
    """The infos of the files ``paths``, one after the other; see :func:`open_list`."""
    return open_list(kind, paths, log, target)


def open_list(kind: Kind, paths: Sequence[Path], log: logging.Logger, target: Path | None = None) -> Rows:
    """The entries of the files ``paths``.

    Where they are large, the entries are those of a packed file: ``target`` (by default the first file with
    the suffix ``.packed``), or one in the temporary folder where that cannot be written. One that is not
    whole or not up to date is made again. Where none can be made, the entries are kept in memory.

    Raises:
        DataError: a file that is missing or not of this kind.
    """
    packed = packed_file(kind, paths, log, target)
    return Rows(_in_memory(kind, paths) if packed is None else packed)


def packed_file(
    kind: Kind, paths: Sequence[Path], log: logging.Logger, target: Path | None = None
) -> PackedFile | None:
    """The packed file of a list, which is made if need be; None for a short list, or where none can be made.

    ``prepare`` calls this so that no training has to pack.
    """
    sources = _sources(paths)
    total = sum(source.size for source in sources or ())
    if fcntl is None or sources is None or total < PACK_FROM:
        return None
    found = _packed(kind, paths, sources, target or paths[0].with_suffix(".packed"), log)
    if found is None:
        log.warning("the lists of %s are kept in the memory of each process", _names(paths))
    return found


def _sources(paths: Sequence[Path]) -> list[Source] | None:
    """None where a file is missing, which reading it reports."""
    try:
        return [timed(path, lambda path=path: Source.of(path)) for path in paths]  # type: ignore[misc]
    except OSError:
        return None


def _in_memory(kind: Kind, paths: Sequence[Path]) -> InMemory:
    items: list[object] = []
    groups: list[Group] = []
    for number, path in enumerate(paths):
        for name, found in kind.groups(read_pickle(path), path).items():
            groups.append((number, name, len(items), len(items) + len(found)))
            items += found
    return InMemory(kind, items, groups)


def _packed(
    kind: Kind, paths: Sequence[Path], sources: list[Source], target: Path, log: logging.Logger
) -> PackedFile | None:
    other = _temporary(target)
    for place in (target, other) if _is_private(other.parent) else (target,):
        if (found := _usable(place, kind, sources, log)) is not None:
            return found
    for place in (target, other):
        try:
            if place == other:
                _make_private(other.parent)
            with _alone(place, log) as alone:
                if (found := _usable(place, kind, sources, None)) is not None:  # made while this one waited
                    return found
                if alone:
                    _remove_unfinished(place)
                _run_child(kind, paths, place, log)
                return PackedFile(place, kind, sources)
        except (OSError, UnusableError) as error:
            log.warning("the packed list %s cannot be made: %s", place, error)
    return None


def _usable(place: Path, kind: Kind, sources: list[Source], log: logging.Logger | None) -> PackedFile | None:
    try:
        return PackedFile(place, kind, sources)
    except FileNotFoundError:
        return None
    except (UnusableError, OSError) as error:
        if log is not None:
            log.info("the packed list %s is made again: it %s", place, error)
        return None


def _temporary(target: Path) -> Path:
    """The place of ``target`` in a folder of this user in the temporary folder."""
    digest = hashlib.sha256(str(target.absolute()).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"pcdet_freeze_{os.getuid()}" / f"{digest}_{target.name}"


def _is_private(folder: Path) -> bool:
    """Whether the folder is there and nobody else can write to it."""
    try:
        state = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(state.st_mode) and state.st_uid == os.getuid() and not state.st_mode & 0o077


def _make_private(folder: Path) -> None:
    """Make the folder; OSError where it cannot be made, or somebody else made it."""
    folder.mkdir(mode=0o700, exist_ok=True)
    if not _is_private(folder):
        raise OSError(f"{folder} must be a folder of this user alone (mode 700)")


@contextmanager
def _alone(place: Path, log: logging.Logger) -> Iterator[bool]:
    """Wait until no other process makes ``place``; yields False on a disk without locks.

    Raises OSError where the folder cannot be written.
    """
    lock = place.with_name(f".{place.name}{_SUFFIX}")
    place.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with lock.open("a") as stream:
            held = _locked(stream.fileno(), place, log)
            if held and not _is_file(stream.fileno(), lock):
                continue  # whom this one waited for removed the file, so another one may lock a new one
            try:
                yield held
            finally:
                with suppress(OSError):
                    lock.unlink(missing_ok=True)
            return


def _is_file(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one at ``path``."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def _locked(descriptor: int, place: Path, log: logging.Logger) -> bool:
    reported = time.monotonic() - REPORT_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() - reported >= REPORT_S:
                reported = time.monotonic()
                log.info("waiting for another process, which makes the packed list %s", place)
            time.sleep(POLL_S)
        except OSError:  # a network disk without locks: two may pack at once, and do no harm
            return False


def _remove_unfinished(place: Path) -> None:
    """Remove what a process that was killed while it packed has left."""
    for path in place.parent.glob(f".{place.name}.*"):
        if not path.name.endswith(_SUFFIX):
            path.unlink(missing_ok=True)


def _run_child(kind: Kind, paths: Sequence[Path], place: Path, log: logging.Logger) -> None:
    """Pack in a process of its own; OSError where it does not succeed."""
    log.info("packing %s into %s, once; the next start finds it", _names(paths), place)
    order = {
        "kind": kind.ref,
        "sources": [str(path.absolute()) for path in paths],
        "target": str(place.absolute()),
        "limit": current_limit(),
    }
    root = str(Path(__file__).resolve().parents[3])
    search = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            [sys.executable, "-m", "pcdet_freeze.datasets.packed.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, "PYTHONPATH": search},
        ) as process,
    ):
        try:
            _follow(process, json.dumps(order), log)
        except BaseException:
            process.kill()
            raise
        if process.wait() != 0:
            errors.seek(0)
            why = errors.read().decode(errors="replace").strip().splitlines()
            raise OSError(
                f"the packing process ended with code {process.returncode}: {why[-1] if why else ''}"
            )


def _follow(process: subprocess.Popen[bytes], order: str, log: logging.Logger) -> None:
    """Send the order, and log what the process reports until it closes its output."""
    assert process.stdin is not None and process.stdout is not None
    with suppress(BrokenPipeError), process.stdin:
        process.stdin.write(order.encode())
    begin = reported = time.monotonic()
    text, output = "the process starts", process.stdout.fileno()
    while True:
        if select.select([output], [], [], POLL_S)[0]:
            raw = os.read(output, 2**16)
            if not raw:
                return
            text = raw.decode(errors="replace").strip().rpartition("\n")[2]
        if time.monotonic() - reported >= REPORT_S:
            reported = time.monotonic()
            log.info("packing: %s (%.0f s)", text, reported - begin)


def _names(paths: Sequence[Path]) -> str:
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return f"{paths[0]}{more}"
