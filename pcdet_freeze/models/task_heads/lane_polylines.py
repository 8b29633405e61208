"""Lane map -> polylines in metres."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def lane_polylines(
    lane_map: Tensor, confidence: Tensor, limits: tuple[float, ...], lanes: int, min_cells: int, step: float
) -> list[Tensor]:
    """One polyline for each lane with at least ``min_cells`` cells, in the order of lane numbers.

    The cells of a lane are divided into slices of ``step`` metres along their main direction. Each slice
    gives one vertex, the mean of its cells weighted by confidence. A lane may be curved, but must not turn
    back.

    Args:
        lane_map: (H, W) uint8, lane number; other values: none. Rows along y, columns along x.
        confidence: (H, W) float32, positive in lane cells.
        limits: [x_min, y_min, z_min, x_max, y_max, z_max], metres (LiDAR frame).
        lanes: number of lanes.

    Returns:
        Polylines (n, 2) float32: x, y in metres (LiDAR frame), n >= 2, with increasing x (or y if steep).
    """
    found = (_polyline(*_cells(lane_map == k, confidence, limits), min_cells, step) for k in range(lanes))
    return [line for line in found if line is not None]


def _cells(mask: Tensor, confidence: Tensor, limits: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Centres (n, 2) in metres and weights (n,) of the cells in ``mask``."""
    rows, columns = mask.nonzero(as_tuple=True)
    size = [(limits[3 + axis] - limits[axis]) / mask.shape[1 - axis] for axis in (0, 1)]
    centres = torch.stack([limits[0] + (columns + 0.5) * size[0], limits[1] + (rows + 0.5) * size[1]], dim=1)
    return centres.float(), confidence[rows, columns].float()


def _polyline(xy: Tensor, weights: Tensor, min_cells: int, step: float) -> Tensor | None:
    if len(xy) < max(min_cells, 2):
        return None
    along = (xy - xy.mean(dim=0)) @ _main_direction(xy)
    _, which = torch.unique(((along - along.min()) / step).floor(), return_inverse=True)
    count = int(which.max()) + 1
    total = weights.new_zeros(count).index_add_(0, which, weights)
    summed = xy.new_zeros(count, 2).index_add_(0, which, xy * weights.unsqueeze(1))
    return summed / total.unsqueeze(1) if count > 1 else None


def _main_direction(xy: Tensor) -> Tensor:
    """(2,) principal axis of ``xy`` (n, 2) as a unit vector, pointing towards x (or y if steeper)."""
    centred = xy - xy.mean(dim=0)
    direction = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -1]
    return direction * torch.sign(direction[direction.abs().argmax()])
