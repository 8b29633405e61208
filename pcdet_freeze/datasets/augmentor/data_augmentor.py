"""DATA_CONFIG.DATA_AUGMENTOR: a list of augmentors, run in the order of the YAML."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_freeze.datasets.augmentor import database_sampler as _database
from pcdet_freeze.datasets.augmentor import world as _world
from pcdet_freeze.datasets.augmentor.context import AugmentorContext
from pcdet_freeze.datasets.registry import AUGMENTORS, NOT_BUILT, Config, Sample, check_keys, find, require
from pcdet_freeze.errors import ConfigError

__all__ = ["DataAugmentor", "_database", "_world"]

PLACEHOLDER = "placeholder"
"""What OpenPCDet's YAMLs write in a DISABLE_AUG_LIST that disables nothing."""


class DataAugmentor:
    """Runs the configured augmentors on a sample; headings end in [-pi, pi).

    ``configs`` is a plain list, or a mapping with ``AUG_CONFIG_LIST`` and ``DISABLE_AUG_LIST`` (names
    that are passed over).
    """

    def __init__(
        self,
        configs: Config | Sequence[Config],
        class_names: Sequence[str],
        point_cloud_range: np.ndarray,
        root_path: str | Path = ".",
        logger: logging.Logger | None = None,
        semantic_class_names: Sequence[str] = (),
    ) -> None:
        context = AugmentorContext(
            list(class_names),
            point_cloud_range,
            Path(root_path),
            logger or logging.getLogger("pcdet_freeze"),
            tuple(semantic_class_names),
        )
        self.steps = []
        self.names: list[str] = []
        """as in the config; each of them draws random numbers"""
        for number, cfg in enumerate(_enabled(configs)):
            build = find(AUGMENTORS, require(f"AUG_CONFIG_LIST[{number}]", cfg, "NAME"))
            self.steps.append(build(cfg, context))
            self.names.append(cfg["NAME"])

    def __call__(self, sample: Sample, rng: np.random.RandomState) -> Sample:
        """The augmented sample; all random draws come from ``rng``, in the order of the list."""
        for step in self.steps:
            sample = step(sample, rng)
        if sample.get("gt_boxes") is not None:
            sample["gt_boxes"][:, 6] = wrap_heading(sample["gt_boxes"][:, 6])
        return sample


def wrap_heading(angle: np.ndarray) -> np.ndarray:
    """``angle`` in radians, brought into [-pi, pi)."""
    return angle - np.floor(angle / (2 * np.pi) + 0.5) * (2 * np.pi)


def _enabled(configs: Any) -> list[Config]:
    if not hasattr(configs, "keys"):
        return list(configs)
    check_keys("DATA_AUGMENTOR", configs, {"AUG_CONFIG_LIST", "DISABLE_AUG_LIST"})
    disabled = set(configs.get("DISABLE_AUG_LIST") or ())
    known = {PLACEHOLDER, *AUGMENTORS.names(), *NOT_BUILT[AUGMENTORS.kind]}
    if not disabled <= known:
        raise ConfigError(
            f"DISABLE_AUG_LIST may hold {', '.join(sorted(known))}; got {', '.join(sorted(disabled - known))}"
        )
    return [cfg for cfg in configs.get("AUG_CONFIG_LIST") or () if cfg.get("NAME") not in disabled]
