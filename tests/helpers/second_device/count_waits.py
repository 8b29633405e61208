"""python count_waits.py OUT.json CASES.json: waits of the host in the iterations of small trainings.

CASES is ``{name: {"cfg": path, "model": path, "batch": frames, "sets": {key: value}}}``; ``model``, which may
be absent, is the config from which MODEL is taken. OUT gets, for each: ``waits`` of three iterations (3 to 5)
by line, the loading and moving of their batches included; ``losses`` of all six on the simulated device;
``on_cpu``, the losses of the same training on the CPU; ``evaluation``, the waits for one batch of it;
``certificate``, those of a certificate.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import simgpu
import torch
from waits_cases import SMALL_DATA

import pcdet_freeze
from pcdet_freeze.engine.testing import evaluator
from pcdet_freeze.engine.train_api import read_cfg
from pcdet_freeze.engine.trainer import Trainer

FIRST, LAST = 3, 6


class CountedTrainer:
    """Counts the waits from the loading of a batch to that of the next one."""

    def __init__(self) -> None:
        self.waits: list[Counter[str]] = []
        load = Trainer._load_batches

        def counted(trainer: Trainer, batches: Any) -> Any:
            self.waits.append(lines())
            return load(trainer, batches)

        Trainer._load_batches = counted  # type: ignore[method-assign]

    def of_iterations(self) -> Counter[str]:
        """Of the iterations FIRST to LAST - 1 (from 1) together; the list is emptied."""
        found = self.waits[LAST - 1] - self.waits[FIRST - 1]
        self.waits = []
        return found


def lines() -> Counter[str]:
    """All waits so far, by operation and line."""
    return Counter({f"{what} {where}": count for (what, where), count in simgpu.waits.items()})


def count_evaluation() -> list[Counter[str]]:
    """The waits up to each batch of an evaluation, in a list that grows."""
    found: list[Counter[str]] = []
    each = evaluator.each_batch

    def counted(loader: Any) -> Any:
        for batch in each(loader):
            found.append(lines())
            yield batch
        found.append(lines())

    evaluator.each_batch = counted
    return found


def run(case: dict[str, Any], device: str) -> Any:
    """Train six iterations."""
    cfg = read_cfg(case["cfg"])
    if "model" in case:
        cfg.MODEL = read_cfg(case["model"]).MODEL
    with tempfile.TemporaryDirectory() as folder:
        return pcdet_freeze.train(
            cfg,
            {"DATA_CONFIG.NUM_SCENES.train": 6 * case["batch"], **SMALL_DATA, **case["sets"]},
            output_dir=folder,
            device=device,
            workers=0,
            batch_size=case["batch"],
            max_iters=LAST,
            fix_random_seed=True,
            num_epochs_to_eval=0 if device == "cpu" else 1,
        )


def main(out: Path, cases: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    torch.Tensor.is_cuda = property(lambda self: self.device.type in ("cuda", "simgpu"))
    trainer, evaluation, found = CountedTrainer(), count_evaluation(), {}
    for name, case in cases.items():
        evaluation.clear()
        result = run(case, "simgpu")
        waits = trainer.of_iterations()
        own: dict[str, Any] = {"waits": waits, "losses": result.losses}
        own["evaluation"] = evaluation[2] - evaluation[1]  # of the second batch
        if result.freeze is not None:
            before = lines()
            result.freeze.certificate()
            own["certificate"] = lines() - before
        own["on_cpu"] = run(case, "cpu").losses
        found[name] = own
        out.write_text(json.dumps(found, indent=1))
        trainer.waits = []


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()))
