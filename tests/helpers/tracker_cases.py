"""Stand-ins for the package wandb, which a tracker's process imports from a folder on PYTHONPATH."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

LIKE_WANDB = """
import json, os, sys, time
class Run:
    id, url, offline = "abc", "https://user:hidden@host/abc", False
    summary = {}
    def __init__(self, given):
        self.file = open(os.environ["SEEN"], "a", buffering=1)
        self.note("init", {key: given[key] for key in ("name", "group", "id", "resume", "config")})
    @property
    def config(self):
        outer = self
        class Config:
            def update(self, values, allow_val_change): outer.note("config", values)
        return Config()
    def note(self, *what):
        print(json.dumps(what), file=self.file)
    def define_metric(self, *a, **k): pass
    def log(self, values):
        self.note("log", values)
        LOG
    def log_artifact(self, artefact): self.note("artefact", artefact)
    def finish(self, exit_code): self.note("finish", exit_code)
def Artifact(name, type):
    class Files(list):
        def add_file(self, path, policy): self.append(os.path.basename(path))
    return Files([name, type])
def Settings(**k): pass
def init(**given):
    INIT
    return Run({**given, "id": given["id"] and "an id"})
"""


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, *, init: str = "pass", log: str = "pass") -> Path:
    """Use a wandb that runs ``init`` and ``log`` in these functions; returns the file of what it got."""
    package = folder / "packages"
    package.mkdir()
    (package / "wandb.py").write_text(LIKE_WANDB.replace("INIT", init).replace("LOG", log))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("SEEN", str(folder / "seen"))
    return folder / "seen"
