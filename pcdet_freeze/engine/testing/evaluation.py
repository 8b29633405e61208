"""The evaluations of a run: where they write, and who gets their metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

from pcdet_freeze.engine.run_context import Data, RunContext
from pcdet_freeze.engine.testing.evaluator import eval_one_epoch
from pcdet_freeze.evaluation import PrecisionRecall


@dataclass
class Evaluation:
    """Evaluates a model of epoch N into ``eval/<folder>/epoch_N/<split>[/<tag>]``."""

    context: RunContext
    data: Data
    folder: str = "."
    tag: str = "."
    infer_time: bool = False
    metrics: dict[str, float] = field(default_factory=dict)
    """metrics of the last evaluation"""
    epoch: int | str = ""
    """what it evaluated"""
    on_result: Callable[[int | str, dict[str, float], list[PrecisionRecall]], None] | None = None
    """called with the epoch, the metrics and, on rank 0, the precision-recall curves"""

    def __call__(self, model: nn.Module, epoch: int | str) -> dict[str, float]:
        context = self.context
        split = str((context.cfg.DATA_CONFIG.get("DATA_SPLIT") or {}).get("test", "test"))
        self.epoch = epoch
        points: list[PrecisionRecall] = []
        self.metrics = eval_one_epoch(
            context.cfg,
            model,
            self.data.loader,
            epoch,
            context.logger,
            dist_test=context.world.size > 1,
            result_dir=context.folders.eval / self.folder / f"epoch_{epoch}" / split / self.tag,
            save_to_file=context.options.save_to_file,
            infer_time=self.infer_time,
            points=points,
            digest=context.options.digest,
        )
        if self.on_result is not None:
            self.on_result(epoch, self.metrics, points)
        return self.metrics
