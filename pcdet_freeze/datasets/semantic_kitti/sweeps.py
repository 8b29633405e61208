"""The sweeps of SemanticKITTI's sequences: where their points and labels are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pcdet_freeze.datasets.file_formats.info_files import folders_beside
from pcdet_freeze.datasets.reading.timed_reads import timed
from pcdet_freeze.errors import DataError


@dataclass(frozen=True)
class Sweep:
    """One sweep in the folder of its sequence."""

    sequence: Path
    stem: str
    labelled: bool
    """whether it has a label file"""

    @property
    def name(self) -> str:
        """Sequence and number, as in ``08_000012``."""
        return f"{self.sequence.name}_{self.stem}"

    @property
    def points(self) -> Path:
        """x, y, z, intensity: float32."""
        return self.sequence / "velodyne" / f"{self.stem}.bin"

    @property
    def labels(self) -> Path:
        """One uint32 a point: the class in the lower 16 bits, the instance in the upper ones."""
        return self.sequence / "labels" / f"{self.stem}.label"


def find_sweeps(root: Path, sequences: Sequence[int]) -> list[Sweep]:
    """The sweeps of all ``sequences`` below ``root``, in order; DataError where a sequence has none."""
    return [sweep for number in sequences for sweep in _sequence(root, number)]


def _sequence(root: Path, number: int) -> list[Sweep]:
    folder = root / "sequences" / f"{number:02d}"
    points, labels = folder / "velodyne", folder / "labels"
    stems = timed(points, partial(_stems, points, "*.bin"))
    if not stems:
        beside = "" if timed(points, points.is_dir) else folders_beside(points) or folders_beside(folder)
        raise DataError(
            f"{points} must hold the sweeps of sequence {number} (000000.bin, ...), but has none. DATA_PATH "
            f"is {root.absolute()}; it must hold sequences/{beside}"
        )
    labelled = set(timed(labels, partial(_stems, labels, "*.label")))
    return [Sweep(folder, stem, stem in labelled) for stem in stems]


def _stems(folder: Path, pattern: str) -> list[str]:
    return sorted(path.stem for path in folder.glob(pattern))
