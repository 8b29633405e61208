"""MixSegNet: global mixing of the patches of a BEV map, with a parallel convolution for fine detail.

An MLP-Mixer (arXiv:2105.01601) over patches correlates the whole map, like the "global feature correlator" of
K-Lane's lane detector (arXiv:2110.11048): an occluded or worn part of a line is inferred from the rest of it.
A parallel convolution preserves details that are smaller than a patch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pcdet_freeze.models.backbones_2d.encoder_decoder import conv_norm_relu
from pcdet_freeze.models.map_layers import ConvTranspose2d, MapSequential


class MixerBlock(nn.Module):
    """Residual two-layer MLPs over tokens, then over channels."""

    def __init__(self, tokens: int, width: int, token_hidden: int, channel_hidden: int) -> None:
        super().__init__()
        self.token_norm, self.channel_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.token_mlp = _mlp(tokens, token_hidden)
        self.channel_mlp = _mlp(width, channel_hidden)

    def forward(self, x: Tensor) -> Tensor:
        """(B, tokens, width) -> the same shape."""
        x = x + self.token_mlp(self.token_norm(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channel_mlp(self.channel_norm(x))


class MixSegNet(nn.Module):
    """(B, C, H, W) -> (B, out, H, W).

    A map whose size is not divisible by the patch size is padded with zeros at its upper edges, and cropped.

    Args:
        channels: C.
        size: H, W; the width of the token MLPs is the number of patches.
        out: channels of the output.
        patch: side length of a patch in cells.
        width: features per patch.
        depth: number of mixer blocks.
        momentum: of the norm layers.
    """

    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        out: int,
        patch: int,
        width: int,
        depth: int,
        momentum: float,
    ) -> None:
        super().__init__()
        self.patch = patch
        tokens = -(-size[0] // patch) * -(-size[1] // patch)
        self.embed = nn.Conv2d(channels, width, patch, stride=patch)
        self.mixers = nn.Sequential(
            *(MixerBlock(tokens, width, max(tokens // 2, 1), 2 * width) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(width)
        self.spread = ConvTranspose2d(width, out, patch, stride=patch)
        self.skip = MapSequential(*conv_norm_relu(channels, out, momentum))
        self.fuse = MapSequential(*conv_norm_relu(2 * out, out, momentum))

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = x.shape[2:]
        missing = (0, -columns % self.patch, 0, -rows % self.patch)
        patches = self.embed(F.pad(x, missing) if any(missing) else x)
        mixed = self.norm(self.mixers(patches.flatten(2).transpose(1, 2)))
        context = self.spread(mixed.transpose(1, 2).reshape(patches.shape))[..., :rows, :columns]
        return self.fuse(torch.cat([context, self.skip(x)], dim=1))


def _mlp(width: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
