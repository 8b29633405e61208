"""BaseBEVResBackbone: BaseBEVBackbone with residual blocks (He et al., arXiv:1512.03385, figure 2)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from pcdet_freeze.models.backbones_2d.base_bev_backbone import BaseBEVBackbone
from pcdet_freeze.models.map_layers import BatchNorm2d, Conv2d, MapSequential, norm_relu
from pcdet_freeze.models.registry import BACKBONES_2D


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut: the identity, or a 1x1 convolution of the same stride."""

    def __init__(self, channels: int, width: int, stride: int, momentum: float, project: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = BatchNorm2d(width, eps=1e-3, momentum=momentum)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = BatchNorm2d(width, eps=1e-3, momentum=momentum)
        self.downsample_layer = None
        if project:
            self.downsample_layer = MapSequential(
                Conv2d(channels, width, 1, stride=stride, bias=False),
                BatchNorm2d(width, eps=1e-3, momentum=momentum),
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, width, ceil(H / stride), ceil(W / stride))."""
        residual = self.bn2(self.conv2(norm_relu(self.bn1, self.conv1(x))))
        shortcut = x if self.downsample_layer is None else self.downsample_layer(x)
        return F.relu_(residual + shortcut)


@BACKBONES_2D.register
class BaseBEVResBackbone(BaseBEVBackbone):
    """BaseBEVBackbone whose blocks are one strided and LAYER_NUMS further residual blocks."""

    def _block(self, channels: int, width: int, stride: int, repeats: int) -> MapSequential:
        layers = [BasicBlock(channels, width, stride, self.momentum, project=True)]
        layers += [BasicBlock(width, width, 1, self.momentum, project=False) for _ in range(repeats)]
        return MapSequential(*layers)
