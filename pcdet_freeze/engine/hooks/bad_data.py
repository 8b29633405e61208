"""Count the frames and database objects that a training leaves out, and end it where they are too many."""

from __future__ import annotations

from pcdet_freeze.datasets.bad_data import BadData, BadFramePolicy, BadItem, shown
from pcdet_freeze.engine.hooks.base import Hook
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.utils import distributed


class BadDataHook(Hook):
    """Reads ``bad_data`` of each batch; reports each epoch, and the whole run in ``results["bad_data"]``.

    Each rank counts what it met against the limit DATA_CONFIG.BAD_FRAME_LIMIT; reports are of all ranks.
    """

    def __init__(self) -> None:
        self._run = BadData(BadFramePolicy(), {})
        self._epoch: list[BadItem] = []

    def before_train(self, trainer: Trainer) -> None:
        dataset = getattr(trainer.loader, "dataset", None)
        totals = getattr(dataset, "totals", None)
        policy = getattr(dataset, "policy", BadFramePolicy())
        self._run = BadData(policy, totals() if totals is not None else {}, dict(self._run.found))

    def before_epoch(self, trainer: Trainer) -> None:
        self._epoch = []

    def after_step(self, trainer: Trainer) -> None:
        """Raises DataError where bad items are more than the limit."""
        if found := trainer.batch.get("bad_data"):
            self._epoch += found
            self._run.add(found)

    def after_epoch(self, trainer: Trainer) -> None:
        for kind, names in _of_all_ranks({(item.kind, item.name) for item in self._epoch}).items():
            trainer.logger.warning("Left out in this epoch: %d bad %ss: %s", len(names), kind, shown(names))

    def after_train(self, trainer: Trainer) -> None:
        found = _of_all_ranks(set(self._run.found))
        if found:
            trainer.results["bad_data"] = {kind: {"count": len(n), "names": n} for kind, n in found.items()}
            counts = ", ".join(f"{len(names)} bad {kind}s" for kind, names in found.items())
            trainer.logger.warning("Left out in this run: %s", counts)


def _of_all_ranks(found: set[tuple[str, str]]) -> dict[str, list[str]]:
    """Kind -> names, of this rank's ``found`` and that of the others."""
    merged: dict[str, list[str]] = {}
    for kind, name in sorted(set().union(*distributed.gather(found))):
        merged.setdefault(kind, []).append(name)
    return merged
