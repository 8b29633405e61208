"""Detectors with two dense heads that are small enough to train in a test, and batches for them."""

from __future__ import annotations

from typing import Any

import torch
from center_cases import center_batch, center_config, center_dataset
from model_cases import anchor, model_config

from pcdet_freeze.models import build_network

NAMES = ["Car", "Pedestrian", "Cyclist"]
OLD, NEW = [1, 2], [3]
"""labels of the classes of dense_head, and of cyclist_head"""
FROZEN = ["vfe", "backbone_2d", "dense_head"]
Config = dict[str, Any]


def anchor_section(*names: str) -> Config:
    """An anchor head for some of NAMES."""
    section = model_config()["DENSE_HEAD"]
    sizes = {"Car": [3.9, 1.6, 1.56], "Pedestrian": [0.8, 0.6, 1.73], "Cyclist": [1.8, 0.6, 1.73]}
    section["ANCHOR_GENERATOR_CONFIG"] = [anchor(name, sizes[name], 0.5, 0.35) for name in names]
    return section | {"CLASS_NAMES": list(names)}


def center_section(*names: str, velocity: bool = False) -> Config:
    """A CenterHead for some of NAMES."""
    section = center_config(velocity=velocity)["DENSE_HEAD"]
    return section | {"CLASS_NAMES": list(names), "CLASS_NAMES_EACH_HEAD": [list(names)]}


SECOND = {"anchors": anchor_section, "centers": center_section}


def several_config(second: str = "anchors", first: str = "anchors") -> Config:
    """``cfg.MODEL`` with dense_head (Car, Pedestrian) and cyclist_head; a test may change it."""
    config = model_config()
    config["POST_PROCESSING"]["SCORE_THRESH"] = 0.0
    del config["DENSE_HEAD"]
    heads = {"dense_head": SECOND[first]("Car", "Pedestrian"), "cyclist_head": SECOND[second]("Cyclist")}
    return config | {"DENSE_HEADS": heads}


def single_config(first: str = "anchors") -> Config:
    """``cfg.MODEL`` with dense_head alone."""
    config = several_config(first=first)
    head = config.pop("DENSE_HEADS")["dense_head"]
    del head["CLASS_NAMES"]
    if first == "centers":
        config |= {"NAME": "CenterPoint", "POST_PROCESSING": {}}
    return config | {"DENSE_HEAD": head}


def built(config: Config, *names: str, seed: int = 0) -> Any:
    """A model for the classes ``names``, by default NAMES."""
    data = center_dataset()
    data.class_names = list(names or NAMES)
    torch.manual_seed(seed)
    return build_network(config, len(data.class_names), data)


def pair(second: str = "anchors", first: str = "anchors", **more: Any) -> tuple[Any, Any]:
    """A detector of the old classes, and one with a further head that has its weights."""
    config = several_config(second, first)
    for key, value in more.items():
        config["POST_PROCESSING"][key] = value
    old, new = built(single_config(first), "Car", "Pedestrian"), built(config, seed=1)
    new.load_state_dict(old.state_dict(), strict=False)
    return old.eval(), new.eval()


def labelled(*frames: list[int]) -> dict[str, Any]:
    """A batch whose frames are labelled for these labels, without boxes of other classes."""
    given = center_batch((60, 50)[: len(frames)])
    classes = torch.tensor([[label in frame for label in (1, 2, 3)] for frame in frames])
    boxes = given["gt_boxes"].clone()
    for frame, rows in zip(frames, boxes, strict=True):
        rows[~torch.isin(rows[:, -1], torch.tensor(frame))] = 0
    return given | {"gt_boxes": boxes, "labelled_classes": classes}
