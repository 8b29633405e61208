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
from pcdet_freeze.engine.prefix_cache.size import more_samples, samples_of, store_for
from pcdet_freeze.engine.prefix_cache.step import Entry, StoreStep
from pcdet_freeze.engine.prefix_cache.store import Store
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.errors import FreezeError
from pcdet_freeze.freezing.plan import CacheOptions
from pcdet_freeze.freezing.prefix import FastForward, Options, Replanner
from pcdet_freeze.freezing.prefix.boundary import Boundary
from pcdet_freeze.freezing.prefix.boundary_check import SAME_LOOSE, find_boundary, is_exact
from pcdet_freeze.freezing.prefix.cached_forward import CachedForward
from pcdet_freeze.utils import distributed
from pcdet_freeze.utils.rng import untouched_rng
from pcdet_freeze.utils.tensors import relative_error

ENTRY = "cache_entry"
"""key of a batch: (B, 2) int64, row and source of each sample (``DatasetTemplate.keep_variants``)"""
STALE = 1e-3
"""largest relative error (L2) of a row against the value computed now, in float32"""


class PrefixCache:
    """Reads the prefix outputs of training forwards from a folder, and fills it on the way.

    Args:
        options: FREEZE.CACHE.
    """

    def __init__(self, options: CacheOptions) -> None:
        self.options = options
        self.store: Store | None = None
        self._lookahead = Lookahead()
        self._data: Any = None
        self._boundary = Boundary()
        self._fast: FastForward | None = None
        self._made_from: tuple[Any, ...] = ()
        self._digest = ""
        self._check = True
        self._fault_is_logged = False

    def take_data(self, loader: Any) -> None:
        """Make the data set of ``loader`` draw a fixed number of variants and add each sample's row.

        Raises ConfigError if its augmentation is random and no number of variants is given, and FreezeError
        for a data set that cannot identify its samples.
        """
        dataset: Any = getattr(loader, "dataset", None)
        if not hasattr(dataset, "keep_variants"):
            raise FreezeError(
                "FREEZE.CACHE needs a data set that identifies its samples (keep_variants and cache_key of "
                f"DatasetTemplate); {type(dataset).__name__} does not. Set CACHE: null."
            )
        dataset.keep_variants(self.options.variants)
        self._data = dataset

    def prepare(self, replanner: Replanner, batch: dict[str, Any], log: Callable[[str], None]) -> None:
        """Open the store for what is frozen now, unless it is open; ``log`` gets messages.

        All ranks call this in the same step. Raises FreezeError, on every rank, for outputs without one row a
        sample and for a full disk. In a later phase of a schedule the run continues without the cache.
        """
        if self.store is not None and self.store.fault and not self._fault_is_logged:
            self._fault_is_logged = True
            log(f"The cache takes no more samples; the others are computed. {self.store.fault}")
        if self._fast is replanner.fast and not self._has_changed(replanner):
            return
        self.store, self._check = None, True
        fault = ""
        try:
            with untouched_rng():
                self._open(replanner, batch, log)
        except FreezeError as error:
            fault = str(error)
        # with a new plan all ranks are here, else perhaps this one alone
        faults = [text for text in (fault,) if text]
        if self._fast is not replanner.fast:
            faults = [text for text in distributed.gather(fault) if text]
        if faults and self._fast is None:
            raise FreezeError(faults[0])
        if faults:  # a later phase of a schedule: the run can continue without a cache
            self.store = None
            log(f"The run continues without the cache. {faults[0]}")
        self._fast, self._made_from = replanner.fast, self._versions(replanner)
        self._digest = state_digest(replanner.root, self._boundary)

    def _has_changed(self, replanner: Replanner) -> bool:
        """Whether the cached modules have other values.

        They are digested only if something wrote to them, such as the exchange of buffers after an epoch.
        """
        before, self._made_from = self._made_from, self._versions(replanner)
        return before != self._made_from and self._digest != state_digest(replanner.root, self._boundary)

    def forward(self, replanner: Replanner, batch: dict[str, Any]) -> FastForward:
        """Return the patches under which the next forward, on ``batch``, runs."""
        if self.store is None:
            return replanner.fast
        entries = [Entry(int(row), int(source)) for row, source in batch[ENTRY].tolist()]
        device = next(replanner.root.parameters()).device
        limit = None
        if self._check:  # once a process; the other checks see the frozen modules run, too
            exact = is_exact(replanner.root, replanner.options) and self.options.dtype == "float32"
            limit, self._check = STALE if exact else SAME_LOOSE, False
        step = StoreStep(self.store, entries, device, limit)
        return CachedForward(replanner.root, replanner.plan, replanner.options, self._boundary, step)

    def prefetch(self, trainer: Trainer) -> None:
        """Start to read the rows of the next batch from the disk."""
        if self.store is not None and hasattr(self._data, "cache_row"):
            self.store.prefetch([self._data.cache_row(index) for index in self._lookahead.after(trainer)])

    def _open(self, replanner: Replanner, batch: dict[str, Any], log: Callable[[str], None]) -> None:
        """Find the outputs to keep, log their size, open their folder."""
        self._boundary = Boundary()
        if not replanner.plan.prefix:
            return log(NO_PREFIX)
        boundary, values = find_boundary(
            replanner.root, replanner.plan, replanner.options, batch, last_sample
        )
        require_rows(boundary)
        if not boundary.slots:
            return log(UNREAD)
        self._boundary = boundary
        data, dtype = self._data.cache_key(), self.options.dtype
        key = cache_key(replanner.root, boundary, replanner.plan, replanner.options, dtype, data)
        above = Path(self.options.folder)
        folder = above / key_digest(key)
        new = not folder.exists()
        samples = samples_of(values)
        if new and self._fast is None:
            samples += more_samples(replanner, boundary, self._data, batch)
        store = store_for(self.options, folder, boundary.slots, data, samples, log)
        changed = differences(above, key) if new else []
        if changed:
            log(f"  a new cache: it differs from the nearest one in {above} in {', '.join(changed)}")
        store.open(key)
        log(f"  {store.filled} of {store.rows} samples are cached already")
        if dtype != "float32":
            error = max(relative_error(v, v.to(getattr(torch, dtype)).to(v.dtype)) for v in values.values())
            log(f"  approximate: stored in {dtype} with a relative error (L2) of {error:.1e}")
        self.store = store

    def _versions(self, replanner: Replanner) -> tuple[Any, ...]:
        """A value that changes when a tensor of the cached modules is written to or replaced."""
        tensors = [
            tensor
            for path in self._boundary.paths
            for module in replanner.root.get_submodule(path).modules()
            for tensor in (*module._parameters.values(), *module._buffers.values())
            if tensor is not None
        ]
        return tuple((id(t), t._version, t.data_ptr()) for t in tensors)


NO_PREFIX = "FREEZE.CACHE has nothing to keep: there is no frozen prefix."
UNREAD = "FREEZE.CACHE has nothing to keep: nothing that trains reads the frozen prefix."


def require_rows(boundary: Boundary) -> None:
    """Raise FreezeError with the names of all outputs that cannot be kept."""
    if boundary.refused:
        raise FreezeError(
            "FREEZE.CACHE keeps outputs of the frozen prefix that have one row for each sample, but "
            f"{'; '.join(boundary.refused)}. Freeze up to where the outputs are maps, or set CACHE: null."
        )


def outlook(
    model: nn.Module, options: Options, cache: CacheOptions, dataset: Any, batch: dict[str, Any]
) -> str:
    """Return a line on the outputs that a training of ``model`` would keep; nothing is written.

    Raises ConfigError and FreezeError if the training would.
    """
    dataset.keep_variants(cache.variants)
    replanner = Replanner(model.train(), options)
    replanner.prepare(batch)
    if not replanner.plan.prefix:
        return NO_PREFIX
    boundary, values = find_boundary(replanner.root, replanner.plan, options, batch, last_sample)
    require_rows(boundary)
    if not boundary.slots:
        return UNREAD
    variants, lines = cache.variants or 1, list[str]()
    data = {"rows": len(dataset) * variants, "variants": variants}
    store_for(cache, Path(cache.folder), boundary.slots, data, samples_of(values), lines.append)
    return ";".join(lines)
