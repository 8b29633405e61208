"""One rank of an evaluation of three tasks; writes the figures that it was given."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

from evaluation_toy import TASKS_CFG, ThreeTasks, three_task_loader

from pcdet_freeze.engine.testing.evaluator import eval_one_epoch
from pcdet_freeze.utils import distributed


def main() -> None:
    out = Path(sys.argv[1])
    world = distributed.start("pytorch", device="cpu")
    loader = three_task_loader(2, world.rank, world.size)
    model, logger = ThreeTasks("boxes", "points", "lanes"), logging.getLogger("pcdet_freeze.test")
    result = eval_one_epoch(TASKS_CFG, model, loader, 1, logger, dist_test=True, result_dir=out / "all")
    (out / f"{world.rank}.json").write_text(json.dumps(result))
    distributed.stop()


if __name__ == "__main__":
    main()
