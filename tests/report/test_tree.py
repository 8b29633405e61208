"""The module tree of a report, and what it says of tasks."""

from __future__ import annotations

from typing import Any

from html_checks import Page
from torch import nn

from pcdet_freeze.freezing import freeze
from pcdet_freeze.report.tree import draw_tree, mark_released, tasks_of, tree_of


class Head(nn.Module):
    """A head that learns from ``label``."""

    def __init__(self, label: str, reads: str) -> None:
        super().__init__()
        self.conv = nn.Linear(4, 1)
        self.reads, self.reads_train, self.writes = (reads,), (label,), (f"{label}_out",)

    def get_loss(self) -> Any:
        raise NotImplementedError("never called")


class Trunk(nn.Sequential):
    """Writes the features that both heads read."""

    reads, writes = ("points",), ("features",)


def detector() -> nn.Module:
    model = nn.Module()
    model.trunk = Trunk(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU())
    model.dense_head, model.segment_head = Head("gt_boxes", "features"), Head("point_labels", "features")
    model.module_names = ["trunk", "dense_head", "segment_head"]
    return model


METRICS = {"segmentation_bev": "point_labels", "segmentation": "point_labels"}


def test_each_module_has_its_state_and_the_entry_that_froze_it() -> None:
    model = detector()
    parts = {part.path: part for part in tree_of(model, freeze(model, ["trunk.0", "trunk.1", "dense_head"]))}
    assert {path: part.state for path, part in parts.items()} == {
        "trunk": "partly", "trunk.0": "frozen", "trunk.1": "frozen", "trunk.2": "none",
        "dense_head": "frozen", "dense_head.conv": "frozen",
        "segment_head": "trainable", "segment_head.conv": "trainable",
    }  # fmt: skip
    assert parts["dense_head.conv"].entry == "dense_head" and parts["trunk"].entry == ""
    assert (parts["trunk"].norms, parts["trunk"].norms_locked, parts["trunk"].parameters) == (1, 1, 28)


def test_norm_layers_that_are_locked_alone_are_not_called_frozen() -> None:
    from pcdet_freeze.freezing import FreezePlan

    model = detector()
    cfg = {"MODEL": {"NOT_TRAIN_IN_MULTI_TASK": ["trunk"], "FREEZE": {"PARAMETERS": False}}}
    states = {part.path: part.state for part in tree_of(model, freeze(model, FreezePlan.from_cfg(cfg)))}
    assert states["trunk"] == "locked" and states["dense_head"] == "trainable"


def test_a_model_without_a_freeze_is_all_trainable() -> None:
    assert {part.state for part in tree_of(detector(), None)} == {"trainable", "none"}


def test_the_drawn_tree_nests_as_the_modules_do_and_opens() -> None:
    model = detector()
    found = Page(draw_tree(tree_of(model, freeze(model, ["trunk"]))))
    assert found.faults == [] and found.count("details") == 3 and found.count("summary") == 3
    assert found.count("details", data_path="trunk") == 1 and found.count("div", data_path="trunk.2") == 1
    assert found.count("span", class_="state frozen") == 3 and "by trunk" in found.text


def test_what_the_schedule_released_is_marked() -> None:
    model = detector()
    handle = freeze(model, ["trunk"])
    before = tree_of(model, handle)
    handle.release()
    after = tree_of(model, None)
    mark_released(after, before, "since epoch 3")
    assert {part.path for part in after if part.released} == {"trunk", "trunk.0", "trunk.1"}
    assert "trainable since epoch 3" in Page(draw_tree(after)).text


def test_a_task_is_kept_only_where_all_that_feeds_its_head_is_frozen() -> None:
    model = detector()
    freeze(model, ["dense_head"])
    same = {"dense_head": {"verdict": "identical", "relative_difference": {"x": 0.0}}}
    assert [task.state for task in tasks_of(model, METRICS, same)] == ["frozen", "trainable"]
    freeze(model, ["trunk"])
    boxes, classes = tasks_of(model, METRICS, same)
    assert (boxes.name, boxes.heads, boxes.state) == ("detection", ["dense_head"], "identical")
    assert (classes.name, classes.heads, classes.state) == ("segmentation", ["segment_head"], "trainable")


def test_a_changed_output_is_never_called_kept() -> None:
    model = detector()
    freeze(model, ["trunk", "dense_head"])
    for verdict in ("CHANGED", "noise"):
        assert tasks_of(model, METRICS, {"dense_head": {"verdict": verdict}})[0].state == verdict
    assert tasks_of(model, METRICS, {})[0].state == "frozen"
