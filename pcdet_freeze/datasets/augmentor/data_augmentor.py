"""DATA_CONFIG.DATA_AUGMENTOR: a list of augmentors, run in the order of the YAML."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from pcdet_freeze.datasets.augmentor import database_sampler as _database
from pcdet_freeze.datasets.augmentor import world as _world
from pcdet_freeze.datasets.augmentor.context import AugmentorContext
from pcdet_freeze.datasets.reading.bad_data import BadFramePolicy
from pcdet_freeze.datasets.registry import AUGMENTORS, NOT_BUILT, Config, Sample, read_steps
from pcdet_freeze.utils.settings.faults import raise_faults
from pcdet_freeze.utils.settings.rules import one_of
from pcdet_freeze.utils.settings.sections import Section, read_section

__all__ = ["DataAugmentor", "_database", "_world", "read_augmentors"]

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
        policy: BadFramePolicy | None = None,
    ) -> None:
        context = AugmentorContext(
            list(class_names),
            point_cloud_range,
            Path(root_path),
            logger or logging.getLogger("pcdet_freeze"),
            tuple(semantic_class_names),
            policy or BadFramePolicy(),
        )
        self.steps = []
        self.names: list[str] = []
        """as in the config; each of them draws random numbers"""
        steps, faults = read_augmentors(configs)
        raise_faults(faults)
        for name, build, settings in steps:
            self.steps.append(build(settings, context))
            self.names.append(name)

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


def _known_names() -> list[str]:
    return [PLACEHOLDER, *AUGMENTORS.names(), *sorted(NOT_BUILT[AUGMENTORS.kind])]


@dataclass(frozen=True)
class AugmentorList(Section):
    """DATA_CONFIG.DATA_AUGMENTOR."""

    aug_config_list: tuple[Any, ...] = ()
    """sections with a NAME, in the order in which they run"""
    disable_aug_list: tuple[Annotated[str, one_of(_known_names)], ...] = ()
    """names that are passed over"""


def read_augmentors(configs: object) -> tuple[list[tuple[str, Any, Any]], list[str]]:
    """Read DATA_CONFIG.DATA_AUGMENTOR, a list or a section: ((NAME, class, settings) of each, faults)."""
    where = "DATA_CONFIG.DATA_AUGMENTOR"
    if not isinstance(configs, Mapping):
        return read_steps(AUGMENTORS, () if configs is None else configs, where)
    found, faults = read_section(AugmentorList, configs, where)
    if found is None:
        return [], faults
    return read_steps(AUGMENTORS, found.aug_config_list, f"{where}.AUG_CONFIG_LIST", found.disable_aug_list)
