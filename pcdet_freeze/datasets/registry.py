"""NAME -> data set, augmentor or processor; and the small checks that their configs share."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pcdet_freeze.errors import ConfigError
from pcdet_freeze.registry import Registry

Sample = dict[str, Any]
"""One frame on its way to a batch; the keys are listed in ``datasets/template.py``."""

Config = Mapping[str, Any]
"""A part of a YAML file (an EasyDict is one)."""

DATASETS: Registry[Any] = Registry("DATA_CONFIG.DATASET")
AUGMENTORS: Registry[Any] = Registry("DATA_AUGMENTOR")
PROCESSORS: Registry[Any] = Registry("DATA_PROCESSOR")

NOT_BUILT: dict[str, frozenset[str]] = {
    DATASETS.kind: frozenset(
        {
            "NuScenesDataset",
            "WaymoDataset",
            "PandasetDataset",
            "LyftDataset",
            "ONCEDataset",
            "CustomDataset",
            "Argo2Dataset",
        }
    ),
    AUGMENTORS.kind: frozenset(
        {
            "random_image_flip",
            "random_local_translation",
            "random_local_rotation",
            "random_local_scaling",
            "random_world_frustum_dropout",
            "random_local_frustum_dropout",
            "random_local_pyramid_aug",
            "imgaug",
        }
    ),
    PROCESSORS.kind: frozenset(
        {
            "double_flip",
            "calculate_grid_size",
            "downsample_depth_map",
            "image_normalize",
            "image_calibrate",
        }
    ),
}
"""Names that OpenPCDet knows and that are not built here yet."""


def find(registry: Registry[Any], name: Any) -> Any:
    """The item called ``name``; ConfigError for an unknown one, and for one that is not built yet."""
    if name in registry or not isinstance(name, str) or name not in NOT_BUILT.get(registry.kind, ()):
        return registry.get(name)
    built = f"one of {', '.join(registry.names())}"
    cure = f"remove it, or use {built}"
    if registry is DATASETS:
        cure = f"use {built}, or train inside OpenPCDet, which reads it: python -m pcdet_freeze.openpcdet"
    raise ConfigError(f"{registry.kind} NAME {name!r} is known from OpenPCDet but not built yet; {cure}")


def check_keys(where: str, cfg: Config, known: Collection[str], not_built: Collection[str] = ()) -> None:
    """Refuse keys without effect: all unknown and not-yet-built keys of ``cfg`` in one ConfigError.

    A key of ``not_built`` may stand there with a value that turns it off (``False``, ``None``, empty).
    """
    faults = [
        f"{key}: not built yet (set it to False or remove it)" if key in not_built else f"{key}: unknown"
        for key, value in cfg.items()
        if key not in known and not (key in not_built and _is_off(value))
    ]
    if faults:
        raise ConfigError(
            f"{where} has keys without effect: {'; '.join(faults)}. Known keys: {', '.join(sorted(known))}"
        )


def require(where: str, cfg: Config, key: str) -> Any:
    """``cfg[key]``; ConfigError that names the place where it is missing."""
    if key not in cfg:
        raise ConfigError(f"{where} needs the key {key}; got {', '.join(map(str, cfg)) or 'nothing'}")
    return cfg[key]


def _is_off(value: Any) -> bool:
    return value is None or value is False or (isinstance(value, (list, tuple, dict, str)) and not value)
