"""DATA_CONFIG.SEMANTIC and DATA_CONFIG.LANE -> checked settings of labels that lie beside the frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pcdet_freeze.datasets.frames import IGNORE
from pcdet_freeze.datasets.registry import Config, check_keys, require
from pcdet_freeze.errors import ConfigError

IGNORED = "ignore"
"""What LABEL_MAP calls the values of points without a class."""


@dataclass(frozen=True)
class SemanticSettings:
    """``classes``: semantic class 0, 1, ...; ``values``: value in a file -> class or 255, None: as it is."""

    classes: tuple[str, ...]
    folder: str = "semantic"
    values: Mapping[int, int] | None = None


@dataclass(frozen=True)
class LaneSettings:
    """``shape``: (H, W) of every lane map, the range divided by CELL_SIZE."""

    shape: tuple[int, int]
    folder: str = "lanes"


def semantic_settings(cfg: Config) -> SemanticSettings:
    """From ``{CLASSES: [...], LABEL_MAP: {class: [values]}, FOLDER: name}``; ConfigError with every fault."""
    where = "DATA_CONFIG.SEMANTIC"
    check_keys(where, cfg, {"CLASSES", "LABEL_MAP", "FOLDER"})
    classes = require(where, cfg, "CLASSES")
    good = isinstance(classes, list | tuple) and all(isinstance(name, str) for name in classes)
    if not good or not 0 < len(classes) <= IGNORE or len(set(classes)) < len(classes):
        raise ConfigError(f"{where}.CLASSES must be a list of 1 to {IGNORE} different names; got {classes!r}")
    given = cfg.get("LABEL_MAP")
    values = None if given is None else _values(f"{where}.LABEL_MAP", given, list(classes))
    return SemanticSettings(tuple(classes), str(cfg.get("FOLDER", "semantic")), values)


def _values(where: str, given: Any, classes: list[str]) -> dict[int, int]:
    if not isinstance(given, Mapping):
        raise ConfigError(f"{where} must be a mapping such as {{{classes[0]}: [40, 44]}}; got {given!r}")
    values: dict[int, int] = {}
    faults = [
        f"{name!r} is no class" for name in given if name not in classes and str(name).lower() != IGNORED
    ]
    for name, entries in given.items():
        for value in entries if isinstance(entries, list | tuple) else [entries]:
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**16:
                faults.append(f"{name}: {value!r} is no whole number from 0 to 65535")
            elif value in values:
                faults.append(f"{value} stands there twice")
            else:
                values[value] = classes.index(name) if name in classes else IGNORE
    if faults:
        raise ConfigError(
            f"{where} maps each of {', '.join(classes)} and {IGNORED} to the values in the files: "
            f"{'; '.join(faults)}"
        )
    return values


def lane_settings(cfg: Config, limits: np.ndarray | Sequence[float]) -> LaneSettings:
    """From ``{CELL_SIZE: metres, FOLDER: name}`` and the point cloud range (6,)."""
    where = "DATA_CONFIG.LANE"
    check_keys(where, cfg, {"CELL_SIZE", "FOLDER"})
    edge = require(where, cfg, "CELL_SIZE")
    if isinstance(edge, bool) or not isinstance(edge, int | float) or edge <= 0:
        raise ConfigError(f"{where}.CELL_SIZE must be a positive number of metres; got {edge!r}")
    extent = [float(limits[axis + 3]) - float(limits[axis]) for axis in (1, 0)]
    cells = [length / edge for length in extent]
    if any(abs(number - round(number)) > 1e-3 for number in cells):
        raise ConfigError(
            f"{where}.CELL_SIZE must divide POINT_CLOUD_RANGE in x and y ({extent[1]:g} by {extent[0]:g} m); "
            f"got {edge}"
        )
    return LaneSettings((round(cells[0]), round(cells[1])), str(cfg.get("FOLDER", "lanes")))
