"""MODEL.FREEZE.CACHE as one checked value (F7)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

DTYPES = ("float32", "bfloat16")
KEYS = ("FOLDER", "VARIANTS", "DTYPE")
RULE = "FREEZE.CACHE must be null, a folder, or {FOLDER: folder, VARIANTS: 4, DTYPE: float32}"


@dataclass(frozen=True)
class CacheOptions:
    """Where the prefix's outputs are kept, and how."""

    folder: str
    """each key has a folder of its own in it"""
    variants: int | None = None
    """how many random draws of each sample are kept; None: the data must not be random"""
    dtype: str = "float32"
    """what float32 values are stored as"""


def read_cache(value: object) -> tuple[CacheOptions | None, list[str]]:
    """(options, faults) of what stands under FREEZE.CACHE."""
    if value is None or isinstance(value, CacheOptions):
        return value, []
    block = {"FOLDER": value} if isinstance(value, str) else value
    if not isinstance(block, Mapping):
        return None, [f"{RULE}; got {value!r}"]
    faults = [f"{RULE}; got the key {key!r}" for key in block if key not in KEYS]
    folder, variants = block.get("FOLDER"), block.get("VARIANTS")
    dtype = block.get("DTYPE", DTYPES[0])
    if not isinstance(folder, str) or not folder.strip():
        faults.append(f"{RULE}; got FOLDER: {folder!r}")
    if variants is not None and (not isinstance(variants, int) or isinstance(variants, bool) or variants < 1):
        faults.append(f"FREEZE.CACHE.VARIANTS must be a number of 1 or more, or null; got {variants!r}")
    if dtype not in DTYPES:
        faults.append(f"FREEZE.CACHE.DTYPE must be float32 or bfloat16; got {dtype!r}")
    return (None, faults) if faults else (CacheOptions(str(folder), variants, str(dtype)), [])
