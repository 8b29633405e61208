"""Every number of a config has a range; every word, list and section of it a kind."""

from __future__ import annotations

import copy
import dataclasses
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from easydict import EasyDict

from pcdet_freeze.config import load_cfg, plain
from pcdet_freeze.datasets.loader import register_all
from pcdet_freeze.engine.check_config import check_config
from pcdet_freeze.errors import PCDetFreezeError
from pcdet_freeze.models import registry as models
from pcdet_freeze.registry import Registry
from pcdet_freeze.utils.settings.rules import Rule
from pcdet_freeze.utils.settings.sections import Section, fields_of

register_all()


def sections(cls: type = Section) -> Iterator[type]:
    for found in cls.__subclasses__():
        if found.__module__.startswith("pcdet_freeze."):
            yield found
        yield from sections(found)


def settings() -> Iterator[type]:
    """The dataclasses of modules and data sets, with and without the base class Section."""
    for registry in [value for value in vars(models).values() if isinstance(value, Registry)]:
        for name in registry.names():
            yield from [getattr(registry.get(name), "Settings", Section)][:1]


def numbers(kind: Any, ruled: bool = False) -> Iterator[bool]:
    """For each number in the type of a field: whether a rule bounds it."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind in (int, float):
        yield ruled
    elif origin is Annotated:
        yield from numbers(args[0], ruled or any(isinstance(extra, Rule) for extra in args[1:]))
    elif origin in (typing.Union, types.UnionType):
        for arg in args:
            yield from numbers(arg, ruled)
    elif origin is not typing.Literal:
        for arg in args:
            yield from numbers(arg)  # the rule of a list is none of its numbers


def test_every_number_of_every_section_has_a_range() -> None:
    free = [
        f"{section.__name__}.{key}"
        for section in dict.fromkeys([*sections(), *settings()])
        for key, field in (fields_of(section).items() if dataclasses.is_dataclass(section) else ())
        if not all(numbers(field.kind))
    ]
    assert free == []


def changed(cfg: dict[str, Any], key: str, value: Any) -> EasyDict:
    cfg = copy.deepcopy(cfg)
    node: Any = cfg
    *parents, last = key.split(".")
    for part in parents:
        node = node[int(part) if part.isdigit() else part]
    node[int(last) if last.isdigit() else last] = value
    return EasyDict(cfg)


KITTI = plain(load_cfg("kitti_models/pointpillar.yaml"))
ANCHOR = "MODEL.DENSE_HEAD.ANCHOR_GENERATOR_CONFIG.0"
VOXELS = "DATA_CONFIG.DATA_PROCESSOR.2"
VOXEL_COUNT = f"{VOXELS}.MAX_NUMBER_OF_VOXELS"
NO_NAME = ({}, [1])
IMPOSSIBLE: list[tuple[str, Any]] = [
    ("OPTIMIZATION.GRAD_NORM_CLIP", -0.5),
    ("OPTIMIZATION.LR", float("nan")),
    ("OPTIMIZATION.LR", float("inf")),
    ("OPTIMIZATION.NUM_EPOCHS", 2**70),
    (f"{ANCHOR}.matched_threshold", 2),
    (f"{ANCHOR}.anchor_rotations", [400]),
    (f"{ANCHOR}.anchor_bottom_heights", [1e9]),
    (VOXEL_COUNT, {"train": -1, "test": 40000}),
    (VOXEL_COUNT, {"train": 16000, "tQst": 40000}),
    (VOXEL_COUNT, 16000),
    ("MODEL.POST_PROCESSING.SCORE_THRESH", -1),
    ("MODEL.POST_PROCESSING.NMS_CONFIG.NMS_THRESH", 7),
    ("MODEL.BACKBONE_2D.LAYER_NUMS", [3, -5, 5]),
    ("MODEL.DENSE_HEAD.LOSS_CONFIG.LOSS_WEIGHTS.cls_weight", -1),
    ("DATA_CONFIG.POINT_CLOUD_RANGE", [0, -40, -3, 1e9, 40, 1]),
    ("DATA_CONFIG.DATA_AUGMENTOR.DISABLE_AUG_LIST", [{}]),
    *(("MODEL.NAME", name) for name in NO_NAME),
    *(("MODEL.VFE.NAME", name) for name in NO_NAME),
    *(("DATA_CONFIG.DATASET", name) for name in NO_NAME),
    *(("DATA_CONFIG.DATA_PROCESSOR.0.NAME", name) for name in NO_NAME),
    *(("DATA_CONFIG.DATA_AUGMENTOR.AUG_CONFIG_LIST.0.NAME", name) for name in NO_NAME),
    *(("OPTIMIZATION.OPTIMIZER", name) for name in NO_NAME),
]


@pytest.mark.parametrize(("key", "value"), IMPOSSIBLE)
def test_a_value_that_cannot_be_is_an_error_that_names_its_key(key: str, value: Any) -> None:
    last = key.split(".")[-1]
    with pytest.raises(PCDetFreezeError, match=last if not last.isdigit() else ""):
        check_config(changed(KITTI, key, value))


def test_null_and_zero_turn_clipping_off() -> None:
    for value in (None, 0):
        check_config(changed(KITTI, "OPTIMIZATION.GRAD_NORM_CLIP", value))
