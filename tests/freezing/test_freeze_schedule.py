"""FREEZE.SCHEDULE: every fault at once, and what is frozen when."""

from __future__ import annotations

from typing import Any

import pytest
from freeze_toys import Detector
from torch import nn

from pcdet_freeze.errors import FreezeError
from pcdet_freeze.freezing import FreezePlan, freeze
from pcdet_freeze.freezing.plan import ScheduleEntry
from pcdet_freeze.freezing.schedule import Phase, phase_at, timeline


def plan(*phases: Any, entries: tuple[str, ...] = ("vfe", "backbone_2d"), **options: Any) -> FreezePlan:
    block = {"SCHEDULE": list(phases), **options}
    return FreezePlan.from_cfg({"MODEL": {"NOT_TRAIN_IN_MULTI_TASK": list(entries), "FREEZE": block}})


def phase(epoch: Any, *train: str, **more: Any) -> dict[str, Any]:
    return {"EPOCH": epoch, "TRAIN": list(train), **more}


def frozen_in(span: Phase, model: nn.Module) -> tuple[str, ...]:
    handle = freeze(model, span.plan)
    names = handle.names
    handle.release()
    return names


def test_r3_phases_are_read_as_they_stand() -> None:
    found = plan(phase(4, "backbone_2d.blocks", LR_SCALE=0.1), phase(9, "vfe")).schedule
    assert found == (ScheduleEntry(4, ("backbone_2d.blocks",), 0.1), ScheduleEntry(9, ("vfe",), 1.0))
    assert FreezePlan(("vfe",), schedule=(ScheduleEntry(2, ("vfe",)),)).schedule == (
        ScheduleEntry(2, ("vfe",)),
    )


@pytest.mark.parametrize("empty", [[], None])
def test_r3_without_phases_there_is_one_span(empty: Any) -> None:
    made = FreezePlan.from_cfg({"MODEL": {"NOT_TRAIN_IN_MULTI_TASK": ["vfe"], "FREEZE": {"SCHEDULE": empty}}})
    assert timeline(made, Detector()) == (Phase(0, made),)


WRONG = [
    (
        "backbone_2d.blocks",
        "must be a list of phases such as {EPOCH: 10, TRAIN: [backbone_2d.blocks], LR_SCALE: 0.1}; got str",
    ),
    ([3], "SCHEDULE[0] must be a section such as"),
    ([{"TRAIN": ["vfe"]}], "SCHEDULE[0].EPOCH is required, but missing"),
    ([{"EPOCH": 3}], "SCHEDULE[0].TRAIN is required, but missing"),
    ([phase(1.5, "vfe")], "EPOCH must be a whole number of finished epochs, 1 or more; got 1.5"),
    ([phase(0, "vfe")], "1 or more; got 0"),
    ([phase(True, "vfe")], "got True"),
    ([phase("2", "vfe")], "got '2'"),
    ([phase(1)], "TRAIN must be a list of module names"),
    (
        [{"EPOCH": 1, "TRAIN": "vfe, a"}],
        "TRAIN must be a list of module names; got str 'vfe, a': write [vfe, a]",
    ),
    ([phase(1, "!vfe")], "without '!'"),
    ([phase(1, "vfe", LR_SCALE=0)], "LR_SCALE must be a number above 0; got 0"),
    ([phase(1, "vfe", LR_SCALE=float("nan"))], "above 0; got nan"),
    ([phase(1, "vfe", LR_SCALE="0.1")], "above 0; got '0.1'"),
    ([phase(9, "vfe.0"), phase(4, "vfe.1")], "SCHEDULE[1].EPOCH must not be below that of the phase before"),
    (
        [phase(1, "vfe", LRSCALE=0.1)],
        "SCHEDULE[0].LRSCALE is not a key of this section, or is not implemented; did you mean LR_SCALE?",
    ),
]


@pytest.mark.parametrize(("schedule", "told"), WRONG)
def test_r3_what_cannot_be_a_phase_is_an_error(schedule: Any, told: str) -> None:
    cfg = {"MODEL": {"NOT_TRAIN_IN_MULTI_TASK": ["vfe"], "FREEZE": {"SCHEDULE": schedule}}}
    with pytest.raises(FreezeError) as caught:
        FreezePlan.from_cfg(cfg)
    assert told in str(caught.value)


def test_r3_a_schedule_without_a_list_and_a_scale_without_parameters_are_errors() -> None:
    with pytest.raises(FreezeError, match="names none"):
        plan(phase(1, "vfe"), entries=())
    with pytest.raises(FreezeError, match="LR_SCALE is for parameters"):
        plan(phase(1, "vfe", LR_SCALE=0.5), PARAMETERS=False)


def test_r3_all_faults_of_a_config_come_in_one_error() -> None:
    with pytest.raises(FreezeError) as caught:
        plan(phase(0, "vfe"), phase(2, "vfe", LR_SCALE=-1), 7)
    assert [f"SCHEDULE[{n}]" in str(caught.value) for n in range(3)] == [True] * 3


def test_r3_all_faults_against_a_model_come_in_one_error_and_nothing_changes() -> None:
    model = Detector()
    made = plan(phase(3, "vef"), phase(4, "dense_head"), phase(5, "vfe"), phase(6, "vfe.1"), phase(20, "vfe"))
    with pytest.raises(FreezeError) as caught:
        timeline(made, model, epochs=20)
    text = str(caught.value)
    assert "'vef' names no module" in text and "Nearest: vfe" in text
    assert "nothing in 'dense_head' is frozen" in text
    assert "'vfe.1' of EPOCH 6 overlaps with vfe of EPOCH 5" in text
    assert "would begin after epoch 20 of a run of 20" in text
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_r3_faults_of_the_list_and_of_the_schedule_come_together() -> None:
    with pytest.raises(FreezeError, match=r"(?s)vfx.*backbone_3d"):
        timeline(plan(phase(3, "backbone_3d"), entries=("vfx",)), Detector())


def test_r3_a_phase_may_free_a_part_of_an_entry() -> None:
    model = Detector()
    spans = timeline(
        plan(phase(2, "backbone_2d.blocks.2", LR_SCALE=0.1), phase(3, "backbone_2d.blocks.[01]")), model
    )
    assert [span.begins for span in spans] == [0, 2, 3]
    assert spans[1].plan.entries == ("vfe", "backbone_2d", "!backbone_2d.blocks.2")
    assert spans[1].entered[0].lr_scale == 0.1
    assert spans[1].entered[0].names == tuple(
        f"backbone_2d.blocks.2.{n}" for n in ("0.weight", "0.bias", "1.weight", "1.bias")
    )
    handle = freeze(model, spans[2].plan)
    moving = {
        name.split(".")[1] for name, p in model.backbone_2d.named_parameters("backbone_2d") if p.requires_grad
    }
    assert moving == {"blocks"} and "4 norm layers" in handle.summary()


def test_r3_a_name_around_what_is_frozen_frees_what_is_frozen_in_it() -> None:
    spans = timeline(
        plan(phase(2, "backbone_2d"), entries=("vfe", "backbone_2d.blocks", "!backbone_2d.blocks.1")),
        Detector(),
    )
    assert {name.split(".")[2] for name in spans[1].entered[0].names} == {"0", "2"}
    assert frozen_in(spans[1], Detector()) == ("vfe",)


def test_r3_phases_of_one_epoch_keep_their_own_scales() -> None:
    spans = timeline(
        plan(phase(2, "vfe", LR_SCALE=0.1), phase(2, "backbone_2d.deblocks", LR_SCALE=0.5)), Detector()
    )
    assert [(part.names[0], part.lr_scale) for part in spans[1].entered] == [
        ("vfe.0.weight", 0.1), ("backbone_2d.deblocks.0.0.weight", 0.5),
    ]  # fmt: skip


def test_r3_after_the_last_phase_nothing_may_be_left_frozen() -> None:
    model = Detector()
    spans = timeline(plan(phase(2, "vfe", "backbone_2d", "backbone_2d.blocks")), model)
    assert not spans[1].plan and len(spans[1].entered[0].names) == len(list(model.parameters())) - 2


def test_r3_options_that_name_freed_parts_are_left_out_with_them() -> None:
    made = plan(phase(2, "vfe"), EVAL=["vfe", "backbone_2d.blocks"], IGNORE=["vfe.1.running_mean"])
    (_, span) = timeline(made, Detector())
    assert span.plan.eval == ("backbone_2d.blocks",) and span.plan.ignore == ()
    freeze(Detector(), span.plan)


class Tied(Detector):
    def __init__(self) -> None:
        super().__init__()
        self.backbone_2d.blocks[1][0].weight = self.backbone_2d.blocks[0][0].weight


def test_n7_a_phase_that_frees_half_of_a_tied_pair_is_an_error_before_the_run() -> None:
    with pytest.raises(FreezeError, match=r"from EPOCH 2 on: .*same parameter"):
        timeline(plan(phase(2, "backbone_2d.blocks.1")), Tied())


def test_n7_with_shared_freeze_a_tied_tensor_trains_when_its_last_holder_is_freed() -> None:
    made = plan(phase(2, "backbone_2d.blocks.0"), phase(3, "backbone_2d.blocks.1"), SHARED="freeze")
    spans = timeline(made, Tied())
    assert "backbone_2d.blocks.0.0.weight" not in spans[1].entered[0].names
    assert "backbone_2d.blocks.0.0.weight" in spans[2].entered[1].names


@pytest.mark.parametrize(("begun", "begins"), [(0, 0), (1, 0), (2, 0), (3, 2), (5, 2), (6, 5), (9, 5)])
def test_r3_a_phase_begins_when_the_next_epoch_does(begun: int, begins: int) -> None:
    spans = timeline(plan(phase(2, "vfe"), phase(5, "backbone_2d.blocks")), Detector())
    assert phase_at(spans, begun).begins == begins
