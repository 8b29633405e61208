"""A run of wandb."""

from __future__ import annotations

import io
import os
import secrets
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

ITERATION, EPOCH = "iteration", "meta_data/epoch"
"""the axes"""
EXIT_CODES = {"finished": 0, "failed": 1, "killed": 130}


def start(message: Mapping[str, Any], note: Callable[[str], None]) -> WandbRun:
    """Start a run, or continue ``message["resume"]``."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    # files that wait to be sent: not in the home folder
    os.environ.setdefault("WANDB_DATA_DIR", str(Path(message["folder"], "wandb")))
    wandb: Any = import_module("wandb")
    known = message["resume"]
    # the process has no terminal: wandb.init raises an error where it would ask for a key
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT") or message["project"],
        name=message["name"],
        group=message["group"],
        id=known or secrets.token_hex(4),
        resume="allow" if known else None,
        dir=message["folder"],
        config=message["config"],
        settings=wandb.Settings(console="off", silent=True, save_code=False),
    )
    run.define_metric(ITERATION)
    run.define_metric(EPOCH)
    run.define_metric("*", step_metric=ITERATION)
    run.define_metric("epoch/*", step_metric=EPOCH)
    offline = getattr(run, "offline", False)
    where = f"offline: `wandb sync {Path(run.dir).parent}`" if offline else run.url or "which is sent nowhere"
    note(f"run {run.id}, {where}")
    return WandbRun(wandb, run)


class WandbRun:
    """Values are logged beside the axis that they belong to: wandb's own step may not go back."""

    def __init__(self, wandb: Any, run: Any) -> None:
        self._wandb, self._run, self.id = wandb, run, str(run.id)

    def scalars(self, axis: str, step: int, epoch: float, values: Mapping[str, float]) -> None:
        place = {ITERATION: step, EPOCH: epoch} if axis == "iteration" else {EPOCH: step}
        self._run.log({**values, **place})

    def flush(self) -> None:
        """wandb sends by itself."""

    def picture(self, tag: str, step: int, png: bytes) -> None:
        image = import_module("PIL.Image").open(io.BytesIO(png))
        self._run.log({tag: self._wandb.Image(image), ITERATION: step})

    def curves(self, tag: str, step: int, columns: Mapping[str, list[Any]]) -> None:
        rows = [list(row) for row in zip(*columns.values(), strict=True)]
        table = self._wandb.Table(columns=list(columns), data=rows)
        plot = self._wandb.plot.line(table, "recall", "precision", stroke="curve", title=tag)
        self._run.log({tag: plot, ITERATION: step})

    def note(self, values: Mapping[str, Any]) -> None:
        self._run.config.update(dict(values), allow_val_change=True)

    def artefact(self, name: str, kind: str, paths: list[str]) -> None:
        artefact = self._wandb.Artifact(f"{name}-{self.id}", type=kind)
        for path in paths:
            artefact.add_file(path, policy="immutable")  # no copy: the file does not change any more
        self._run.log_artifact(artefact)

    def finish(self, outcome: str) -> None:
        self._run.summary["outcome"] = outcome
        self._run.finish(exit_code=EXIT_CODES[outcome])
