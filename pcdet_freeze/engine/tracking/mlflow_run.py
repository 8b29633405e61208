"""A run of MLflow, by its client: nothing global is active, and nothing is logged by itself."""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

MOST_METRICS, MOST_PARAMS, LONGEST = 1000, 100, 500
"""limits of a call of log_batch, and of the length of a parameter in older versions"""
STATUS = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}
NOT_ALLOWED = re.compile(r"[^\w\-. /]")
"""in the name of a metric or parameter"""


def start(message: Mapping[str, Any], note: Callable[[str], None]) -> MlflowRun:
    """Start a run, or continue ``message["resume"]``.

    Without MLFLOW_TRACKING_URI runs are kept in ``message["store"]``: MLflow's default is a data base, which
    needs more than mlflow-skinny.
    """
    address = os.environ.get("MLFLOW_TRACKING_URI") or Path(message["store"]).absolute().as_uri()
    if "://" not in address or address.startswith("file:"):
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    client: Any = import_module("mlflow.tracking").MlflowClient(tracking_uri=address)
    run = _continued(client, message["resume"], note)
    if run is None:
        tags = {"group": message["group"], "mlflow.source.name": "pcdet_freeze"}
        run = client.create_run(_experiment(client, message["project"]), run_name=message["name"], tags=tags)
    found = MlflowRun(client, run.info.run_id)
    found.parameters({key: value for key, value in flat(message["config"]) if key not in run.data.params})
    note(f"run {found.id} in {address}")
    return found


def _continued(client: Any, known: str | None, note: Callable[[str], None]) -> Any:
    if known is None:
        return None
    try:
        client.update_run(known, status="RUNNING")
        return client.get_run(known)
    except Exception as error:  # the store is another one, or was emptied
        note(f"the run {known} cannot be continued ({type(error).__name__}): a new one begins")
        return None


def _experiment(client: Any, project: str) -> str:
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or project
    found = client.get_experiment_by_name(name)
    return str(found.experiment_id if found is not None else client.create_experiment(name))


def flat(config: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """``{"MODEL": {"NAME": "A"}}`` -> ``("MODEL.NAME", "A")``; lists as JSON."""
    for key, value in config.items():
        name = NOT_ALLOWED.sub("_", f"{above}{key}")
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{name}.")
        else:
            yield name, (value if isinstance(value, str) else json.dumps(value))[:LONGEST]


class MlflowRun:
    """Metrics wait to be sent together: a call may be one over the network."""

    def __init__(self, client: Any, run_id: str) -> None:
        self._client, self.id = client, run_id
        self._entities: Any = import_module("mlflow.entities")
        self._waiting: list[Any] = []

    def parameters(self, values: Mapping[str, str]) -> None:
        """Log parameters, which never change afterwards."""
        params = iter([self._entities.Param(key, value) for key, value in values.items()])
        while batch := list(islice(params, MOST_PARAMS)):
            self._client.log_batch(self.id, params=batch)

    def scalars(self, axis: str, step: int, epoch: float, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        self._waiting += [
            self._entities.Metric(NOT_ALLOWED.sub("_", tag), value, now, step)
            for tag, value in values.items()
        ]
        if len(self._waiting) >= MOST_METRICS:
            self.flush()

    def flush(self) -> None:
        while batch := self._waiting[:MOST_METRICS]:
            del self._waiting[:MOST_METRICS]  # what cannot be sent is not tried again
            self._client.log_batch(self.id, metrics=batch)

    def picture(self, tag: str, step: int, png: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"iteration_{step:07d}.png"
            path.write_bytes(png)
            self._client.log_artifact(self.id, str(path), artifact_path=NOT_ALLOWED.sub("_", tag))

    def curves(self, tag: str, step: int, columns: Mapping[str, list[Any]]) -> None:
        self._client.log_dict(
            self.id, dict(columns), f"{NOT_ALLOWED.sub('_', tag)}/iteration_{step:07d}.json"
        )

    def note(self, values: Mapping[str, Any]) -> None:
        for key, value in values.items():
            self._client.set_tag(self.id, key, value if isinstance(value, str) else json.dumps(value))

    def artefact(self, name: str, kind: str, paths: list[str]) -> None:
        for path in paths:
            self._client.log_artifact(self.id, path, artifact_path=name)

    def finish(self, outcome: str) -> None:
        try:
            self.flush()
        finally:
            self._client.set_terminated(self.id, STATUS[outcome])
