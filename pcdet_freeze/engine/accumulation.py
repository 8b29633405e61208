"""Several batches in one optimizer step (OPTIMIZATION.ACCUMULATE)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pcdet_freeze.datasets.loader import next_batch
from pcdet_freeze.engine.finite_guard import running_statistics
from pcdet_freeze.engine.kept_tensors import KeptTensors
from pcdet_freeze.errors import TrainingError
from pcdet_freeze.utils import distributed
from pcdet_freeze.utils.rng import untouched_rng

Batch = dict[str, Any]
LISTS = ("frame_id", "skipped_frames", "bad_data")
"""keys of a batch with a list: names of frames, bad data"""


def merged(batches: Sequence[Batch]) -> Batch:
    """The last of ``batches``, with the names of the frames of all."""
    if len(batches) == 1:
        return batches[0]
    names = {key: [name for batch in batches for name in batch.get(key, ())] for key in LISTS}
    return {**batches[-1], **{key: found for key, found in names.items() if found}}


def mean_figures(figures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of each logged number over micro-batches; other values are those of the last."""
    if len(figures) == 1:
        return dict(figures[0])
    found = {}
    for name, last in figures[-1].items():
        values = [each[name] for each in figures if name in each]
        is_number = all(isinstance(value, (int, float, Tensor)) for value in values)
        found[name] = sum(values) / len(values) if is_number else last
    return found


def count_ahead(model: nn.Module, batches: Sequence[Batch]) -> None:
    """Sum the normalizers of the losses over all of ``batches`` and all ranks, before the first backward.

    A loss that is divided by a count of all micro-batches must know it in the first backward, and Dice needs
    the predictions of all. So each batch has a forward without graph first, unless every loss is normalised
    locally (MODEL.LOSS_NORMALIZATION). Random generators and running statistics are not changed. Collective
    where there are several ranks.
    """
    detector: Any = distributed.unwrap(model)
    shared = getattr(detector, "loss_normalization", None)
    if shared is None:
        return
    shared.micro_batches, shared.known = len(batches), None
    if len(batches) == 1 or not shared.chosen(detector.heads_with_loss()):
        return
    statistics, sums = KeptTensors(running_statistics(detector)), []
    with torch.no_grad(), untouched_rng():
        for batch in batches:
            detector.run_modules(dict(batch))
            sums.append(shared.count(detector.heads_with_loss()))
    statistics.restore()
    shared.known = shared.sum_over_ranks(torch.stack(sums).sum(dim=0))


def next_batches(batches: Iterator[Batch], first: int, count: int, length: int) -> list[Batch]:
    """Return ``count`` batches from number ``first`` (0-based) on; fewer at the end of ``length``."""
    return [next_batch(batches, number, length) for number in range(first, min(first + count, length))]


@dataclass(frozen=True)
class StepResult:
    """Means over the micro-batches of a step."""

    loss: Tensor
    """() on the device, without graph"""
    tb_dict: dict[str, Any]
    disp_dict: dict[str, Any]
    """of the last micro-batch"""
    seconds: float
    """of all forwards"""


def forward_backward(
    model: nn.Module,
    batches: Sequence[Batch],
    scale: Callable[[Tensor], Tensor],
    autocast: Callable[[], AbstractContextManager[object]],
    begin: Callable[[int], None],
) -> StepResult:
    """Forward and backward of each batch. Gradients are averaged over batches, and over ranks in the last.

    Args:
        scale: scales a loss before its backward (GradScaler).
        begin: is called with the number of each batch before its forward.

    Raises:
        TrainingError: a loss has no graph.
    """
    losses, figures, seconds = [], [], 0.0
    for number, batch in enumerate(batches):
        begin(number)
        is_last, start = number + 1 == len(batches), perf_counter()
        alone = isinstance(model, DistributedDataParallel) and not is_last
        with model.no_sync() if alone else nullcontext():  # type: ignore[operator]
            with autocast():
                # a copy: maps that the model adds and no graph needs are freed before the backward pass
                result, tb_dict, disp_dict = model(dict(batch))
            loss: Tensor = result["loss"].mean()
            seconds += perf_counter() - start
            if not loss.requires_grad:
                raise TrainingError(_NO_GRAPH)
            losses.append(loss.detach())
            figures.append(tb_dict)
            scale(loss / len(batches) if len(batches) > 1 else loss).backward()
    begin(0)
    mean = losses[0] if len(losses) == 1 else torch.stack(losses).mean()
    return StepResult(mean, mean_figures(figures), disp_dict, seconds)


_NO_GRAPH = (
    "The loss does not depend on any trainable parameter. Remove an entry from MODEL.NOT_TRAIN_IN_MULTI_TASK."
)
