"""What is said of a cache before there is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from pcdet_freeze.datasets.collate import last_sample
from pcdet_freeze.engine.prefix_cache.store import Store, size_text
from pcdet_freeze.errors import FreezeError
from pcdet_freeze.freezing.cache_config import CacheOptions
from pcdet_freeze.freezing.prefix import Options, Replanner
from pcdet_freeze.freezing.prefix.boundary import Boundary
from pcdet_freeze.freezing.prefix.boundary_check import find_boundary

NO_PREFIX = "FREEZE.CACHE has nothing to keep: there is no frozen prefix."
UNREAD = "FREEZE.CACHE has nothing to keep: nothing that trains reads the frozen prefix."


def require_rows(border: Boundary) -> None:
    """Raise FreezeError, with all names, where something cannot be kept."""
    if border.refused:
        raise FreezeError(
            "FREEZE.CACHE keeps outputs of the frozen prefix that have one row for each sample, but "
            f"{'; '.join(border.refused)}. Freeze up to where the outputs are maps, or set CACHE: null."
        )


def size_line(store: Store, variants: int, dtype: str) -> str:
    """Which outputs are kept, how large they are for one sample, and for all."""
    names = ", ".join(slot.name for slot in store.slots)
    times = f" x {variants} variants" if variants > 1 else ""
    return (
        f"Cache of {names}: {size_text(sum(store.row_bytes))} a sample ({dtype}) x "
        f"{store.rows // variants} samples{times} = {size_text(store.nbytes)} in {store.folder}"
    )


def outlook(
    model: nn.Module, options: Options, cache: CacheOptions, dataset: Any, batch: dict[str, Any]
) -> str:
    """What a training of ``model`` on ``dataset`` would keep; nothing is written.

    Raises ConfigError and FreezeError where the training would.
    """
    dataset.keep_variants(cache.variants)
    renewed = Replanner(model.train(), options)
    renewed.prepare(batch)
    if not renewed.plan.prefix:
        return NO_PREFIX
    border, _ = find_boundary(renewed.root, renewed.plan, options, batch, last_sample)
    require_rows(border)
    variants = cache.variants or 1
    rows, dtype = len(dataset) * variants, getattr(torch, cache.dtype)
    store = Store(Path(cache.folder), border.slots, rows, dtype)
    return size_line(store, variants, cache.dtype) if border.slots else UNREAD
