"""Read checkpoints as plain data: tensors, containers, Python and numpy scalars; nothing that runs code."""

from __future__ import annotations

import re
import zipfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pcdet_freeze.errors import CheckpointError
from pcdet_freeze.utils.untrusted_files import plain_unpickler
from pcdet_freeze.utils.untrusted_files.bounded import check_bounded

# a numpy scalar is pickled as a call of this function, which moved with numpy 2
_SCALAR_NAMES = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
_NUMBER_TYPES = "?bhilqBHILQefd"
_ALLOWS_NAMES = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 6)
"""whether the allow-list accepts a function under another name than its own"""
_SAFE_GLOBALS = getattr(torch.serialization, "safe_globals", None)
_MOST_UNPACKED = 2
"""bytes of all records for each byte of the file; torch.save does not compress"""


def allow_numpy_scalars() -> AbstractContextManager[Any]:
    """Context in which ``torch.load(weights_only=True)`` also accepts numpy scalars, and nothing else.

    torch before 2.5 has no such allow-list: there it does nothing, and :func:`load_checkpoint` reads the file
    with an unpickler of its own (:mod:`.plain_unpickler`).
    """
    return nullcontext() if _SAFE_GLOBALS is None else _SAFE_GLOBALS(_allowed())


def _allowed() -> list[Any]:
    scalar = type(np.float64(0)).__reduce__(np.float64(0))[0]
    dtypes = [np.dtype(code) for code in _NUMBER_TYPES]
    return [
        *([(scalar, name) for name in _SCALAR_NAMES] if _ALLOWS_NAMES else [scalar]),
        np.dtype,
        *dict.fromkeys(type(dtype) for dtype in dtypes),
    ]


def load_checkpoint(path: str | Path, trust: bool = False, mmap: bool = False) -> dict[str, Any]:
    """Read a whole checkpoint onto the CPU, with ``weights_only=True``; numpy scalars are accepted too.

    Args:
        trust: the file may hold any Python object, and may so run any code (--trust_checkpoint).
        mmap: map the tensors instead of reading them; the checksums of the file are then not checked.

    Raises:
        CheckpointError: the file is missing, cut off, damaged, or no checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"Checkpoint not found: {path}. Check the path.")
    try:
        if not mmap:
            _check_sums(path)
        # files of torch before 1.6 cannot be mapped
        mmap = mmap and zipfile.is_zipfile(path)
        with allow_numpy_scalars():
            # torch 2.2 maps a file only if its name is a str
            state = torch.load(str(path), map_location="cpu", mmap=mmap, **_unpickler(trust))
        if not trust:
            check_bounded(state, path.stat().st_size)
    except Exception as error:  # damaged bytes can raise anything, MemoryError and zlib.error included
        raise CheckpointError(
            f"A checkpoint must be a whole file of plain data, but {path} cannot be read: "
            f"{_why_unreadable(path, error)}"
        ) from error
    if not isinstance(state, dict) or not isinstance(state.get("model_state"), dict):
        raise CheckpointError(
            f"A checkpoint must hold the key 'model_state', but {path} does not. Save a bare state_dict as "
            "torch.save({'model_state': state_dict}, path)."
        )
    strange = [name for name, value in state["model_state"].items() if not _is_entry(name, value)]
    if strange:
        raise CheckpointError(
            f"The model_state of a checkpoint must be tensors by name, but in {path} {strange[0]!r:.80} is a "
            f"{type(state['model_state'][strange[0]]).__name__}. {_OTHER}"
        )
    return state


def _is_entry(name: object, value: object) -> bool:
    """Whether this may stand in a state_dict; a module's extra state is of any type."""
    return isinstance(name, str) and (isinstance(value, torch.Tensor) or name.endswith("_extra_state"))


def _unpickler(trust: bool) -> dict[str, Any]:
    """Arguments of ``torch.load`` that choose how it unpickles."""
    if trust or _SAFE_GLOBALS is not None:
        return {"weights_only": not trust}
    return {"weights_only": False, "pickle_module": plain_unpickler}


def _check_sums(path: Path) -> None:
    """Check the CRC of each record: torch.save writes them, torch.load ignores them."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked, size = sum(record.file_size for record in archive.infolist()), path.stat().st_size
            if unpacked > _MOST_UNPACKED * size:
                raise ValueError(f"its {size} bytes unpack to {unpacked}, which torch.save does not write")
            bad = archive.testzip()
        if bad is not None:
            raise ValueError(f"the checksum of its record {bad} is wrong")


_OBJECT = re.compile(r"GLOBAL (\S+)")
_ZIP, _PICKLE = b"PK", b"\x80"
_OTHER = "Name another one with --ckpt, or remove it."


def _why_unreadable(path: Path, error: BaseException) -> str:
    """What is wrong with the file ``path``, which raised ``error`` when it was read, and what to do."""
    if found := _OBJECT.search(str(error)):
        return (
            f"it holds a Python object ({found[1]}), which could run code. If you trust its author, add "
            f"--trust_checkpoint. {_OTHER}"
        )
    try:
        with path.open("rb") as file:
            head = file.read(2)
    except OSError as denied:
        return f"{denied}. {_OTHER}"
    if not head:
        return f"it is empty. {_OTHER}"
    if head == _ZIP and not _is_zip(path):
        return f"it is truncated. {_OTHER}"
    if head != _ZIP and head[:1] != _PICKLE:
        return f"it was not written by torch.save. {_OTHER}"
    return f"it was cut off or damaged ({_detail(error)}). {_OTHER}"


def _is_zip(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # a directory that names other disks
        return False


def _detail(error: BaseException) -> str:
    """The first line of the message; of torch's unpickler, the part behind its advice."""
    text = str(error).rpartition("WeightsUnpickler error:")[2].strip()
    return text.splitlines()[0].rstrip(". ") if text else type(error).__name__
