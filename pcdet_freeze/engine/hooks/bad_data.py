"""Count the frames and database objects that a training leaves out, and end it where they are too many."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pcdet_freeze.datasets.reading.bad_data import BadData, BadFramePolicy, BadItem, shown
from pcdet_freeze.engine.hooks.base import Hook
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.errors import CheckpointError
from pcdet_freeze.utils import distributed

KEY = "bad_data"
"""of a batch, of ``trainer.results`` and of a checkpoint"""


class BadDataHook(Hook):
    """Reads ``bad_data`` of each batch; reports each epoch, and the whole run in ``results["bad_data"]``.

    The limit DATA_CONFIG.BAD_FRAME_LIMIT holds for all ranks and the whole run, those before a resume
    included. Within an epoch each rank compares what it knows. At the end of the epoch, and in each
    checkpoint, the ranks exchange what they met: an iteration has no collective for this.
    """

    def __init__(self) -> None:
        self._run = BadData(BadFramePolicy(), {})
        self._epoch: dict[tuple[str, str], BadItem] = {}

    def before_train(self, trainer: Trainer) -> None:
        dataset = getattr(trainer.loader, "dataset", None)
        totals = getattr(dataset, "totals", None)
        policy = getattr(dataset, "policy", BadFramePolicy())
        self._run = BadData(policy, totals() if totals is not None else {}, dict(self._run.found))
        self._run.merge(_stored(trainer.resumed))

    def before_epoch(self, trainer: Trainer) -> None:
        self._epoch = {}

    def after_step(self, trainer: Trainer) -> None:
        """Raises DataError where bad items are more than the limit."""
        if found := trainer.batch.get(KEY):
            self._epoch |= {(item.kind, item.name): item for item in found}
            self._run.add(found)

    def after_epoch(self, trainer: Trainer) -> None:
        """Raises DataError on all ranks where the bad items of all ranks are more than the limit."""
        for kind, names in _by_kind(self._exchange()).items():
            trainer.logger.warning("Left out in this epoch: %d bad %ss: %s", len(names), kind, shown(names))
        self._run.check()

    def at_checkpoint(self, trainer: Trainer, ours: dict[str, Any]) -> None:
        self._exchange()
        ours[KEY] = [list(item) for item in self._items()]

    def after_train(self, trainer: Trainer) -> None:
        self._exchange()
        if found := _by_kind(self._items()):
            trainer.results[KEY] = {kind: {"count": len(n), "names": n} for kind, n in found.items()}
            counts = ", ".join(f"{len(names)} bad {kind}s" for kind, names in found.items())
            trainer.logger.warning("Left out in this run: %s", counts)

    def _exchange(self) -> list[BadItem]:
        """What all ranks met in this epoch; a collective call, after which they know the same."""
        found = [item for items in distributed.gather(list(self._epoch.values())) for item in items]
        self._run.merge(found)
        self._run.found = dict(sorted(self._run.found.items()))  # one message on all ranks
        return found

    def _items(self) -> list[BadItem]:
        return [BadItem(kind, name, reason) for (kind, name), reason in self._run.found.items()]


def _by_kind(items: list[BadItem]) -> dict[str, list[str]]:
    """Kind -> names, both sorted."""
    merged: dict[str, list[str]] = {}
    for kind, name in sorted({(item.kind, item.name) for item in items}):
        merged.setdefault(kind, []).append(name)
    return merged


def _stored(ours: Mapping[str, Any]) -> list[BadItem]:
    """The bad items in a checkpoint; those of older versions have none. Raises CheckpointError."""
    items = ours.get(KEY, [])
    whole = isinstance(items, list) and all(
        isinstance(item, list) and len(item) == 3 and all(isinstance(word, str) for word in item)
        for item in items
    )
    if not whole:
        raise CheckpointError(
            f"The bad frames in a checkpoint must be lists of kind, name and reason, but are {items!r:.80}. "
            "Remove it, or name another one with --ckpt."
        )
    return [BadItem(*item) for item in items]
