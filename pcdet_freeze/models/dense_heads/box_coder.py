"""ResidualCoder: boxes relative to anchors (SECOND, Sensors 2018, 18(10), 3337, section 3.2.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from pcdet_freeze.errors import ConfigError


class ResidualCoder:
    """Encodes boxes [x, y, z, dx, dy, dz, heading, ...] as residuals relative to anchors of the same layout.

    x and y are scaled by the diagonal of the anchor, z by its height; sizes are logarithms of ratios; heading
    and further columns (velocity) are differences. Anchors with 7 columns have zero velocity. With
    ``encode_angle_by_sincos`` the heading has two columns, the differences of cosine and sine.
    """

    def __init__(self, code_size: int = 7, encode_angle_by_sincos: bool = False) -> None:
        if code_size < 7:
            raise ConfigError(f"code_size must be at least 7 (x, y, z, dx, dy, dz, heading); got {code_size}")
        self.encode_angle_by_sincos = encode_angle_by_sincos
        self.box_columns = code_size
        self.code_size = code_size + int(encode_angle_by_sincos)

    def encode(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        """(..., 7 + C) boxes and (..., 7) or (..., 7 + C) anchors -> (..., code_size) residuals."""
        anchors = _widen(anchors, boxes.shape[-1])
        sizes = boxes[..., 3:6].clamp(min=1e-5)
        sizes_a = anchors[..., 3:6].clamp(min=1e-5)
        moved = (boxes[..., :3] - anchors[..., :3]) / self._scale(sizes_a)
        turned = boxes[..., 6:7] - anchors[..., 6:7]
        if self.encode_angle_by_sincos:
            turn, turn_a = boxes[..., 6:7], anchors[..., 6:7]
            turned = torch.cat([turn.cos() - turn_a.cos(), turn.sin() - turn_a.sin()], dim=-1)
        extra = boxes[..., 7:] - anchors[..., 7:]
        return torch.cat([moved, torch.log(sizes / sizes_a), turned, extra], dim=-1)

    def decode(self, codes: Tensor, anchors: Tensor) -> Tensor:
        """(..., code_size) residuals and (..., 7) or (..., 7 + C) anchors -> (..., 7 + C) boxes."""
        anchors = _widen(anchors, codes.shape[-1] - int(self.encode_angle_by_sincos))
        centre = codes[..., :3] * self._scale(anchors[..., 3:6]) + anchors[..., :3]
        sizes = torch.exp(codes[..., 3:6]) * anchors[..., 3:6]
        turn_a = anchors[..., 6:7]
        if self.encode_angle_by_sincos:
            heading = torch.atan2(codes[..., 7:8] + turn_a.sin(), codes[..., 6:7] + turn_a.cos())
            extra = codes[..., 8:] + anchors[..., 7:]
        else:
            heading, extra = codes[..., 6:7] + turn_a, codes[..., 7:] + anchors[..., 7:]
        return torch.cat([centre, sizes, heading, extra], dim=-1)

    @staticmethod
    def _scale(sizes: Tensor) -> Tensor:
        """(..., 3): diagonal of the base for x and y, height for z."""
        diagonal = (sizes[..., 0:1] ** 2 + sizes[..., 1:2] ** 2).sqrt()
        return torch.cat([diagonal, diagonal, sizes[..., 2:3]], dim=-1)


class PreviousResidualDecoder(ResidualCoder):
    """ResidualCoder with dy before dx in the code, as in checkpoints of the first versions of SECOND."""

    def encode(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        return _swapped(super().encode(boxes, anchors))

    def decode(self, codes: Tensor, anchors: Tensor) -> Tensor:
        return super().decode(_swapped(codes), anchors)


BOX_CODERS: dict[str, type[ResidualCoder]] = {
    "ResidualCoder": ResidualCoder,
    "PreviousResidualDecoder": PreviousResidualDecoder,
}


def _swapped(codes: Tensor) -> Tensor:
    return torch.cat([codes[..., :3], codes[..., 4:5], codes[..., 3:4], codes[..., 5:]], dim=-1)


def _widen(anchors: Tensor, columns: int) -> Tensor:
    """Pad anchors with zeros to the number of columns of boxes."""
    extra = columns - anchors.shape[-1]
    return torch.nn.functional.pad(anchors, (0, extra)) if extra > 0 else anchors
