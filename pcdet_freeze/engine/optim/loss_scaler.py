"""GradScaler for mixed precision (OPTIMIZATION.USE_AMP)."""

from __future__ import annotations

import torch


def new_scaler(device: torch.device, enabled: bool) -> torch.amp.GradScaler:
    """A scaler for ``device``; one that is not enabled changes nothing."""
    # torch 2.2 has it for CUDA only
    if hasattr(torch.amp, "GradScaler"):
        return torch.amp.GradScaler(device.type, enabled=enabled)
    return torch.cuda.amp.GradScaler(enabled=enabled)


def without_pending_step(scaler: torch.amp.GradScaler, device: torch.device) -> torch.amp.GradScaler:
    """A scaler of equal state that an interrupt has not left between ``unscale_`` and ``update``."""
    if not scaler.is_enabled():
        return scaler
    made = new_scaler(device, True)
    made.load_state_dict(scaler.state_dict())
    return made
