"""Errors of OpenPCDet that come from the versions and folders around it, with advice for each."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata

_CUMM_PROBE = (
    "import numpy; from cumm import tensorview; tensorview.from_numpy(numpy.zeros((2, 3), numpy.float32))"
)
NUMPY_ADVICE = 'install numpy below 2 (`pip install "numpy<2"`), or a newer spconv and cumm'

_ADVICE = (
    (
        ("Weights only load failed", "Unsupported global"),
        "torch.load has weights_only=True since torch 2.6. If you trust the file, set "
        "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1.",
    ),
    (
        ("loaded state dict", "size of optimizer"),
        "Its optimizer has other parameters: was it written with another MODEL.NOT_TRAIN_IN_MULTI_TASK or "
        "FREEZE.TRAIN_DROPPED? (A file of version 0.2.0 needs TRAIN_DROPPED: True if adam_onecycle drops "
        "parameters of the model.)",
    ),
    (
        ("Floating point exception",),
        f"numpy 2 with this version of cumm killed a data worker: {NUMPY_ADVICE}.",
    ),
    (
        ("module 'numpy' has no attribute",),
        'This version of OpenPCDet needs an older numpy: `pip install "numpy<1.24"`.',
    ),
    (
        ("No such file", "cfgs/"),
        "OpenPCDet searches _BASE_CONFIG_ in the working directory: run it from its tools folder.",
    ),
)


def advice_for(error: BaseException) -> str:
    """What to do about a known kind of error; an empty string for any other."""
    text = f"{type(error).__name__}: {error}"
    return next((advice for words, advice in _ADVICE if all(word in text for word in words)), "")


def numpy_warning() -> str:
    """A warning if the installed numpy and cumm (of spconv) kill a process with SIGFPE; else empty.

    OpenPCDet's voxel generator passes arrays to cumm in its data workers, which would then be killed.
    """
    names = [name for name in _installed() if name == "cumm" or name.startswith("cumm-")]
    if not names or int(metadata.version("numpy").partition(".")[0]) < 2:
        return ""
    if not is_killed_by_sigfpe([sys.executable, "-c", _CUMM_PROBE]):
        return ""
    found = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    return (
        f"numpy {metadata.version('numpy')} with {found} crashes a process with SIGFPE during voxelization: "
        f"{NUMPY_ADVICE}"
    )


def is_killed_by_sigfpe(command: Sequence[str]) -> bool:
    """Whether the command is killed by SIGFPE, a floating point exception."""
    return subprocess.run(command, capture_output=True, check=False).returncode == -signal.SIGFPE


def _installed() -> set[str]:
    return {str(found.metadata["Name"] or "").lower() for found in metadata.distributions()}
