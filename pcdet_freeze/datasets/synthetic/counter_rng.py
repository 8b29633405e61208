"""Counter-based random numbers for the kernels: each number is a function of its key only.

The noise of a ray therefore does not depend on the rays cast before it. Mixing function: splitmix64 (Steele,
Lea, Flood 2014, "Fast splittable pseudorandom number generators").
"""

from __future__ import annotations

import numpy as np

from pcdet_freeze.ops.compiled import compiled

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@compiled
def mix(key: np.uint64) -> np.uint64:
    """Hash 64 bits."""
    key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return key ^ (key >> np.uint64(31))


@compiled
def stream(key: np.uint64, number: int) -> np.uint64:
    """The ``number``-th 64-bit word of the stream ``key``."""
    return mix(key + np.uint64(number + 1) * GOLDEN)


@compiled
def uniform(key: np.uint64, number: int) -> float:
    """A float in [0, 1)."""
    return float(stream(key, number) >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@compiled
def bell(key: np.uint64, number: int) -> float:
    """Approximately standard normal, bounded by 3.47: the scaled sum of four 16-bit uniforms."""
    word = stream(key, number)
    total = 0.0
    for _ in range(4):
        total += float(word & np.uint64(0xFFFF))
        word = word >> np.uint64(16)
    return (total / 65535.0 - 2.0) * 1.7320508075688772


@compiled
def blotch(key: np.uint64, x: float, y: float) -> float:
    """Value noise in [0, 1] on the plane: bilinear interpolation of a random lattice with spacing 1."""
    column, row = np.floor(x), np.floor(y)
    u, v = x - column, y - row
    base = (int(column) + 32768) * 65536 + int(row) + 32768
    low = uniform(key, base) * (1 - v) + uniform(key, base + 1) * v
    high = uniform(key, base + 65536) * (1 - v) + uniform(key, base + 65537) * v
    return low * (1 - u) + high * u
