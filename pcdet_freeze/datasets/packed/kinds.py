"""What a list holds."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pcdet_freeze.errors import DataError

Value = bool | int | str
Groups = Mapping[str, list[Any]]


@dataclass(frozen=True)
class Kind:
    """How the value of a ``.pkl`` becomes a list."""

    ref: str
    """``module:attribute``, by which another process finds this"""
    version: int
    """a packed file of another version is made again"""
    groups: Callable[[Any, Path], Groups]
    """(value of a .pkl, its path) -> its entries by group; DataError where it holds something else"""
    columns: Callable[[Any], Mapping[str, Value]]
    """entry -> values that are read without it, the same keys for each entry"""


def find_kind(ref: str) -> Kind:
    """The kind that ``module:attribute`` names."""
    module, _, name = ref.partition(":")
    found: Kind = getattr(importlib.import_module(module), name)
    return found


def list_of_frames(value: Any, path: Path) -> Groups:
    """The one group of an info file; DataError where it is no list."""
    if not isinstance(value, list):
        raise DataError(f"{path}: an info file holds a list of frames; got {type(value).__name__}")
    return {"": value}


def frame_of(info: Any, index: int) -> str:
    """Name of the frame of an info; its place in the list where the info does not say."""
    found = info.get("frame_id") if isinstance(info, dict) else None
    return found if isinstance(found, str) else f"entry {index} of the infos"


def is_labelled(info: Any) -> Mapping[str, Value]:
    """Column ``labelled``: the frame has boxes."""
    return {"labelled": isinstance(info, Mapping) and info.get("annos") is not None}


INFOS = Kind(f"{__name__}:INFOS", 1, list_of_frames, is_labelled)
