"""Base classes of the pillar encoders: settings and layers (arXiv:1812.05784, section 2.1)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar

from torch import nn

from pcdet_freeze.models.context import BuildContext, Features
from pcdet_freeze.utils.settings.rules import Count, Rule, Share
from pcdet_freeze.utils.settings.sections import Section


@dataclass(frozen=True)
class PillarVFESettings(Section):
    """``MODEL.VFE`` of PillarVFE and DynPillarVFE."""

    num_filters: Annotated[tuple[Count, ...], Rule("a list of one width or more", bool)]
    """output width of each layer"""
    use_norm: bool = True
    with_distance: bool = False
    """append the distance of each point from the sensor"""
    use_abslote_xyz: bool = True
    """keep x, y, z in addition to the offsets (OpenPCDet's spelling)"""
    bn_momentum: Share = 0.01

    def faults(self) -> Iterator[str]:
        """Widths that cannot be halved."""
        if any(width % 2 for width in self.num_filters[:-1]):
            yield f"NUM_FILTERS must be even except for the last; got {list(self.num_filters)}"


class PillarLayer(nn.Module):
    """Linear, norm, ReLU for each point, then the maximum over the points of a pillar; see the subclasses.

    In all layers except the last, half of the channels are the maximum, concatenated to the features of each
    point.
    """

    def __init__(
        self, channels_in: int, channels_out: int, use_norm: bool, last: bool, momentum: float
    ) -> None:
        super().__init__()
        self.last = last
        width = channels_out if last else channels_out // 2
        self.use_norm = use_norm
        self.linear = nn.Linear(channels_in, width, bias=not use_norm)
        if use_norm:
            self.norm = nn.BatchNorm1d(width, eps=1e-3, momentum=momentum)


class PillarEncoder(nn.Module):
    """Encodes points relative to the mean and the centre of their pillar; max-pools over each pillar."""

    Settings = PillarVFESettings
    Layer: ClassVar[type[PillarLayer]]
    reads_train: tuple[str, ...] = ()

    def __init__(self, settings: PillarVFESettings, context: BuildContext, where: str) -> None:
        super().__init__()
        context.need_voxels(where)
        self.with_distance = settings.with_distance
        self.use_absolute_xyz = settings.use_abslote_xyz
        self.voxel_size = context.voxel_size
        width_in = context.num_point_features + (6 if self.use_absolute_xyz else 3) + int(self.with_distance)
        widths = [width_in, *settings.num_filters]
        self.pfn_layers = nn.ModuleList(
            self.Layer(width, wider, settings.use_norm, i == len(widths) - 2, settings.bn_momentum)
            for i, (width, wider) in enumerate(pairwise(widths))
        )
        context.features["pillar_features"] = Features(self.get_output_feature_dim())

    def get_output_feature_dim(self) -> int:
        """Channels of ``pillar_features``."""
        return int(self.pfn_layers[-1].linear.out_features)  # type: ignore[union-attr,arg-type]
