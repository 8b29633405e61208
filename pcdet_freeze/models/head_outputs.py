"""Outputs of dense heads for the post-processing: boxes with scores and labels, of one head or several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pcdet_freeze.errors import ConfigError
from pcdet_freeze.utils.devices import constant, is_accelerator, send

FINAL = "final_box_dicts"
"""key of a head that selects its boxes itself"""


class HeadKeys(NamedTuple):
    """Where a head writes its predictions."""

    suffix: str = ""
    """what it appends to its keys"""
    labels: tuple[int, ...] = ()
    """labels, from 1, of its class columns; empty: 1, 2, ..."""


class Group(NamedTuple):
    """Boxes whose scores have the same class columns."""

    boxes: Tensor
    """(B, n, 7 + C)"""
    raw: Tensor
    """(B, n, classes) output of the head"""
    scores: Tensor
    """(B, n, classes) probabilities; -inf where a box is not of the class"""
    labels: Tensor
    """(classes,) int64, from 1"""


def merged_heads(detector: nn.Module, names: Sequence[str]) -> tuple[HeadKeys, ...]:
    """The keys of the heads ``names``, whose predictions become one list of boxes.

    Raises:
        ConfigError: boxes of different columns, or two heads that write the same key.
    """
    heads: dict[str, Any] = {name: getattr(detector, name) for name in names}
    columns = {name: head.box_columns for name, head in heads.items() if hasattr(head, "box_columns")}
    if len(set(columns.values())) > 1:
        found = ", ".join(f"{name} {count}" for name, count in columns.items())
        raise ConfigError(
            f"MODEL.DENSE_HEADS: all heads must predict boxes of the same columns; got {found}. Add the "
            "velocity (code_size 9, vel in HEAD_ORDER) to all of them or to none"
        )
    writer: dict[str, str] = {}
    for name, head in heads.items():
        for key in getattr(head, "writes", ()):
            if writer.setdefault(key, name) != name:
                raise ConfigError(
                    f"MODEL.DENSE_HEADS: heads must write keys of their own, but {writer[key]} and {name} "
                    f"({type(head).__name__}) both write {key}: append context.suffix to the keys of the head"
                )
    return tuple(
        HeadKeys(getattr(head, "suffix", ""), getattr(head, "labels", ())) for head in heads.values()
    )


def groups_of(batch_dict: Mapping[str, Any], heads: Sequence[HeadKeys]) -> list[Group]:
    """The boxes of all ``heads``, in their order, on one device."""
    groups = [group for head in heads for group in _groups_of_head(batch_dict, head)]
    device = next((group.boxes.device for group in groups if is_accelerator(group.boxes)), None)
    if device is None:
        return groups
    return [group if is_accelerator(group.boxes) else _sent(group, device) for group in groups]


def _sent(group: Group, device: torch.device) -> Group:
    return Group(*(send(part, device) for part in group))


def _groups_of_head(batch_dict: Mapping[str, Any], head: HeadKeys) -> list[Group]:
    if f"{FINAL}{head.suffix}" in batch_dict:
        return [_selected(batch_dict[f"{FINAL}{head.suffix}"], head.labels)]
    given, boxes = (batch_dict[f"{key}{head.suffix}"] for key in ("batch_cls_preds", "batch_box_preds"))
    if isinstance(given, Tensor):
        columns = head.labels or range(1, given.shape[-1] + 1)
        raws, labels = [given], [constant(columns, given.device, torch.long)]
    else:
        raws, labels = given, batch_dict[f"multihead_label_mapping{head.suffix}"]
    normalized = batch_dict.get(f"cls_preds_normalized{head.suffix}", False)
    scores = [raw if normalized else raw.sigmoid() for raw in raws]
    parts = boxes.split([raw.shape[1] for raw in raws], dim=1)
    return [Group(*group) for group in zip(parts, raws, scores, labels, strict=True)]


def _selected(found: Sequence[Mapping[str, Tensor]], labels: Sequence[int]) -> Group:
    """Boxes that a head selected, padded to the largest number of a sample; a box has the score of one class.

    Padding has the score -inf, which reaches no threshold.
    """
    most = max(1, *(len(each["pred_scores"]) for each in found))
    like = found[0]["pred_boxes"]
    columns = constant(labels, like.device, torch.long)
    boxes = like.new_zeros(len(found), most, like.shape[1])
    scores = found[0]["pred_scores"].new_full((len(found), most, len(columns)), -torch.inf)
    for sample, each in enumerate(found):
        count = len(each["pred_scores"])
        own = each["pred_labels"].unsqueeze(1) == columns
        boxes[sample, :count] = each["pred_boxes"]
        scores[sample, :count] = torch.where(own, each["pred_scores"].unsqueeze(1), -torch.inf)
    return Group(boxes, scores, scores, columns)
