"""``import simgpu``: torch's device ``simgpu``, a second device on a machine that has none.

``waits`` counts each operation for which the host would wait for a GPU, by (operation, "file:line function");
the line is the innermost one of package ``$SIMGPU_OURS`` (pcdet_freeze). Needs a C++ compiler and ninja. The
extension is compiled on first import, into torch's cache of extensions or into ``$SIMGPU_BUILD``.
"""

from __future__ import annotations

import collections
import os
import traceback
from typing import Any

import torch
from torch.utils import cpp_extension
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend


class _Module(_DummyBackendModule):
    """``torch.simgpu``."""

    def synchronize(self, device: Any = None) -> None: ...

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)

    def get_rng_state_all(self) -> list[torch.Tensor]:
        return [torch.get_rng_state()]

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]

    def is_bf16_supported(self) -> bool:
        return True


_setup_privateuseone_for_python_backend("simgpu", backend_module=_Module())
_source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "simgpu.cpp")
_extension = cpp_extension.load(
    "simgpu_ext",
    [_source],
    build_directory=os.environ.get("SIMGPU_BUILD"),
    extra_cflags=["-O1", "-w"],
)
waits: collections.Counter[tuple[str, str]] = collections.Counter()
OURS = os.environ.get("SIMGPU_OURS", "pcdet_freeze")


def _count(what: str) -> None:
    lines = [frame for frame in traceback.extract_stack()[:-1] if f"/{OURS}/" in frame.filename]
    where = "elsewhere"
    if lines:
        file = lines[-1].filename.split(f"/{OURS}/")[-1]
        where = f"{file}:{lines[-1].lineno} {lines[-1].name}"
    waits[what, where] += 1


_extension.on_host(_count)
