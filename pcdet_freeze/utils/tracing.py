"""Whether code is run, or read by a tracer."""

from __future__ import annotations

import torch
from torch.jit._trace import is_tracing


def is_traced() -> bool:
    """Whether torch.compile, torch.export or torch.jit.trace reads the code, which keeps what it computes."""
    return torch.compiler.is_compiling() or is_tracing()
