"""Which columns of the raw points the model sees."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np

from pcdet_freeze.datasets.registry import Config, Sample
from pcdet_freeze.errors import ConfigError
from pcdet_freeze.utils.settings.faults import raise_faults
from pcdet_freeze.utils.settings.rules import Name, Rule
from pcdet_freeze.utils.settings.sections import Section, read_section

WHERE = "DATA_CONFIG.POINT_FEATURE_ENCODING"


def _begins_with_xyz(names: Sequence[str]) -> bool:
    return list(names[:3]) == ["x", "y", "z"]


Columns = Annotated[tuple[Name, ...], Rule("a list of columns that begins with x, y, z", _begins_with_xyz)]


@dataclass(frozen=True)
class EncodingSettings(Section):
    """DATA_CONFIG.POINT_FEATURE_ENCODING."""

    lower_keys: ClassVar[bool] = True
    not_built: ClassVar[tuple[str, ...]] = ("filter_sweeps", "max_sweeps")

    used_feature_list: Columns
    src_feature_list: Columns
    encoding_type: Literal["absolute_coordinates_encoding"] = "absolute_coordinates_encoding"

    def faults(self) -> Iterator[str]:
        """Columns that the points do not have."""
        missing = [name for name in self.used_feature_list if name not in self.src_feature_list]
        if missing:
            yield (
                f"used_feature_list asks for {missing}, which src_feature_list "
                f"{list(self.src_feature_list)} does not have"
            )


class PointFeatureEncoder:
    """Picks the columns ``used_feature_list`` out of points that have ``src_feature_list``.

    The only encoding is ``absolute_coordinates_encoding``: x, y, z in metres stay as they are.
    """

    def __init__(self, cfg: Config) -> None:
        settings, faults = read_section(EncodingSettings, cfg, WHERE)
        raise_faults(faults)
        self.used_feature_list = list(settings.used_feature_list) if settings else []
        self.src_feature_list = list(settings.src_feature_list) if settings else []
        self.columns = np.array([self.src_feature_list.index(name) for name in self.used_feature_list])

    @property
    def num_point_features(self) -> int:
        """Columns of the points that the model gets."""
        return len(self.used_feature_list)

    def __call__(self, sample: Sample) -> None:
        """Replace ``points`` (N, len(src)) by (N, len(used)) float32."""
        points = sample["points"]
        if points.shape[1] != len(self.src_feature_list):
            raise ConfigError(
                f"{WHERE}.src_feature_list names {len(self.src_feature_list)} columns "
                f"{self.src_feature_list}, but the points have {points.shape[1]}"
            )
        if not np.array_equal(self.columns, np.arange(points.shape[1])):
            sample["points"] = np.ascontiguousarray(points[:, self.columns])
