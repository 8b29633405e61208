"""NAME -> data set, augmentor or processor; and the reader of lists of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pcdet_freeze.errors import ConfigError
from pcdet_freeze.registry import Registry
from pcdet_freeze.utils.settings.sections import read_named

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
            "PandasetDataset",
            "LyftDataset",
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
"""Names that OpenPCDet knows and that are not implemented here."""


def find(registry: Registry[Any], name: Any) -> Any:
    """The item called ``name``; ConfigError for an unknown one, and for one that is not implemented."""
    if name in registry or not isinstance(name, str) or name not in NOT_BUILT.get(registry.kind, ()):
        return registry.get(name)
    built = f"one of {', '.join(registry.names())}"
    cure = f"remove it, or use {built}"
    if registry is DATASETS:
        cure = f"use {built}, or train inside OpenPCDet, which reads it: python -m pcdet_freeze.openpcdet"
    raise ConfigError(f"{registry.kind} NAME {name!r} is known from OpenPCDet but not implemented; {cure}")


def read_steps(
    registry: Registry[Any], configs: object, where: str, skip: Collection[str] = ()
) -> tuple[list[tuple[str, Any, Any]], list[str]]:
    """Read a list of sections with a NAME but for those to ``skip``: ((NAME, class, settings), faults)."""
    if isinstance(configs, str | Mapping) or not isinstance(configs, Sequence):
        return [], [f"{where} must be a list of sections with a NAME; got {configs!r}"]
    steps, faults = [], []
    for number, cfg in enumerate(configs):
        if isinstance(cfg, Mapping) and cfg.get("NAME") in skip:
            continue
        found, wrong = read_named(lambda name: find(registry, name), cfg, f"{where}[{number}]")
        faults += wrong
        if found is not None:
            steps.append((str(cfg["NAME"]), *found))
    return steps, faults
