"""Info files in OpenPCDet's format: a pickled list with a dict for each frame."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pcdet_freeze.datasets.file_formats.files import read_pickle
from pcdet_freeze.datasets.reading.timed_reads import timed
from pcdet_freeze.errors import DataError


def read_infos(paths: Sequence[Path], split: str) -> list[dict[str, Any]]:
    """The frames of all info files; DataError where a file is none, or where they list no frame."""
    infos: list[dict[str, Any]] = []
    for path in paths:
        found = read_pickle(path)
        if not isinstance(found, list):
            raise DataError(f"{path}: an info file holds a list of frames; got {type(found).__name__}")
        infos += found
    if not infos:
        raise DataError(
            f"the info files {', '.join(map(str, paths))} list no frame; is ImageSets/{split}.txt empty?"
        )
    return infos


def read_frame_ids(path: Path) -> list[str]:
    """The different ids of a file of ImageSets, one a line; DataError that names the file."""
    try:
        return list(dict.fromkeys(timed(path, path.read_text).split()))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: a split file holds one id a line, but cannot be read ({error})") from error


def folders_beside(folder: Path) -> str:
    """What is there instead of ``folder``, which is not, for a message; empty if nothing is.

    The folder that has a word of its name is named first: ``kitti_label`` for ``label_2``.
    """
    parent = folder.parent
    there = sorted(path.name for path in timed(parent, lambda: list(parent.glob("*"))) if path.is_dir())
    if not there:
        return ""
    word = folder.name.split("_")[0].rstrip("s").lower()
    like = [name for name in there if word in name.lower()]
    close = f"; rename {like[0]} to {folder.name}, if it is that folder" if like else ""
    return f"; {parent} has {', '.join(there)}{close}"
