"""What breaks OpenPCDet for reasons of its surroundings, and the cure."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata

_CUMM_PROBE = (
    "import numpy; from cumm import tensorview; tensorview.from_numpy(numpy.zeros((2, 3), numpy.float32))"
)
NUMPY_CURE = 'install numpy below 2 (`pip install "numpy<2"`), or a newer spconv and cumm'

_CURES = (
    (
        ("Weights only load failed", "Unsupported global"),
        "torch 2.6 and later read plain data only, unless TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 is set: set it "
        "if you trust the file.",
    ),
    (
        ("loaded state dict", "size of optimizer"),
        "Its optimizer held other parameters: was the list another one?",
    ),
    (("Floating point exception",), f"A data worker died of numpy 2 with this cumm: {NUMPY_CURE}."),
    (
        ("module 'numpy' has no attribute",),
        'This OpenPCDet is older than its numpy: `pip install "numpy<1.24"`.',
    ),
    (
        ("No such file", "cfgs/"),
        "OpenPCDet looks for _BASE_CONFIG_ in the working directory: run it from its tools folder.",
    ),
)


def cure_of(error: BaseException) -> str:
    """What to do about an error of a known kind; an empty string for others."""
    text = f"{type(error).__name__}: {error}"
    return next((cure for words, cure in _CURES if all(word in text for word in words)), "")


def numpy_trap() -> str:
    """A warning where the installed numpy and cumm (of spconv) end a process with SIGFPE; else empty.

    OpenPCDet's voxel generator hands arrays to cumm in its data workers, so the training would die there.
    """
    names = [name for name in _installed() if name == "cumm" or name.startswith("cumm-")]
    if not names or int(metadata.version("numpy").partition(".")[0]) < 2:
        return ""
    if not dies_of_sigfpe([sys.executable, "-c", _CUMM_PROBE]):
        return ""
    found = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    return (
        f"numpy {metadata.version('numpy')} with {found} ends a process with SIGFPE when points become "
        f"voxels: {NUMPY_CURE}"
    )


def dies_of_sigfpe(command: Sequence[str]) -> bool:
    """Whether a command is killed by a floating point exception."""
    return subprocess.run(command, capture_output=True, check=False).returncode == -signal.SIGFPE


def _installed() -> set[str]:
    return {str(found.metadata["Name"] or "").lower() for found in metadata.distributions()}
