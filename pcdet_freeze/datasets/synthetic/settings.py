"""DATA_CONFIG of a SyntheticDataset, and what the scenes of one split depend on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from pcdet_freeze.datasets.labels.label_settings import cell_size_faults
from pcdet_freeze.datasets.registry import Config
from pcdet_freeze.datasets.settings import DataSettings, Modes
from pcdet_freeze.datasets.synthetic.labels import LaneGrid
from pcdet_freeze.datasets.synthetic.sensor import BEAMS, Sensor
from pcdet_freeze.utils.settings.faults import raise_faults
from pcdet_freeze.utils.settings.rules import Count, Length, Name, Rule, at_least, one_of, whole
from pcdet_freeze.utils.settings.sections import Section, read_section

IN_MEMORY = "memory"
Elevations = Annotated[
    tuple[Annotated[float, Rule("an elevation from -89 to 89 degrees", lambda beam: -89 <= beam <= 89)], ...],
    Rule("a list of elevations in degrees, one or more", bool),
]


@dataclass(frozen=True)
class SensorSettings(Section):
    """``SENSOR``: the spinning LiDAR."""

    beams: Annotated[str, one_of(BEAMS)] | Elevations = "HDL-64E"
    """name of a sensor, or elevations in degrees"""
    azimuth_step: Annotated[float, Rule("within (0, 10] degrees", lambda step: 0 < step <= 10)] = 0.36
    """degrees"""
    range_noise: Annotated[float, at_least(0)] = 0.02
    """standard deviation in metres"""
    dropout: Annotated[float, at_least(0)] = 1.0
    """scale of the probability of a lost echo"""
    spurious: Annotated[float, at_least(0)] = 0.0002
    """share of stray points"""
    max_range: Length = 40.0
    """metres"""
    height: Length = 1.73
    """metres above the ground"""

    def made(self) -> Sensor:
        """Return the sensor."""
        beams = BEAMS[self.beams] if isinstance(self.beams, str) else self.beams
        values = {key: value for key, value in vars(self).items() if key != "beams"}
        return Sensor(elevations=beams, **values)


@dataclass(frozen=True)
class LaneMapSettings(Section):
    """``LANE``: how lane lines are drawn into lane maps."""

    cell_size: Length = 0.32
    """metres"""
    width: Length = 0.3
    """metres that a line is wide"""


@dataclass(frozen=True, kw_only=True)
class SyntheticSettings(DataSettings):
    """DATA_CONFIG of SyntheticDataset."""

    seed: Modes[Annotated[int, whole(0)]]
    num_scenes: Modes[Count]
    sensor: SensorSettings = field(default_factory=SensorSettings)
    lane: LaneMapSettings = field(default_factory=LaneMapSettings)
    min_points: Count = 5
    """objects with fewer points get no training box, and do not count in the evaluation"""
    min_cars: Annotated[int, whole(0)] = 5
    """cars with MIN_POINTS points and centre in range that every scene has at least"""
    cache: Annotated[Name, Rule("'memory', a folder, or null", bool)] | None = None
    """``memory`` or a folder keeps rendered scenes (see ``cache.FrameCache``)"""

    def faults(self) -> Iterator[str]:
        """Splits that share scenes, cells that do not fit the range."""
        if self.seed.train == self.seed.test:
            yield f"SEED.test must differ from SEED.train, or they share scenes; got {self.seed.test} twice"
        yield from cell_size_faults(self.lane.cell_size, self.point_cloud_range)


@dataclass(frozen=True)
class Settings:
    """What the scenes of one split depend on.

    ``limits``: the point cloud range (6 floats, metres); ``lane_width``: drawn width of a lane line in
    metres; ``min_points``: an object with fewer points is not labelled; ``min_cars``: labelled cars that
    every scene has at least; ``cache``: None, "memory" or a folder.
    """

    seed: int
    num_scenes: int
    sensor: Sensor
    limits: tuple[float, ...]
    grid: LaneGrid
    lane_width: float
    min_points: int
    min_cars: int
    cache: str | None

    @property
    def range(self) -> NDArray[np.float32]:
        """``limits`` as an array (6,) float32."""
        return np.array(self.limits, np.float32)

    @property
    def reach(self) -> float:
        """How far from the sensor objects are placed, metres: somewhat beyond the range."""
        far = max(abs(self.limits[i]) for i in (0, 1, 3, 4))
        return min(far + 8.0, self.sensor.max_range)

    @property
    def cache_folder(self) -> Path | None:
        """Folder of the rendered scenes, None without one."""
        return None if self.cache in (None, IN_MEMORY) else Path(str(self.cache))


def read_settings(cfg: Config, training: bool) -> Settings:
    """Read the settings of the split ('train' or 'test') from DATA_CONFIG; ConfigError with every fault."""
    found, faults = read_section(SyntheticSettings, cfg, "DATA_CONFIG")
    raise_faults(faults)
    assert found is not None  # there were no faults
    limits = found.point_cloud_range
    return Settings(
        seed=found.seed.of(training),
        num_scenes=found.num_scenes.of(training),
        sensor=found.sensor.made(),
        limits=limits,
        grid=LaneGrid(limits[0], limits[1], limits[3], limits[4], found.lane.cell_size),
        lane_width=found.lane.width,
        min_points=found.min_points,
        min_cars=found.min_cars,
        cache=found.cache,
    )
