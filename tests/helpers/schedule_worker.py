"""One of two real processes: a scheduled run, resumed from every place; findings go to OUT/<rank>.pt."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Any

import torch
from engine_toy import tensors_of
from freeze_runs import SaveEach, cfg_of, frozen_trainer, phase, resumed
from torch.nn.parallel import DistributedDataParallel

from pcdet_freeze.engine.hooks.base import Hook
from pcdet_freeze.engine.optim.optimizer import parameter_names
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.errors import CertificateError, FreezeError
from pcdet_freeze.freezing import unfreeze
from pcdet_freeze.utils import distributed

SCHEDULED = cfg_of("vfe", SCHEDULE=[phase(1, "vfe.[13]", LR_SCALE=0.1), phase(2, "vfe.0")])
PLACES = ["it1", "it2", "epoch1", "it3", "it4", "epoch2", "it5"]


class Watches(Hook):
    """Weights, what trains, wrappers and a thaw by hand, after each step."""

    def __init__(self) -> None:
        self.weights, self.live, self.wrappers, self.refused = [], [], [], []

    def after_step(self, trainer: Trainer) -> None:
        model = distributed.unwrap(trainer.model)
        self.weights.append(tensors_of(model))
        self.live.append([name for name, p in model.named_parameters() if p.requires_grad])
        gc.collect()
        wraps = [o for o in gc.get_objects() if isinstance(o, DistributedDataParallel) and o.module is model]
        self.wrappers.append([wrapper.find_unused_parameters for wrapper in wraps])
        if len(self.live[-1]) < 6:
            self.refused.append(thaw(trainer))


class Corrupts(Hook):
    """Changes what is still frozen in the second phase, on rank 1 alone."""

    def after_step(self, trainer: Trainer) -> None:
        if trainer.iteration == 4 and distributed.rank() == 1:
            distributed.unwrap(trainer.model).vfe[0].weight.data[0] += 1


def thaw(trainer: Trainer) -> str:
    try:
        unfreeze(trainer.model, ["vfe.0"])
    except FreezeError as error:
        return str(error)
    return "no error"


def run(trainer: Trainer) -> dict[str, Any]:
    trainer.rebuild(trainer.optimizer)
    trainer.run()
    model = distributed.unwrap(trainer.model)
    names = parameter_names(model, trainer.optimizer)
    return {"model": tensors_of(model), "optimizer": trainer.optimizer.state_dict(), "names": names}


def verdict(trainer: Trainer) -> str:
    try:
        run(trainer)
    except CertificateError as error:
        return str(error)
    return "no error"


def main() -> None:
    out, world = Path(sys.argv[1]), distributed.start("pytorch", device="cpu")
    more: dict[str, Any] = {"epochs": 3, "rank": world.rank, "world": world.size}
    watches = Watches()
    # other initial weights on each rank: DDP must make them one
    whole = run(frozen_trainer([watches, SaveEach(out)], SCHEDULED, seed=world.rank, **more))
    again = {place: run(resumed(out / f"{place}.pth", SCHEDULED, **more)) for place in PLACES}
    corrupted = verdict(frozen_trainer([Corrupts()], SCHEDULED, seed=world.rank, **more))
    torch.save(
        {"whole": whole, "again": again, "seen": vars(watches), "verdict": corrupted},
        out / f"{world.rank}.pt",
    )
    gc.collect()
    distributed.stop()


if __name__ == "__main__":
    main()
