"""The lane boundaries of a vector map as polylines around the vehicle, numbered from left to right."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_freeze.datasets.argoverse2.poses import Pose
from pcdet_freeze.datasets.reading.last_kept import last_kept
from pcdet_freeze.datasets.reading.timed_reads import timed
from pcdet_freeze.errors import DataError
from pcdet_freeze.ops.lanes import along

UNPAINTED = "NONE"
STEP = 0.1
"""Metres between the points of a line whose length inside the range is measured."""
LONGEST, FARTHEST = 1e5, 1e8
"""Metres of a piece of a line, and from the origin of the map."""
TOUCH = 0.25
"""Metres between two ends that are one."""
STRAIGHT = 0.5
"""Least cosine between the directions of two pieces that are one line."""


@last_kept
def read_boundaries(path: Path, painted_only: bool) -> list[np.ndarray]:
    """Boundaries of all lane segments of a ``log_map_archive_*.json``, each (n, 3) metres in the city frame.

    A boundary that two neighbouring segments share comes once. ``painted_only``: only those with a mark.
    """
    try:
        segments = json.loads(timed(path, path.read_text))["lane_segments"].values()
        found = [piece for segment in segments for piece in _of_segment(segment, painted_only)]
    except (OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path}: not a vector map of Argoverse 2 with lane_segments ({error!r}). Fetch it again"
        ) from error
    return list({_identity(piece): piece for piece in found}.values())


def _of_segment(segment: Mapping[str, Any], painted_only: bool) -> list[np.ndarray]:
    sides = [
        side
        for side in ("left", "right")
        if not painted_only or segment[f"{side}_lane_mark_type"] != UNPAINTED
    ]
    corners = [segment[f"{side}_lane_boundary"] for side in sides]
    pieces = [np.array([[p["x"], p["y"], p["z"]] for p in part], np.float64) for part in corners]
    return [checked_piece(piece.reshape(-1, 3)) for piece in pieces]


def checked_piece(piece: np.ndarray) -> np.ndarray:
    """Return a piece (n, 3) of a map's lines; ValueError where it is not finite, too long or too far.

    A line is sampled at points STEP apart, so its length bounds their number.
    """
    near = (np.abs(piece) <= FARTHEST).all()  # NaN compares as False
    if not near or np.linalg.norm(np.diff(piece, axis=0), axis=1).sum() > LONGEST:
        raise ValueError(
            f"a line must be finite and at most {LONGEST:g} m long, within {FARTHEST:g} m of the origin"
        )
    return piece


def _identity(piece: np.ndarray) -> tuple[tuple[float, ...], ...]:
    """The same for both directions, and to ten centimetres."""
    ends = [tuple(map(tuple, np.round(line[:, :2], 1).tolist())) for line in (piece, piece[::-1])]
    return min(ends)


def lines_around(
    boundaries: list[np.ndarray], city_from_ego: Pose, limits: np.ndarray, least: float = 1.0
) -> list[np.ndarray]:
    """Lines (n, 2) x, y in the vehicle's frame that run at least ``least`` metres inside ``limits`` (6,).

    Pieces that continue each other are one line. Order: from left to right, by the mean y of what is inside.
    """
    chains = _chained([city_from_ego.to_inner(piece)[:, :2] for piece in boundaries])
    ranked: list[tuple[float, int, np.ndarray]] = []
    for chain in chains:
        inside = _inside(chain, limits)
        if len(inside) * STEP >= least:
            ranked.append((-float(inside[:, 1].mean()), len(ranked), chain))
    return [chain for _, _, chain in sorted(ranked, key=lambda entry: entry[:2])]


def longest_inside(lines: list[np.ndarray], limits: np.ndarray, most: int) -> list[np.ndarray]:
    """The ``most`` of ``lines`` that are longest inside ``limits`` (6,), in their order."""
    lengths = np.array([len(_inside(line, limits)) for line in lines])
    return [lines[k] for k in sorted(np.argsort(-lengths, kind="stable")[:most].tolist())]


def _inside(line: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """(M, 2) points of a line, STEP metres apart, that lie in ``limits`` (6,)."""
    points = along(line, STEP)
    return points[((points >= limits[:2]) & (points < limits[3:5])).all(axis=1)]


def _chained(pieces: list[np.ndarray]) -> list[np.ndarray]:
    """Pieces joined end to end as long as any two continue each other."""
    chains: list[np.ndarray] = []
    waiting = [piece for piece in pieces if len(piece) > 1]
    while waiting:
        piece = waiting.pop(0)
        for place, chain in enumerate(chains):
            whole = _continued(chain, piece)
            if whole is not None:
                waiting.insert(0, whole)
                del chains[place]
                break
        else:
            chains.append(piece)
    return chains


def _continued(first: np.ndarray, second: np.ndarray) -> np.ndarray | None:
    """Both as one line where an end of one touches an end of the other and goes on in its direction."""
    for a in (first, first[::-1]):
        for b in (second, second[::-1]):
            if (
                np.hypot(*(a[-1] - b[0])) <= TOUCH
                and _direction(a[-2], a[-1]) @ _direction(b[0], b[1]) > STRAIGHT
            ):
                return np.concatenate([a, b[1:]])
    return None


def _direction(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    return (end - start) / max(float(np.hypot(*(end - start))), 1e-9)
