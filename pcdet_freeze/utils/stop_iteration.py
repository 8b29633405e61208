"""Where a StopIteration came from: a loop takes one that leaks out of user code for its own end."""

from __future__ import annotations

import re
import traceback
from pathlib import Path

import torch

_FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\S+)')
_TORCH = str(Path(torch.__file__).parent)


def raised_in(error: BaseException, *skipped: str) -> str:
    """Return ``file, line 12, in name`` of the innermost frame of ``error``; empty where there is none.

    Frames of torch and of the files ``skipped`` do not count. The traceback that a worker process of a
    DataLoader writes into the message of its error counts too.
    """
    text = "".join(traceback.format_exception(error))
    frames = [found for found in _FRAME.findall(text) if not found[0].startswith(_TORCH)]
    frames = [found for found in frames if found[0] not in skipped]
    return "{}, line {}, in {}".format(*frames[-1]) if frames else ""
