"""DATA_CONFIG of a SyntheticDataset -> checked settings; all faults in one ConfigError."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcdet_freeze.datasets.registry import Config
from pcdet_freeze.datasets.synthetic.labels import LaneGrid
from pcdet_freeze.datasets.synthetic.sensor import BEAMS, Sensor
from pcdet_freeze.errors import ConfigError

IN_MEMORY = "memory"
OWN_KEYS = ("SEED", "NUM_SCENES", "SENSOR", "LANE", "CACHE", "MIN_POINTS", "MIN_CARS")
SHARED_KEYS = (
    *("DATASET", "DATA_PATH", "POINT_CLOUD_RANGE", "POINT_FEATURE_ENCODING"),
    *("DATA_AUGMENTOR", "DATA_PROCESSOR", "KEEP_EMPTY_FRAMES", "INFO_ROOT"),
)
SENSOR_KEYS = ("BEAMS", "AZIMUTH_STEP", "RANGE_NOISE", "DROPOUT", "SPURIOUS", "MAX_RANGE", "HEIGHT")
LANE_KEYS = ("CELL_SIZE", "WIDTH")


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
    """Settings of the split ('train' or 'test') from a DATA_CONFIG; raises ConfigError with every fault."""
    faults = [f"{key}: unknown key" for key in cfg if key not in OWN_KEYS + SHARED_KEYS]
    read = _Reader(cfg, faults)
    mode = "train" if training else "test"
    seeds = {split: read.number(f"SEED.{split}", None, _whole(0)) for split in ("train", "test")}
    if seeds["train"] == seeds["test"]:
        faults.append(f"SEED: train and test must differ, or they share scenes; got {seeds['train']} twice")
    sensor = _sensor(read)
    limits = tuple(float(value) for value in cfg["POINT_CLOUD_RANGE"])
    cell = read.number("LANE.CELL_SIZE", 0.32, _positive)
    if not _divides(cell, limits[3] - limits[0]) or not _divides(cell, limits[4] - limits[1]):
        faults.append(f"LANE.CELL_SIZE: must divide POINT_CLOUD_RANGE in x and y; got {cell} for {limits}")
    settings = dict(
        seed=seeds[mode],
        num_scenes=read.number(f"NUM_SCENES.{mode}", None, _whole(1)),
        sensor=sensor,
        limits=limits,
        grid=LaneGrid(limits[0], limits[1], limits[3], limits[4], cell),
        lane_width=read.number("LANE.WIDTH", 0.3, _positive),
        min_points=read.number("MIN_POINTS", 5, _whole(1)),
        min_cars=read.number("MIN_CARS", 5, _whole(0)),
        cache=cfg.get("CACHE"),
    )
    _check_mapping(read, "SENSOR", SENSOR_KEYS)
    _check_mapping(read, "LANE", LANE_KEYS)
    _check_mapping(read, "SEED", ("train", "test"))
    _check_mapping(read, "NUM_SCENES", ("train", "test"))
    if not (settings["cache"] is None or (isinstance(settings["cache"], str) and settings["cache"])):
        faults.append(f"CACHE: must be null, {IN_MEMORY!r} or a folder; got {settings['cache']!r}")
    if faults:
        listing, known = "\n  ".join(faults), ", ".join(OWN_KEYS + SHARED_KEYS)
        raise ConfigError(f"DATA_CONFIG of a SyntheticDataset:\n  {listing}\nKnown keys: {known}")
    return Settings(**settings)


class _Reader:
    """Reads dotted keys and notes what is wrong with them."""

    def __init__(self, cfg: Config, faults: list[str]) -> None:
        self.cfg, self.faults = cfg, faults

    def value(self, key: str, default: Any) -> Any:
        section, _, name = key.rpartition(".")
        part = self.cfg.get(section, {}) if section else self.cfg
        return part.get(name, default) if isinstance(part, Mapping) else default

    def number(self, key: str, default: Any, rule: tuple[str, Callable[[float], bool]]) -> Any:
        value = self.value(key, default)
        good = isinstance(value, int | float) and not isinstance(value, bool) and rule[1](value)
        if not good:
            self.faults.append(f"{key}: must be {rule[0]}; got {value!r}")
        return value if good else 1


def _divides(cell: float, extent: float) -> bool:
    return abs(extent / cell - round(extent / cell)) < 1e-3


def _whole(least: int) -> tuple[str, Callable[[float], bool]]:
    return f"a whole number of at least {least}", lambda v: isinstance(v, int) and v >= least


_positive = ("a number above 0", lambda v: bool(v > 0))
_step = ("within (0, 10] degrees", lambda v: bool(0 < v <= 10))
_share = ("a number of at least 0", lambda v: bool(v >= 0))


def _check_mapping(read: _Reader, section: str, known: tuple[str, ...]) -> None:
    part = read.cfg.get(section, {})
    if not isinstance(part, Mapping):
        read.faults.append(f"{section}: must be a mapping with {', '.join(known)}; got {part!r}")
        return
    unknown = [key for key in part if key not in known]
    read.faults += [f"{section}.{key}: unknown key (known: {', '.join(known)})" for key in unknown]


def _sensor(read: _Reader) -> Sensor:
    return Sensor(
        elevations=_beams(read),
        azimuth_step=float(read.number("SENSOR.AZIMUTH_STEP", 0.36, _step)),
        range_noise=float(read.number("SENSOR.RANGE_NOISE", 0.02, _share)),
        dropout=float(read.number("SENSOR.DROPOUT", 1.0, _share)),
        spurious=float(read.number("SENSOR.SPURIOUS", 0.0002, _share)),
        max_range=float(read.number("SENSOR.MAX_RANGE", 40.0, _positive)),
        height=float(read.number("SENSOR.HEIGHT", 1.73, _positive)),
    )


def _beams(read: _Reader) -> tuple[float, ...]:
    beams = read.value("SENSOR.BEAMS", "HDL-64E")
    if isinstance(beams, str) and beams in BEAMS:
        return BEAMS[beams]
    try:
        elevations = tuple(float(beam) for beam in ([] if isinstance(beams, str) else beams))
    except (TypeError, ValueError):
        elevations = ()
    if not elevations or any(not -89 <= beam <= 89 for beam in elevations):
        known = ", ".join(BEAMS)
        read.faults.append(f"SENSOR.BEAMS: must be one of {known}, or elevations in degrees; got {beams!r}")
        return BEAMS["HDL-64E"]
    return elevations
