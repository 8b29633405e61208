"""Encoder-decoder on a BEV map: coarse levels are added to fine ones (FPN, arXiv:1612.03144)."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from pcdet_freeze.models.map_layers import BatchNorm2d, Conv2d, MapSequential


def conv_norm_relu(channels: int, width: int, momentum: float, stride: int = 1) -> list[nn.Module]:
    """3x3 convolution, norm, ReLU; rows and columns become ``ceil(n / stride)``."""
    return [
        nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False),
        BatchNorm2d(width, eps=1e-3, momentum=momentum),
        nn.ReLU(),
    ]


class EncoderDecoder(nn.Module):
    """(B, C, H, W) -> (B, widths[0], H, W); level k has 1 / 2**k of the size, rounded up.

    Args:
        channels: C.
        widths: channels of each level; the output has those of the first.
        layer_nums: number of 3x3 convolutions of each level after the first.
        momentum: of the norm layers.
    """

    def __init__(
        self, channels: int, widths: tuple[int, ...], layer_nums: tuple[int, ...], momentum: float
    ) -> None:
        super().__init__()
        self.down, self.lateral, self.up = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(widths):
            layers = conv_norm_relu(channels, width, momentum, stride=2 if level else 1)
            for _ in range(layer_nums[level]):
                layers += conv_norm_relu(width, width, momentum)
            self.down.append(MapSequential(*layers))
            channels = width
        for fine, coarse in pairwise(widths):
            self.lateral.append(Conv2d(coarse, fine, 1))
            self.up.append(MapSequential(*conv_norm_relu(fine, fine, momentum)))

    def forward(self, x: Tensor) -> Tensor:
        """Encode and decode; coarse maps are interpolated to the size of the finer ones, which may be odd."""
        levels = []
        for down in self.down:
            x = down(x)
            levels.append(x)
        for level in range(len(self.up) - 1, -1, -1):
            fine = levels[level]
            coarse = F.interpolate(self.lateral[level](x), size=fine.shape[2:])
            # into the interpolated map, which nothing else reads
            x = self.up[level](coarse.add_(fine) if coarse.dtype == fine.dtype else fine + coarse)
        return x
