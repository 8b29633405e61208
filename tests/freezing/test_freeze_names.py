"""N1-N6: what entries mean, and what is said about those that mean nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from easydict import EasyDict
from freeze_toys import Detector, block, state_bits
from torch import nn

from pcdet_freeze import FreezeError, FreezePlan, freeze, is_frozen, unfreeze
from pcdet_freeze.freezing.schedule import timeline
from pcdet_freeze.freezing.summary import counts


def cfg(entries: Any, **options: Any) -> dict[str, Any]:
    return {"MODEL": {"NOT_TRAIN_IN_MULTI_TASK": entries, **({"FREEZE": options} if options else {})}}


def error_of(model: nn.Module, entries: Any) -> str:
    with pytest.raises(FreezeError) as caught:
        freeze(model, entries)
    return str(caught.value)


@pytest.mark.parametrize(
    ("entry", "names"),
    [
        ("vfe", ("vfe",)),
        ("backbone_2d.blocks.0", ("backbone_2d.blocks.0",)),
        ("backbone_2d.*", ("backbone_2d.blocks", "backbone_2d.deblocks")),
        ("backbone_2d.blocks.[0-1]", ("backbone_2d.blocks.0", "backbone_2d.blocks.1")),
        ("backbone_2d.blocks.?", ("backbone_2d.blocks.0", "backbone_2d.blocks.1", "backbone_2d.blocks.2")),
        ("*_head", ("dense_head",)),
    ],
)
def test_n1_an_entry_is_a_path_or_a_glob_within_segments(entry: str, names: tuple[str, ...]) -> None:
    assert freeze(Detector(), [entry]).names == names


def test_n1_a_glob_does_not_cross_segments() -> None:
    assert "names no module" in error_of(Detector(), ["backbone_2d*0"])


def test_n1_an_exclamation_mark_exempts_a_part_of_an_earlier_entry() -> None:
    model = Detector()
    handle = freeze(model, ["backbone_2d.blocks", "!backbone_2d.blocks.2"])
    assert is_frozen(model.backbone_2d.blocks[1]) and not is_frozen(model.backbone_2d.blocks[2])
    assert all(p.requires_grad for p in model.backbone_2d.blocks[2].parameters())
    assert not any("blocks.2" in name for name in handle.certificate().digests)


def test_n1_a_later_entry_takes_back_a_part_of_an_exemption() -> None:
    model = Detector()
    freeze(model, ["backbone_2d", "!backbone_2d.blocks", "backbone_2d.blocks.1"])
    assert [is_frozen(b) for b in model.backbone_2d.blocks] == [False, True, False]
    assert is_frozen(model.backbone_2d.deblocks)


@pytest.mark.parametrize("entries", [["!vfe"], ["!vfe", "vfe"], ["dense_head", "!vfe"]])
def test_n1_an_exemption_of_nothing_is_an_error(entries: list[str]) -> None:
    assert "must exempt a part of an earlier entry" in error_of(Detector(), entries)


def test_n1_a_list_that_exempts_all_it_names_is_an_error() -> None:
    assert "must leave something to freeze" in error_of(Detector(), ["vfe", "!vfe"])


@pytest.mark.parametrize("entry", ["vfe.0.weight", "vfe.1.running_mean", "backbone_2d.blocks.0.0.bias"])
def test_n1_the_name_of_a_tensor_is_an_error_that_names_its_module(entry: str) -> None:
    message = error_of(Detector(), [entry])
    assert "parameter or buffer" in message and repr(entry.rpartition(".")[0]) in message


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_n1_prefixes_of_wrappers_are_seen_through(prefix: str) -> None:
    assert freeze(Detector(), [prefix + "vfe"]).names == ("vfe",)


def test_n1_a_wrapped_part_has_the_names_of_the_plain_one() -> None:
    model = Detector()
    model.vfe = nn.DataParallel(model.vfe)
    handle = freeze(nn.DataParallel(model), ["vfe.1"])
    assert handle.names == ("vfe.1",) and not model.vfe.module[1].weight.requires_grad


@pytest.mark.parametrize("config", [{}, {"MODEL": None}, cfg(None), cfg([]), {"MODEL": {}}, cfg(())])
def test_n2_an_absent_null_or_empty_list_freezes_nothing_and_says_so(config: dict[str, Any]) -> None:
    plan = FreezePlan.from_cfg(config)
    handle = freeze(Detector(), plan)
    assert not plan and handle.names == () and all(p.requires_grad for p in handle.model.parameters())
    assert handle.summary() == "nothing is frozen: MODEL.NOT_TRAIN_IN_MULTI_TASK is absent, null or empty"


@pytest.mark.parametrize(
    "value", ["vfe, head", {"vfe": True}, 3, True, {"vfe"}, b"vfe", [""], ["  "], [3], [None], ["!"]]
)
def test_n3_anything_but_a_list_of_names_is_an_error_with_rule_value_and_cure(value: Any) -> None:
    with pytest.raises(FreezeError) as caught:
        FreezePlan.from_cfg(cfg(value))
    message = str(caught.value)
    rule = "[0] must be a module name" if isinstance(value, list) else " must be a list of module names"
    item = next(iter(value)) if isinstance(value, list) else value
    assert f"MODEL.NOT_TRAIN_IN_MULTI_TASK{rule}; got" in message
    assert repr(item) in message and "write" in message


NAME = "backbone_2d.blocks.[0-1]"


@pytest.mark.parametrize("entries", [NAME, f"{NAME} "])
def test_n3_one_name_is_read_as_a_list_of_one_with_a_note(entries: str) -> None:
    for plan in (FreezePlan.from_cfg(cfg(entries)), FreezePlan(entries)):  # type: ignore[arg-type]
        assert plan == FreezePlan((NAME,))
        (note,) = freeze(Detector(), plan).notes
        assert "NOT_TRAIN_IN_MULTI_TASK" in note and f"[{NAME}]" in note


def test_n3_freeze_and_unfreeze_take_one_name() -> None:
    model = Detector()
    handle = freeze(model, "vfe")
    assert handle.names == ("vfe",) and "[vfe]" in handle.notes[0]
    unfreeze(model, "vfe")
    assert not is_frozen(model.vfe)


def test_n3_one_name_is_a_list_of_one_for_the_options_too() -> None:
    options = {"EVAL": "vfe", "IGNORE": "vfe.1", "ALLOW_RANDOM": "vfe"}
    plan = FreezePlan.from_cfg(cfg(["vfe"], **options, SCHEDULE=[{"EPOCH": 1, "TRAIN": "vfe"}]))
    assert plan.eval == plan.allow_random == plan.schedule[0].train == ("vfe",)
    assert plan.ignore == ("vfe.1",)
    keys = ("EVAL", "IGNORE", "ALLOW_RANDOM", "SCHEDULE[0].TRAIN")
    assert len(plan.notes) == 4 and all(any(key in note for note in plan.notes) for key in keys)


@pytest.mark.parametrize(("entry", "name"), [("vfe.", "vfe"), ("backbone_2d.*.", "backbone_2d.*")])
def test_n3_a_dot_at_the_end_of_a_name_is_removed_with_a_note(entry: str, name: str) -> None:
    for entries in ([entry], entry):
        plan = FreezePlan.from_cfg(cfg(entries))
        assert plan.entries == (name,)
        assert f"{entry!r} is read as {name!r}" in freeze(Detector(), plan).notes[-1]


def test_n3_the_dot_of_an_exemption_is_removed_too() -> None:
    model = Detector()
    handle = freeze(model, ["backbone_2d.", "!backbone_2d.blocks."])
    assert is_frozen(model.backbone_2d.deblocks) and not is_frozen(model.backbone_2d.blocks[0])
    assert len(handle.notes) == 2


@pytest.mark.parametrize("entry", [".", "!.", "vfe..", ".vfe"])
def test_n3_other_dots_are_errors(entry: str) -> None:
    with pytest.raises(FreezeError):
        freeze(Detector(), ["vfe", entry])


def test_n3_a_mapping_is_called_a_mapping() -> None:
    for wrong in (cfg(EasyDict(vfe=True)), cfg(["vfe"], EVAL=EasyDict(vfe=True))):
        with pytest.raises(FreezeError, match=r"got mapping \{'vfe': True\}") as caught:
            FreezePlan.from_cfg(EasyDict(wrong))
        assert "EasyDict" not in str(caught.value)


def test_a_note_is_given_once_in_a_run_with_a_schedule() -> None:
    plan = FreezePlan.from_cfg(cfg("vfe", SCHEDULE=[{"EPOCH": 1, "TRAIN": ["vfe.0"]}]))
    first, second = timeline(plan, Detector())
    assert len(first.plan.notes) == 1 and second.plan.notes == ()


@pytest.mark.parametrize(
    ("text", "list_to_write"),
    [
        ("vfe, head", "[vfe, head]"),
        ("[vfe]", "[vfe]"),
        ("(vfe, head)", "[vfe, head]"),
        ("('vfe',)", "[vfe]"),
        ("None", "[]"),
    ],
)
def test_n3_text_is_answered_with_the_list_to_write(text: str, list_to_write: str) -> None:
    """YAML reads a tuple and the word None as text."""
    for config, key in ((cfg(text), "NOT_TRAIN_IN_MULTI_TASK"), (cfg(["vfe"], EVAL=text), "EVAL")):
        with pytest.raises(FreezeError) as caught:
            FreezePlan.from_cfg(config)
        assert key in str(caught.value) and f"write {list_to_write}" in str(caught.value)


@pytest.mark.parametrize(
    ("entries", "advice"), [(["(vfe", "head)"], "write vfe without parentheses"), (["vfe", "None"], "write ")]
)
def test_n3_parts_of_a_tuple_and_the_word_none_are_no_names(entries: list[str], advice: str) -> None:
    """``[(vfe, head)]`` and ``[vfe, None]`` in YAML."""
    with pytest.raises(FreezeError) as caught:
        FreezePlan.from_cfg(cfg(entries, EVAL=entries))
    place = entries.index(next(entry for entry in entries if "(" in entry or entry == "None"))
    assert f"NOT_TRAIN_IN_MULTI_TASK[{place}] must be a module name" in str(caught.value)
    assert f"EVAL[{place}] must be a name" in str(caught.value) and advice in str(caught.value)


def test_the_word_none_is_no_folder_of_a_cache() -> None:
    with pytest.raises(FreezeError, match=r"FREEZE\.CACHE .*got 'None': write null"):
        FreezePlan.from_cfg(cfg(["vfe"], CACHE="None"))


def test_a_plan_made_of_lists_equals_its_tuple_form_and_is_hashable() -> None:
    lists = FreezePlan(["a"], eval=["x"], ignore=["y"], allow_random=["z"])  # type: ignore[arg-type]
    tuples = FreezePlan(("a",), eval=("x",), ignore=("y",), allow_random=("z",))
    assert lists == tuples and hash(lists) == hash(tuples)


def test_n3_all_faults_of_the_config_come_at_once() -> None:
    with pytest.raises(FreezeError) as caught:
        FreezePlan.from_cfg(cfg(["vfe", "", 7], SHARED="yes", COMPILE=True, IGNOR=[], EVAL="vfe, head"))
    message = str(caught.value)
    assert all(part in message for part in ("TASK[1]", "TASK[2]", "SHARED", "COMPILE", "IGNORE", "EVAL"))


@pytest.mark.parametrize(
    "wrong",
    ["NOT_TRAIN_IN_MULTITASK", "not_train_in_multi_task", "NOT_TRAIN_IN_MUTLI_TASK", "NOT_TRAIN_MULTI_TASK"],
)
def test_n3_a_misspelled_key_is_an_error_and_not_a_run_that_trains_everything(wrong: str) -> None:
    with pytest.raises(FreezeError, match="misspelled"):
        FreezePlan.from_cfg({"MODEL": {wrong: ["vfe"]}})


def test_n3_the_key_beside_model_is_an_error() -> None:
    with pytest.raises(FreezeError, match="belongs under MODEL"):
        FreezePlan.from_cfg({"MODEL": {}, "NOT_TRAIN_IN_MULTI_TASK": ["vfe"]})


def test_the_whole_block_with_its_defaults_is_accepted() -> None:
    lists = {"EVAL": [], "IGNORE": [], "SCHEDULE": []}
    others = {"PARAMETERS": True, "SHARED": "error", "ALLOW_RANDOM": False, "FUSE": True}
    speed = {"PREFIX_DTYPE": "float32", "COMPILE": False, "CACHE": None}
    assert FreezePlan.from_cfg(cfg(["vfe"], **lists, **others, **speed)) == FreezePlan(("vfe",))


def test_n4_a_name_in_capitals_finds_its_nearest() -> None:
    assert "'VFE' names no module of this model. Nearest: vfe" in error_of(Detector(), ["VFE"])


def test_n4_one_error_lists_all_unknown_entries_with_the_nearest_names_and_children() -> None:
    message = error_of(Detector(), ["vfe", "backbone_2d.blok", "dence_head", "backbone_2d.blocks.7"])
    lines = message.splitlines()
    assert len(lines) == 4
    assert "backbone_2d.blocks" in lines[1] and "backbone_2d holds blocks, deblocks" in lines[1]
    assert "dense_head" in lines[2] and "The model holds vfe, map_to_bev_module, backbone_2d" in lines[2]
    assert "backbone_2d.blocks holds 0, 1, 2" in lines[3]


def test_n4_nothing_has_been_changed_when_an_error_is_raised() -> None:
    model = Detector()
    before, bits = {id(m): type(m) for m in model.modules()}, state_bits(model)
    dicts = [set(m.__dict__) for m in model.modules()]
    for wrong in (["vfe", "nothing"], ["vfe", "dense_head.weight"], ["vfe", "!dense_head"]):
        error_of(model, wrong)
    assert {id(m): type(m) for m in model.modules()} == before
    assert [set(m.__dict__) for m in model.modules()] == dicts
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(bits.values(), model.state_dict().values(), strict=True))


def test_n5_overlapping_and_repeated_entries_are_merged_and_noted() -> None:
    handle = freeze(Detector(), ["backbone_2d.blocks", "backbone_2d.blocks.0", "vfe", "vfe", "backbone_2d"])
    assert handle.names == ("vfe", "backbone_2d")
    assert len([note for note in handle.notes if "merged" in note]) == 3


def test_n5_an_entry_without_parameters_and_buffers_is_noted() -> None:
    handle = freeze(Detector(), ["map_to_bev_module", "vfe.2", "vfe.1"])
    assert [note.split("'")[1] for note in handle.notes] == ["map_to_bev_module", "vfe.2"]
    assert all(note in handle.report() for note in handle.notes)


def test_n5_the_summary_says_how_much_and_by_which_entries() -> None:
    model = Detector()
    total = sum(p.numel() for p in model.parameters())
    part = sum(p.numel() for p in model.vfe.parameters())
    assert freeze(model, ["vfe"]).summary() == f"frozen {part} of {total} parameters, 1 norm layer, by vfe"


def test_n1_any_module_can_be_named_not_a_fixed_set() -> None:
    model = nn.ModuleDict({"odd name": block(), "x-1": nn.ModuleDict({"deep": block()})})
    handle = freeze(model, ["odd name", "x-1.deep.1"])
    assert is_frozen(model["odd name"]) and handle.names == ("odd name", "x-1.deep.1")


@pytest.mark.parametrize("wrong", ["VFE", "Vfe", "VEF"])
def test_n4_upper_and_lower_case_do_not_hide_the_nearest_name(wrong: str) -> None:
    assert "Nearest: vfe" in error_of(Detector(), [wrong])


@pytest.mark.parametrize(
    ("part", "total", "told"),
    [
        (0, 99, "0 of 99"),
        (352, 644_680, "352 of 644,680"),
        (4_200_000, 4_800_000, "4.2 of 4.8 M"),
        (630_784, 644_680, "0.63 of 0.64 M"),
        (59_999_999, 60_000_000, "59.999999 of 60.000000 M"),
        (644_680, 644_680, "0.6 of 0.6 M"),
    ],
)
def test_the_summary_tells_small_parts_from_nothing_and_large_ones_from_all(
    part: int, total: int, told: str
) -> None:
    assert counts(part, total) == told
