"""One of two real processes: runs that fill a cache, read it, have no room; findings go to OUT/<rank>.pt."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Any

import torch
from cache_runs import cache_of, cfg_with, keep, trainer_of

from pcdet_freeze.errors import FreezeError
from pcdet_freeze.utils import distributed
from pcdet_freeze.utils.rng import set_seed


def run(folder: Path, variants: int = 2) -> dict[str, Any]:
    """Three epochs: weights, the number of rows at the end and the log; or the refusal."""
    trainer = trainer_of(cfg_with(keep(folder, variants)), rank=distributed.rank(), world=2)
    told: list[str] = []
    trainer.logger.info = lambda text, *given: told.append(text % given)  # type: ignore[method-assign]
    set_seed(1)
    trainer.rebuild(trainer.optimizer)
    try:
        trainer.run()
    except FreezeError as error:
        return {"refused": str(error)}
    finally:
        trainer.model = distributed.unwrap(trainer.model)
        gc.collect()
    store = cache_of(trainer).store
    assert store is not None
    return {"weights": trainer.model.state_dict(), "filled": store.filled, "told": told}


def main() -> None:
    out, world = Path(sys.argv[1]), distributed.start("pytorch", device="cpu")
    found = {"filling": run(out / "a"), "reading": run(out / "a")}
    found["huge"] = run(out / "b", 10**9 if world.rank else 2)
    torch.save(found, out / f"{world.rank}.pt")
    distributed.stop()


if __name__ == "__main__":
    main()
