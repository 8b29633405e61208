"""Models with the names, ``state_dict`` keys and outputs of OpenPCDet, built from a config.

>>> from pcdet_freeze.models import build_network
>>> model = build_network(cfg.MODEL, len(cfg.CLASS_NAMES), dataset)  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from pcdet_freeze.errors import ConfigError

# importing these packages registers their classes
from pcdet_freeze.models import (
    backbones_2d,
    backbones_3d,
    dense_heads,
    detectors,
    map_to_bev,
    task_heads,
    vfe,
)
from pcdet_freeze.models.batch_to_device import load_data_to_gpu
from pcdet_freeze.models.detectors.topology import read_model
from pcdet_freeze.models.registry import (
    BACKBONES_2D,
    BACKBONES_3D,
    DENSE_HEADS,
    DETECTORS,
    MAP_TO_BEVS,
    PFES,
    PLUGIN_HINT,
    TASK_HEADS,
    VFES,
)

__all__ = [
    "BACKBONES_2D",
    "BACKBONES_3D",
    "DENSE_HEADS",
    "DETECTORS",
    "MAP_TO_BEVS",
    "PFES",
    "TASK_HEADS",
    "VFES",
    "backbones_2d",
    "backbones_3d",
    "build_network",
    "dense_heads",
    "detectors",
    "load_data_to_gpu",
    "map_to_bev",
    "model_faults",
    "task_heads",
    "vfe",
]


def build_network(model_cfg: Mapping[str, Any], num_class: int, dataset: Any) -> nn.Module:
    """Build the detector that ``model_cfg.NAME`` names.

    Args:
        model_cfg: ``cfg.MODEL``.
        num_class: number of detection classes.
        dataset: an object with the attributes listed in Detector3DTemplate.

    Raises:
        ConfigError: keys that are missing, unknown, of the wrong type or not implemented; modules whose
            shapes do not match.
    """
    return _detector_of(model_cfg)(model_cfg, num_class, dataset)


def model_faults(model_cfg: object, class_names: Sequence[str] | None = None) -> list[str]:
    """Every fault of ``cfg.MODEL`` that can be seen without a data set.

    Args:
        class_names: ``cfg.CLASS_NAMES``; None: not known.
    """
    try:
        detector = _detector_of(model_cfg)
    except ConfigError as error:
        return [str(error)]
    if not isinstance(model_cfg, Mapping) or not issubclass(detector, detectors.Detector3DTemplate):
        return []
    return read_model(model_cfg, detector.PostProcessing, detector.predictions, class_names)[1]


def _detector_of(model_cfg: Any) -> Any:
    if not isinstance(model_cfg, Mapping) or not isinstance(model_cfg.get("NAME"), str):
        raise ConfigError(f"MODEL must be a section with a NAME (a string); got {model_cfg!r}")
    if model_cfg["NAME"] not in DETECTORS:
        raise ConfigError(
            f"MODEL.NAME must be one of {', '.join(DETECTORS.names())}; got {model_cfg['NAME']!r}, "
            f"which is not implemented. {PLUGIN_HINT}"
        )
    return DETECTORS.get(model_cfg["NAME"])
