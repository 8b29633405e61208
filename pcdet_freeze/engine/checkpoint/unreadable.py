"""Why torch.load could not read a file, in a few words; torch's own messages are about its arguments."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

_OBJECT = re.compile(r"GLOBAL (\S+)")
_ZIP, _PICKLE = b"PK", b"\x80"
_OTHER = "Name another one with --ckpt, or remove it."


def why_unreadable(path: Path, error: BaseException) -> str:
    """What is wrong with the file ``path``, which gave ``error`` when it was read, and what to do."""
    if found := _OBJECT.search(str(error)):
        return (
            f"it holds a Python object ({found[1]}), which could run code. Where you trust its author, add "
            f"--trust_checkpoint. {_OTHER}"
        )
    try:
        with path.open("rb") as file:
            head = file.read(2)
    except OSError as denied:
        return f"{denied}. {_OTHER}"
    if not head:
        return f"it is empty. {_OTHER}"
    if head == _ZIP and not zipfile.is_zipfile(path):
        return f"its end is missing, so it was cut off. {_OTHER}"
    if head != _ZIP and head[:1] != _PICKLE:
        return f"torch.save did not write it. {_OTHER}"
    return f"it was cut off or damaged ({_detail(error)}). {_OTHER}"


def _detail(error: BaseException) -> str:
    """The first line that says something; of torch's unpickler, what comes after its advice."""
    text = str(error).rpartition("WeightsUnpickler error:")[2].strip()
    return text.splitlines()[0].rstrip(". ") if text else type(error).__name__
