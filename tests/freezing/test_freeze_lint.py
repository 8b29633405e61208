"""The lint: what is frozen behind something live (P3), and the data flow that it knows this from."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from freeze_toys import block
from torch import nn

from pcdet_freeze.freezing import FreezePlan, freeze
from pcdet_freeze.freezing.data_flow.drift_lint import lint
from pcdet_freeze.freezing.data_flow.module_graph import How, decide, may_feed, stages


def part(reads: str, writes: str, module: nn.Module | None = None, **more: object) -> nn.Module:
    """A module that declares keys (words of a string)."""
    module = module or block()
    module.reads, module.writes = tuple(reads.split()), tuple(writes.split())  # type: ignore[assignment]
    for key, value in more.items():
        setattr(module, key, value)
    return module


def backbone(made_by: Mapping[str, tuple[str, ...]] | None = None) -> nn.Module:
    module = part("low", "bev lane", nn.Module(), made_by=made_by)
    module.blocks, module.deblocks, module.lane_deblocks = nn.ModuleList([block(), block()]), block(), block()
    return module


class Chain(nn.Module):
    """Modules in the order of their registration."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, module in parts.items():
            self.add_module(name, module)
        self.module_names = tuple(parts)


def loss() -> int:
    return 0


def detector(made_by: Mapping[str, tuple[str, ...]] | None = None) -> Chain:
    return Chain(
        vfe=part("points", "low"),
        backbone_2d=backbone(made_by),
        dense_head=part("bev", "batch_box_preds", get_loss=loss),
        lane_head=part("lane", "lanes", get_loss=loss),
    )


def warnings(model: nn.Module, *entries: str) -> list[str]:
    freeze(model, list(entries))
    return [str(drift) for drift in lint(model)]


def test_p3_a_frozen_head_on_a_trainable_trunk_is_named() -> None:
    assert warnings(detector(), "dense_head") == [
        "dense_head is frozen, but vfe and backbone_2d feed it and are trainable: its detections will drift"
    ]


def test_p3_the_trainable_children_of_a_partly_frozen_backbone_are_named() -> None:
    made_by = {"bev": ("blocks", "deblocks"), "lane": ("blocks", "lane_deblocks")}
    assert warnings(detector(made_by), "vfe", "backbone_2d.blocks", "dense_head") == [
        "dense_head is frozen, but backbone_2d.deblocks feeds it and is trainable: its detections will drift"
    ]


def test_p3_a_trainable_branch_that_makes_another_key_causes_no_drift() -> None:
    made_by = {"bev": ("blocks", "deblocks"), "lane": ("blocks", "lane_deblocks")}
    entries = ("vfe", "backbone_2d.blocks", "backbone_2d.deblocks", "dense_head")
    assert warnings(detector(made_by), *entries) == []
    (told,) = warnings(detector(), *entries)
    assert "backbone_2d.lane_deblocks feeds it" in told


def test_p3_a_trainable_backbone_is_named_by_the_branches_that_feed_the_head() -> None:
    made_by = {"bev": ("blocks", "deblocks"), "lane": ("blocks", "lane_deblocks")}
    (told,) = warnings(detector(made_by), "vfe", "dense_head")
    assert "backbone_2d.blocks and backbone_2d.deblocks feed it" in told


def test_p3_a_frozen_trunk_after_a_trainable_one_is_named_too() -> None:
    assert warnings(detector(), "backbone_2d") == [
        "backbone_2d is frozen, but vfe feeds it and is trainable: its output will drift"
    ]


@pytest.mark.parametrize("entries", [["vfe"], ["vfe", "backbone_2d.blocks"], ["vfe", "backbone_2d"]])
def test_p3_a_frozen_prefix_gives_no_warning(entries: list[str]) -> None:
    assert warnings(detector(), *entries) == []


def test_p3_a_trainable_part_before_a_frozen_one_in_the_same_module_may_feed_it() -> None:
    assert warnings(detector(), "vfe", "backbone_2d.blocks.1", "backbone_2d.lane_deblocks")[0] == (
        "backbone_2d.blocks.1 is frozen, but backbone_2d.blocks.0 may feed it and is trainable: "
        "its output will drift"
    )


def test_p3_running_statistics_that_update_make_a_head_drift() -> None:
    model = detector()
    model.vfe.requires_grad_(False)
    (told,) = warnings(model, "backbone_2d", "dense_head")[:1]
    assert "vfe.1 feeds it" in told


def test_p3_a_module_without_declarations_may_feed_everything() -> None:
    model = Chain(vfe=part("points", "low"), odd=block(), head=part("bev", "boxes", get_loss=loss))
    assert warnings(model, "head") == [
        "head is frozen, but vfe and odd may feed it and are trainable: its predictions will drift"
    ]


def test_p3_what_feeds_only_labels_makes_no_outputs_drift() -> None:
    labeller, head = part("points", "label"), part("points", "boxes", get_loss=loss, reads_train=("label",))
    assert warnings(Chain(labeller=labeller, head=head), "head") == []


def test_p3_a_renamed_detector_gives_the_same_warnings_under_its_names() -> None:
    model = Chain(a=part("points", "low"), b=part("low", "boxes", get_loss=loss))
    assert warnings(model, "b") == [
        "b is frozen, but a feeds it and is trainable: its predictions will drift"
    ]


def test_p3_with_parameters_false_there_is_no_lint() -> None:
    model = detector()
    freeze(model, FreezePlan(("dense_head",), parameters=False))
    assert lint(model) == []


def test_p3_a_model_that_does_not_tell_its_order_gives_no_warning() -> None:
    model = nn.Sequential(block(), block())
    assert warnings(model, "1") == []


def test_the_order_is_read_from_module_names_or_from_module_list() -> None:
    model = detector()
    names = [stage.name for stage in stages(model)]
    assert names == ["vfe", "backbone_2d", "dense_head", "lane_head"]
    model.module_list = [model.dense_head, model.vfe]
    del model.module_names
    assert [stage.name for stage in stages(model)] == ["dense_head", "vfe"]


def test_feeding_is_certain_only_where_both_declare_their_keys() -> None:
    first, second, third, _ = stages(detector())
    assert may_feed(first, second) and may_feed(second, third) and not may_feed(first, third)
    odd = stages(Chain(odd=block()))[0]
    assert may_feed(odd, third) and may_feed(first, odd)


def test_t1_labels_count_as_read_only_where_the_reader_trains() -> None:
    chain = Chain(
        labeller=part("points", "label"),
        a=part("points", "out", get_loss=loss, reads_train=("label",)),
        b=part("out", "end", get_loss=loss),
    )
    handle = freeze(chain, ["labeller"])
    assert [step.how for step in decide(stages(chain))] == [How.PLAIN] * 3
    handle.release()
    freeze(chain, ["labeller", "a"])
    assert [step.how for step in decide(stages(chain))] == [How.SKIP, How.EVAL, How.PLAIN]
