"""Loss terms of centre-based heads. All of them count in float32, also under autocast."""

from __future__ import annotations

import torch
from torch import Tensor

from pcdet_freeze.models.dense_heads.center_targets import CenterTargets


def heatmap_loss(logits: Tensor, heatmaps: Tensor, alpha: float = 2.0, beta: float = 4.0) -> Tensor:
    """Focal loss of heatmaps (B, classes, H, W), over the number of peaks, at least 1.

    CornerNet's variant (arXiv:1808.01244, equation 1; arXiv:1904.07850, equation 1): around a peak, the
    penalty falls with (1 - target)^beta. Probabilities are kept 1e-4 away from 0 and 1.
    """
    chance = logits.float().sigmoid().clamp(1e-4, 1 - 1e-4)
    peak = heatmaps == 1
    found = torch.where(peak, chance.log() * (1 - chance).pow(alpha), 0.0)
    missed = (1 - chance).log() * chance.pow(alpha) * (1 - heatmaps).pow(beta)
    return -(found.sum() + torch.where(peak, 0.0, missed).sum()) / peak.sum().clamp(min=1)


def box_loss(codes: Tensor, targets: CenterTargets) -> Tensor:
    """L1 of the box code at the objects' cells, a column each, over the number of objects, at least 1.

    Args:
        codes: (B, columns, H, W) predictions.

    Returns:
        (columns,). A target of NaN (an unknown velocity) asks for nothing.
    """
    sample, slot = targets.masks.nonzero(as_tuple=True)
    cell = targets.inds[sample, slot]
    predicted = codes.flatten(2)[sample, :, cell].float()
    wanted = targets.target_boxes[sample, slot]
    wanted = torch.where(torch.isnan(wanted), predicted.detach(), wanted)
    return (predicted - wanted).abs().sum(dim=0) / max(len(sample), 1)
