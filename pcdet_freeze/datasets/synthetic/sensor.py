"""Spinning LiDAR: beam tables and the rays of one revolution.

Elevations in degrees, from the manufacturers' manuals: Velodyne HDL-64E S2 (upper block +2 ... -8.33 in steps
of 1/3, lower block -8.83 ... -24.33 in steps of 1/2), HDL-32E (+10.67 ... -30.67 in steps of 4/3),
VLP-32C (uneven) and VLP-16 (+15 ... -15 in steps of 2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

BEAMS: dict[str, tuple[float, ...]] = {
    "HDL-64E": tuple(2 - i / 3 for i in range(32)) + tuple(-8.83 - i / 2 for i in range(32)),
    "HDL-32E": tuple(10.67 - i * 4 / 3 for i in range(32)),
    "VLP-32C": (
        *(15.0, 10.333, 7.0, 4.667, 3.333, 2.333, 1.667, 1.333, 1.0, 0.667, 0.333, 0.0, -0.333, -0.667),
        *(-1.0, -1.333, -1.667, -2.0, -2.333, -2.667, -3.0, -3.333, -3.667, -4.0, -4.667, -5.333),
        *(-6.148, -7.254, -8.843, -11.31, -15.639, -25.0),
    ),
    "VLP-16": tuple(15.0 - 2 * i for i in range(16)),
}

BEAM_STAGGER = (-4.2, -1.4, 1.4, 4.2)
"""Azimuth offsets in degrees of adjacent beams, whose lasers are not in one column."""


@dataclass(frozen=True)
class Sensor:
    """Parameters of a spinning LiDAR.

    ``elevations`` and ``azimuth_step`` in degrees; ``range_noise`` standard deviation in metres; ``dropout``
    scale of the probability of a lost return (0: none is lost randomly); ``spurious`` fraction of rays that
    return a stray point; ``max_range`` in metres; ``height`` above the ground in metres.
    """

    elevations: tuple[float, ...] = BEAMS["HDL-64E"]
    azimuth_step: float = 0.36
    range_noise: float = 0.02
    dropout: float = 1.0
    spurious: float = 0.0002
    max_range: float = 40.0
    height: float = 1.73


class Rays(NamedTuple):
    """One revolution: ray (column c, beam b) has index ``c * B + b``; all arrays float64.

    ``cos_az, sin_az`` (A,) of the columns; ``cos_el, sin_el, tan_el, cos_off, sin_off`` (B,) of the
    beams; column c has the azimuth ``start + c * step`` rad; ``pad``: columns by which windows are enlarged.
    """

    cos_az: NDArray[np.float64]
    sin_az: NDArray[np.float64]
    cos_el: NDArray[np.float64]
    sin_el: NDArray[np.float64]
    tan_el: NDArray[np.float64]
    cos_off: NDArray[np.float64]
    sin_off: NDArray[np.float64]
    start: float
    step: float
    pad: int


def rays(sensor: Sensor, start: float) -> Rays:
    """The rays of one revolution that starts at azimuth ``start`` (rad)."""
    columns = max(round(360.0 / sensor.azimuth_step), 1)
    step = 2 * np.pi / columns
    azimuth = start + step * np.arange(columns)
    elevation = np.deg2rad(np.asarray(sensor.elevations, dtype=np.float64))
    stagger = np.deg2rad(np.resize(BEAM_STAGGER, elevation.shape))
    return Rays(
        *(np.cos(azimuth), np.sin(azimuth)),
        *(np.cos(elevation), np.sin(elevation), np.tan(elevation)),
        *(np.cos(stagger), np.sin(stagger)),
        start=float(start),
        step=float(step),
        pad=int(np.ceil(np.abs(stagger).max() / step)) + 1,
    )
