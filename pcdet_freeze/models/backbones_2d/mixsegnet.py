"""MixSegNet: every patch of a BEV map learns from every other one, and fine detail goes round them.

An MLP-mixer (arXiv:2105.01601) over patches correlates the whole map, as K-Lane's lane detector does
(arXiv:2110.11048, its "global feature correlator"): a line that is hidden or worn in one place is known from
the rest of it. A convolution beside it keeps what is smaller than a patch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pcdet_freeze.models.backbones_2d.encoder_decoder import conv_norm_relu


class MixerBlock(nn.Module):
    """Mixes tokens, then channels, each by a residual MLP of two layers."""

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

    A map whose size the patches do not divide is filled up with zeros at its far edges, and cut again.

    Args:
        channels: C.
        size: H, W; the token MLPs are as wide as the map has patches.
        out: channels of the output.
        patch: cells along a patch's side.
        width: features of a patch.
        depth: mixer blocks.
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
        self.spread = nn.ConvTranspose2d(width, out, patch, stride=patch)
        self.skip = nn.Sequential(*conv_norm_relu(channels, out, momentum))
        self.fuse = nn.Sequential(*conv_norm_relu(2 * out, out, momentum))

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = x.shape[2:]
        patches = self.embed(F.pad(x, (0, -columns % self.patch, 0, -rows % self.patch)))
        mixed = self.norm(self.mixers(patches.flatten(2).transpose(1, 2)))
        context = self.spread(mixed.transpose(1, 2).reshape(patches.shape))[..., :rows, :columns]
        return self.fuse(torch.cat([context, self.skip(x)], dim=1))


def _mlp(width: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
