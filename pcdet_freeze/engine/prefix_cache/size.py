"""What a cache will take on the disk, from a sample of frames."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pcdet_freeze.engine.prefix_cache.compression import compression_for
from pcdet_freeze.engine.prefix_cache.disk import free_bytes, size_text
from pcdet_freeze.engine.prefix_cache.store import Store
from pcdet_freeze.freezing.plan import CacheOptions
from pcdet_freeze.freezing.prefix import Replanner
from pcdet_freeze.freezing.prefix.boundary import Boundary, Slot
from pcdet_freeze.freezing.prefix.boundary_check import MemoryRecorder
from pcdet_freeze.freezing.prefix.cached_forward import CachedForward
from pcdet_freeze.models import load_data_to_gpu

FRAMES = 8
"""number of frames from which the size is estimated"""
Sample = dict[Slot, Tensor]
"""the tensors of one sample, each with its shape"""


def samples_of(values: Mapping[Slot, Tensor]) -> list[Sample]:
    """``values`` (B, *shape) as one dict for each sample."""
    count = min((len(value) for value in values.values()), default=0)
    return [{slot: value[number] for slot, value in values.items()} for number in range(count)]


def more_samples(
    replanner: Replanner, boundary: Boundary, dataset: Any, batch: Mapping[str, Any]
) -> list[Sample]:
    """Compute the outputs of frames that are spread evenly over ``dataset``, FRAMES with those of ``batch``.

    A copy of the model runs, with the batch size of ``batch``. A data set without frames to draw gives none.
    """
    size = int(batch["batch_size"])
    count = max(0, FRAMES - size) // size * size
    if not hasattr(dataset, "collate_batch") or len(dataset) < count:
        return []
    indices, found = [number * len(dataset) // max(1, count) for number in range(count)], []
    device = next(replanner.root.parameters()).device
    for begin in range(0, count, size):
        frames = dataset.collate_batch([dataset[index] for index in indices[begin : begin + size]])
        load_data_to_gpu(frames, device)
        found += samples_of(_recorded(replanner, boundary, frames))
    return found


def _recorded(replanner: Replanner, boundary: Boundary, batch: dict[str, Any]) -> Sample:
    twin, recorder = copy.deepcopy(replanner.root), MemoryRecorder()
    for module in twin.modules():
        if isinstance(module, nn.SyncBatchNorm):
            module.eval()  # other ranks may not be here
    forward = CachedForward(twin, replanner.plan, replanner.options, boundary, recorder)
    with torch.no_grad(), forward:
        twin(batch)
    return recorder.values


def store_for(
    options: CacheOptions,
    folder: Path,
    slots: Sequence[Slot],
    data: Mapping[str, Any],
    samples: Sequence[Sample],
    log: Callable[[str], None],
) -> Store:
    """Return the store in ``folder``, not yet opened, after its size was logged.

    Args:
        data: ``DatasetTemplate.cache_key``: number of rows and of variants.
        samples: the outputs of some samples.

    Raises:
        FreezeError: the estimated size does not fit on the disk, or the rows there cannot be read.
    """
    store = Store(folder, slots, int(data["rows"]), getattr(torch, options.dtype), limit=options.limit_bytes)
    rows = [[store.stored_form(slot, sample[slot]) for slot in slots] for sample in samples]
    store.compression, note = compression_for(
        folder, options.compress, [row for each in rows for row in each]
    )
    pack = store.compression.pack if store.compression else None
    sizes = [sum(len(pack(row)) if pack else row.nbytes for row in each) for each in rows]
    expected, store.expected_row = int(sum(sizes) / len(sizes) * store.rows), max(sizes)
    log(size_line(store, int(data["variants"]), options.dtype, sizes, expected))
    if note:
        log(note)
    if store.limit is not None and expected > store.limit:
        log(f"  LIMIT: about {store.limit / expected:.0%} of the samples fit; the others are computed")
    store.require_room(expected)
    return store


def size_line(store: Store, variants: int, dtype: str, sizes: Sequence[int], expected: int) -> str:
    """Return one line: the outputs that are cached, their size for one sample and for all, what is free."""
    names = ", ".join(slot.name for slot in store.slots)
    times = f" x {variants} variants" if variants > 1 else ""
    one, total = f"{size_text(sum(store.row_bytes))} a sample ({dtype})", size_text(expected)
    if store.compression:
        mean, ends = size_text(sum(sizes) / len(sizes)), f"{size_text(min(sizes))} to {size_text(max(sizes))}"
        one += f", compressed {mean} ({store.compression.codec}; {ends} in {len(sizes)} samples)"
        total = f"about {total}"
    return (
        f"Cache of {names}: {one} x {store.rows // variants} samples{times} = {total} in {store.folder} "
        f"({size_text(free_bytes(store.folder))} free)"
    )
