"""The module tree of a frozen model, and what the list does with each task."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from pcdet_freeze.freezing import FreezeHandle, is_frozen, is_fully_frozen, layer_types
from pcdet_freeze.freezing.data_flow.drift_lint import live_inputs
from pcdet_freeze.freezing.data_flow.module_graph import Stage, stages
from pcdet_freeze.freezing.entries.paths import walk
from pcdet_freeze.freezing.eval_lock import is_locked
from pcdet_freeze.report.html import fold, tag, text
from pcdet_freeze.report.record import Part, Task

MOST = 3000
"""modules of a tree; deeper ones are left out of larger models"""
DETECTION = "detection"
BOXES = "gt_boxes"
WORDS = {
    "frozen": "frozen",
    "locked": "norm layers locked",
    "partly": "partly frozen",
    "trainable": "trainable",
    "none": "no parameters",
}


def tree_of(model: nn.Module, handle: FreezeHandle | None) -> list[Part]:
    """Every module of ``model``, parents first, as it is frozen now."""
    found = {path: module for path, module, _ in walk(model) if path}  # of a wrapped module, the inner one
    depth = 1
    while sum(path.count(".") <= depth for path in found) <= MOST and depth < 50:
        depth += 1
    return [_part(path, module, handle) for path, module in found.items() if path.count(".") < depth]


def _part(path: str, module: nn.Module, handle: FreezeHandle | None) -> Part:
    norms = [is_locked(part) for part in module.modules() if layer_types.is_norm(part)]
    state = state_of(module)
    entry = handle.resolution.entry_of(path) if handle is not None and state in ("frozen", "locked") else ""
    count = sum(parameter.numel() for parameter in module.parameters() if not nn.parameter.is_lazy(parameter))
    return Part(path, type(module).__name__, count, state, len(norms), sum(norms), entry or "")


def state_of(module: nn.Module) -> str:
    """'frozen', 'locked', 'partly', 'trainable', or 'none' for a module without parameters and buffers."""
    if not layer_types.has_state(module):
        return "none"
    if is_fully_frozen(module):
        return "frozen"
    if is_frozen(module):
        return "locked"
    some = any(is_frozen(part) for part in module.modules() if layer_types.has_state(part))
    return "partly" if some else "trainable"


def mark_released(tree: Sequence[Part], before: Sequence[Part], after: str) -> None:
    """Note in ``tree`` what was frozen in ``before`` and no longer is."""
    frozen = {part.path for part in before if part.state in ("frozen", "locked")}
    for part in tree:
        if part.path in frozen and part.state not in ("frozen", "locked"):
            part.released = part.released or after


def tasks_of(model: nn.Module, metrics: Mapping[str, str], drift: Mapping[str, Any]) -> list[Task]:
    """The tasks of ``model``, by the labels that its heads learn from.

    Args:
        metrics: name of a metric -> label key that it reads. Of several with one label the shortest name is
            that of the task; the others begin with it (``segmentation``, ``segmentation_bev``).
        drift: module -> what the comparison of outputs found.
    """
    found: dict[str, list[Stage]] = {}
    for stage in stages(model):
        if stage.has_loss:
            names = [name for name, label in metrics.items() if label in stage.reads_train]
            name = min(names, key=len) if names else (DETECTION if BOXES in stage.reads_train else stage.name)
            found.setdefault(name, []).append(stage)
    return [_task(name, heads, live_inputs(model), drift) for name, heads in found.items()]


def _task(name: str, heads: Sequence[Stage], feeds: Mapping[str, Any], drift: Mapping[str, Any]) -> Task:
    names = [head.name for head in heads]
    fed_by = list(dict.fromkeys(part for head in names for part in feeds.get(head, ())))
    if not all(is_fully_frozen(head.module) for head in heads):
        partly = any(state_of(head.module) in ("frozen", "partly") for head in heads)
        return Task(name, names, "partly" if partly else "trainable", fed_by)
    verdicts = [str(drift.get(head, {}).get("verdict", "frozen")) for head in names]
    if fed_by:  # equal outputs of one batch are no proof where an input trains
        verdicts = ["frozen" if verdict == "identical" else verdict for verdict in verdicts]
    order = ("CHANGED", "drift", "noise", "frozen", "identical")
    return Task(name, names, next(word for word in order if word in verdicts), fed_by)


def draw_tree(parts: Sequence[Part]) -> str:
    """The tree as nested ``details``; the top level is visible, the rest opens."""
    below: dict[str, list[Part]] = {}
    paths = {part.path for part in parts}
    for part in parts:
        below.setdefault(_parent(part.path, paths), []).append(part)
    return tag("div", *_nodes(below, ""), class_="tree") if parts else ""


def _parent(path: str, paths: Collection[str]) -> str:
    above = path.rpartition(".")[0]
    while above and above not in paths:
        above = above.rpartition(".")[0]
    return above


def _nodes(below: Mapping[str, Sequence[Part]], path: str) -> Iterator[str]:
    for part in below.get(path, ()):
        title = _title(part)
        if part.path in below:
            yield fold(title, *_nodes(below, part.path), data_path=part.path)
        else:
            yield tag("div", title, class_="leaf", data_path=part.path)


def _title(part: Part) -> str:
    name = part.path.rpartition(".")[2]
    words = [WORDS.get(part.state, part.state)]
    if part.released:
        words[0] += f" {part.released}"
    notes = [f"{part.parameters:,} parameters"] if part.parameters else []
    if part.norms:
        notes.append(f"{part.norms_locked} of {part.norms} norm layers locked")
    if part.entry:
        notes.append(f"by {part.entry}")
    state = tag("span", text(words[0]), class_=f"state {part.state}")
    about = tag("span", text(" · ".join([part.kind, *notes])), class_="soft")
    return f"{tag('code', text(name))} {state} {about}"
