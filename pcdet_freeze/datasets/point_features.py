"""Which columns of the raw points the model sees."""

from __future__ import annotations

import numpy as np

from pcdet_freeze.datasets.registry import Config, Sample, check_keys, require
from pcdet_freeze.errors import ConfigError

WHERE = "DATA_CONFIG.POINT_FEATURE_ENCODING"


class PointFeatureEncoder:
    """Picks the columns ``used_feature_list`` out of points that have ``src_feature_list``.

    The only encoding is ``absolute_coordinates_encoding``: x, y, z in metres stay as they are.
    """

    def __init__(self, cfg: Config) -> None:
        check_keys(
            WHERE,
            cfg,
            {"encoding_type", "used_feature_list", "src_feature_list"},
            not_built={"filter_sweeps", "max_sweeps"},
        )
        encoding = cfg.get("encoding_type", "absolute_coordinates_encoding")
        if encoding != "absolute_coordinates_encoding":
            raise ConfigError(
                f"{WHERE}.encoding_type must be absolute_coordinates_encoding; got {encoding!r}"
            )
        self.used_feature_list: list[str] = list(require(WHERE, cfg, "used_feature_list"))
        self.src_feature_list: list[str] = list(require(WHERE, cfg, "src_feature_list"))
        self._check()
        self.columns = np.array([self.src_feature_list.index(name) for name in self.used_feature_list])

    def _check(self) -> None:
        for key, names in (("used", self.used_feature_list), ("src", self.src_feature_list)):
            if names[:3] != ["x", "y", "z"]:
                raise ConfigError(f"{WHERE}.{key}_feature_list must begin with x, y, z; got {names}")
        missing = [name for name in self.used_feature_list if name not in self.src_feature_list]
        if missing:
            raise ConfigError(
                f"{WHERE}.used_feature_list asks for {missing}, which src_feature_list "
                f"{self.src_feature_list} does not hold"
            )

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
