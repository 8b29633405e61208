"""Lane and road dividers of the map expansion as polylines around the vehicle, from left to right."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from pcdet_freeze.datasets.argoverse2.boundaries import checked_piece, lines_around
from pcdet_freeze.datasets.argoverse2.poses import Pose
from pcdet_freeze.datasets.reading.timed_reads import timed
from pcdet_freeze.errors import DataError
from pcdet_freeze.utils.untrusted_files.inside import inside


@dataclass(frozen=True)
class Dividers:
    """The dividers of one map: each (n, 3) metres in the global frame, z 0."""

    pieces: list[np.ndarray]

    @cached_property
    def _extents(self) -> np.ndarray:
        """(M, 2, 2) lowest and highest x, y of each piece."""
        found = [[piece[:, :2].min(axis=0), piece[:, :2].max(axis=0)] for piece in self.pieces]
        return np.array(found).reshape(-1, 2, 2)

    def lines(self, global_from_frame: Pose, limits: np.ndarray) -> list[np.ndarray]:
        """Lines (n, 2) x, y in the frame, inside ``limits`` (6,), from left to right."""
        reach = float(np.hypot(*np.abs(limits.reshape(2, 3)[:, :2]).max(axis=0)))
        centre = global_from_frame.translation[:2]
        low, high = self._extents[:, 0], self._extents[:, 1]
        near = ((low <= centre + reach) & (high >= centre - reach)).all(axis=1)
        return lines_around([self.pieces[k] for k in np.flatnonzero(near)], global_from_frame, limits)


def map_path(root: Path, location: str) -> Path:
    """The map expansion of a location."""
    return inside(root / "maps" / "expansion", f"{location}.json", "a map")


def read_dividers(path: Path, layers: Sequence[str]) -> Dividers:
    """The lines of ``layers`` in a map of the expansion (version 1.3); DataError that names the file."""
    try:
        found = json.loads(timed(path, path.read_bytes))
        nodes = {row["token"]: (float(row["x"]), float(row["y"]), 0.0) for row in found["node"]}
        lines = {row["token"]: row["node_tokens"] for row in found["line"]}
        tokens = [lines[row["line_token"]] for layer in layers for row in found[layer]]
        pieces = [
            checked_piece(np.array([nodes[token] for token in line])) for line in tokens if len(line) > 1
        ]
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: the map expansion is missing. Unpack nuScenes-map-expansion into maps/, or "
            "set LANE: null"
        ) from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: not a map of nuScenes' expansion ({error!r}). Fetch it again") from error
    return Dividers(pieces)
