"""python run.py SCRIPT ARGS...: run a script with the device `simgpu` there; prints where the host waited."""

from __future__ import annotations

import atexit
import json
import os
import runpy
import sys
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.getcwd())
import simgpu
import torch

if os.environ.get("SIMGPU_ISCUDA"):
    torch.Tensor.is_cuda = property(lambda self: self.device.type in ("cuda", "simgpu"))


def show() -> None:
    """Print the waits, most frequent first; write them to $SIMGPU_JSON too."""
    if os.environ.get("SIMGPU_JSON"):
        pairs = [(f"{what} {where}", count) for (what, where), count in simgpu.waits.items()]
        Path(os.environ["SIMGPU_JSON"]).write_text(json.dumps(pairs))
    print("\n=== host waits", sum(simgpu.waits.values()))
    for (what, where), count in simgpu.waits.most_common(60):
        print(f"{count:6d} {what:40s} {where}")


atexit.register(show)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
