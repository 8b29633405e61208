"""The activation cache of a model in training (FREEZE.CACHE, F7)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pcdet_freeze.datasets.collate import last_sample
from pcdet_freeze.engine.prefix_cache.key import cache_key, differences, key_digest, state_digest
from pcdet_freeze.engine.prefix_cache.lookahead import Lookahead
from pcdet_freeze.engine.prefix_cache.step import Entry, StoreStep
from pcdet_freeze.engine.prefix_cache.store import Store, size_text
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.errors import FreezeError
from pcdet_freeze.freezing.plan import CacheOptions
from pcdet_freeze.freezing.prefix import FastForward, Options, Replanner
from pcdet_freeze.freezing.prefix.boundary import Boundary
from pcdet_freeze.freezing.prefix.boundary_check import SAME_LOOSE, find_boundary, is_exact
from pcdet_freeze.freezing.prefix.cached_forward import CachedForward
from pcdet_freeze.freezing.prefix.output_diff import relative
from pcdet_freeze.utils import distributed
from pcdet_freeze.utils.rng import untouched_rng

ENTRY = "cache_entry"
"""key of a batch: (B, 2) int64, row and source of each sample (``DatasetTemplate.keep_variants``)"""
STALE = 1e-3
"""relative difference (L2) by which a row may differ from what is computed now, in float32"""


class PrefixCache:
    """Serves training forwards from a folder, and fills it on the way.

    Args:
        options: FREEZE.CACHE.
    """

    def __init__(self, options: CacheOptions) -> None:
        self.options = options
        self.store: Store | None = None
        self._coming = Lookahead()
        self._data: Any = None
        self._border = Boundary()
        self._fast: FastForward | None = None
        self._made_from: tuple[Any, ...] = ()
        self._digest = ""
        self._check = True

    def take_data(self, loader: Any) -> None:
        """Have the data set of ``loader`` draw a bounded number of variants, and name each sample's row.

        Raises ConfigError where its draws are random and no number of variants is given, and FreezeError for
        one that cannot name its samples.
        """
        dataset: Any = getattr(loader, "dataset", None)
        if not hasattr(dataset, "keep_variants"):
            raise FreezeError(
                "FREEZE.CACHE needs a data set that says which sample is which (keep_variants and cache_key "
                f"of DatasetTemplate); {type(dataset).__name__} cannot. Set CACHE: null."
            )
        dataset.keep_variants(self.options.variants)
        self._data = dataset

    def prepare(self, renewed: Replanner, batch: dict[str, Any], tell: Callable[[str], None]) -> None:
        """Open the store for what is frozen now, unless that is done; ``tell`` gets lines for the log.

        All ranks come here in the same step. Raises FreezeError, on every rank, for outputs that cannot be
        kept whole and for a disk without room; not in a later phase of a schedule, where a line says so.
        """
        if self._fast is renewed.fast and not self._has_changed(renewed):
            return
        self.store, self._check = None, True
        fault = ""
        try:
            with untouched_rng():
                self._open(renewed, batch, tell)
        except FreezeError as error:
            fault = str(error)
        # with a new plan all ranks are here, else perhaps this one alone
        faults = [text for text in (fault,) if text]
        if self._fast is not renewed.fast:
            faults = [text for text in distributed.gather(fault) if text]
        if faults and self._fast is None:
            raise FreezeError(faults[0])
        if faults:  # a phase of a schedule has begun: without a cache the run goes on as well
            self.store = None
            tell(f"From here on without the cache. {faults[0]}")
        self._fast, self._made_from = renewed.fast, self._versions(renewed)
        self._digest = state_digest(renewed.root, self._border)

    def _has_changed(self, renewed: Replanner) -> bool:
        """Whether the cached part has other values. They are looked at where something wrote to them only, as
        the ranks' sharing of buffers after an epoch does."""
        before, self._made_from = self._made_from, self._versions(renewed)
        return before != self._made_from and self._digest != state_digest(renewed.root, self._border)

    def forward(self, renewed: Replanner, batch: dict[str, Any]) -> FastForward:
        """How the next forward, on ``batch``, runs."""
        if self.store is None:
            return renewed.fast
        entries = [Entry(int(row), int(source)) for row, source in batch[ENTRY].tolist()]
        device = next(renewed.root.parameters()).device
        limit = None
        if self._check:  # once in a process, also so that others see the frozen modules at work
            exact = is_exact(renewed.root, renewed.options) and self.options.dtype == "float32"
            limit, self._check = STALE if exact else SAME_LOOSE, False
        step = StoreStep(self.store, entries, device, limit)
        return CachedForward(renewed.root, renewed.plan, renewed.options, self._border, step)

    def prefetch(self, trainer: Trainer) -> None:
        """Have the rows of the next batch read from the disk meanwhile."""
        if self.store is not None and hasattr(self._data, "cache_row"):
            self.store.prefetch([self._data.cache_row(index) for index in self._coming.after(trainer)])

    def _open(self, renewed: Replanner, batch: dict[str, Any], tell: Callable[[str], None]) -> None:
        """Find what is kept, state its size, open its folder."""
        self._border = Boundary()
        if not renewed.plan.prefix:
            return tell(NO_PREFIX)
        border, values = find_boundary(renewed.root, renewed.plan, renewed.options, batch, last_sample)
        require_rows(border)
        if not border.slots:
            return tell(UNREAD)
        self._border = border
        data, dtype = self._data.cache_key(), self.options.dtype
        key = cache_key(renewed.root, border, renewed.plan, renewed.options, dtype, data)
        above = Path(self.options.folder)
        folder = above / key_digest(key)
        new = not folder.exists()
        store = Store(folder, border.slots, int(data["rows"]), getattr(torch, dtype))
        tell(size_line(store, data["variants"], dtype))
        changed = differences(above, key) if new else []
        if changed:
            tell(f"  a new cache: other than the nearest in {above} are {', '.join(changed)}")
        store.open(key)
        tell(f"  {store.filled} of {store.rows} samples are there already")
        if dtype != "float32":
            off = max(relative(v, v.to(getattr(torch, dtype)).to(v.dtype)) for v in values.values())
            tell(f"  approximate: stored in {dtype} they differ by {off:.1e} (relative L2)")
        self.store = store

    def _versions(self, renewed: Replanner) -> tuple[Any, ...]:
        """Another one whenever a tensor of the cached part was written to, or is another one."""
        tensors = [
            tensor
            for path in self._border.paths
            for module in renewed.root.get_submodule(path).modules()
            for tensor in (*module._parameters.values(), *module._buffers.values())
            if tensor is not None
        ]
        return tuple((id(t), t._version, t.data_ptr()) for t in tensors)


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
