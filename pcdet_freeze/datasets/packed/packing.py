"""``.pkl`` files -> one packed file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pcdet_freeze.datasets.file_formats.files import read_pickle, replacing
from pcdet_freeze.datasets.packed.format import Source, Writer
from pcdet_freeze.datasets.packed.kinds import Kind
from pcdet_freeze.errors import DataError

Progress = Callable[[str], None]
_STEP = 20_000
"""entries between two reports"""


def pack(kind: Kind, sources: Sequence[Path], target: Path, progress: Progress = lambda text: None) -> None:
    """Write the entries of ``sources`` to ``target``, whole or not at all.

    Raises DataError for a source that cannot be read or changes meanwhile, OSError where nothing can be
    written.
    """
    before = [Source.of(path) for path in sources]
    with replacing(target) as write:
        writer = Writer(write, kind, before)
        for number, path in enumerate(sources):
            if number * 20 // len(sources) != (number - 1) * 20 // len(sources):
                progress(f"reading {path.name}, {number + 1} of {len(sources)} files")
            _add(writer, number, kind.groups(read_pickle(path), path), progress)
        writer.end()
        for source, path in zip(before, sources, strict=True):
            if Source.of(path) != source:
                raise DataError(f"{path}: the file changed while it was read")


def _add(writer: Writer, source: int, groups: Any, progress: Progress) -> None:
    for name, items in groups.items():
        begin = writer.count
        for item in items:
            writer.add(item)
            if not writer.count % _STEP:
                progress(f"{writer.count} entries written")
        writer.groups.append((source, name, begin, writer.count))
