"""Shell completion: asked as a shell does, and the words that it offers."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from pcdet_freeze.__main__ import COMMANDS, main
from pcdet_freeze.cli.common.completion import COMPLETERS, complete, files, parser_of_all
from pcdet_freeze.cli.common.known_words import FREEZE_KEYS, LIST, MODULES, entries_of, keys_of, values_of
from pcdet_freeze.freezing.plan import FreezeOptions
from pcdet_freeze.models.detectors.topology import TOPOLOGY

STAGE2 = "synthetic_models/stage2_segment.yaml"
AS_THE_SHELL = ["sh", "-c", 'exec "$@" 8>&1 1>/dev/null', "sh", sys.executable, "-X", "importtime"]


def answers(line: str, start: int = 1) -> list[str]:
    """What the program offers for the last word of ``line``, whose first ``start`` words are its own."""
    asked = {"_ARGCOMPLETE": str(start), "_ARGCOMPLETE_IFS": "\n", "COMP_LINE": line}
    env = {**os.environ, **asked, "COMP_POINT": str(len(line))}
    command = [*AS_THE_SHELL, "-m", "pcdet_freeze"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert "argcomplete" in done.stderr and "torch" not in done.stderr
    return done.stdout.split("\n")


def test_the_shell_is_offered_commands_and_no_torch_is_imported() -> None:
    assert answers("pcdet-freeze ") == list(COMMANDS)


def test_the_shell_is_offered_packaged_configs() -> None:
    line = "python -m pcdet_freeze train --max_iters 3 --cfg_file synthetic_models/stage"
    assert STAGE2 in answers(line, start=3)


def test_the_shell_is_offered_entries_behind_the_key_of_the_freeze_list() -> None:
    line = f"pcdet-freeze explain --cfg_file {STAGE2} --set OPTIMIZATION.LR 0.1 {LIST} vfe,backbone_2d."
    assert answers(line) == ["vfe,backbone_2d.blocks", "vfe,backbone_2d.deblocks"]


def test_every_command_can_be_completed_with_its_flags_under_both_spellings() -> None:
    for name in ("check-data", "check_data"):
        parser = parser_of_all(COMMANDS, "pcdet-freeze", name)
        assert parser.parse_args([name, "--cfg_file", "x.yaml", "--split", "test"]).split == "test"


def test_without_argcomplete_completion_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "argcomplete", None)
    monkeypatch.setenv("_ARGCOMPLETE", "1")
    complete(COMMANDS, "pcdet-freeze")
    assert main([]) == 2


def test_keys_of_a_config_and_of_the_freeze_are_offered() -> None:
    keys = keys_of(STAGE2)
    assert {LIST, "MODEL.FREEZE.FUSE", "OPTIMIZATION.LR", "MODEL.DENSE_HEAD.NAME"} <= set(keys)
    assert len(keys) == len(set(keys))
    assert "MODEL.FREEZE.FUSE" not in keys_of("dataset_configs/kitti_dataset.yaml")


def test_the_keys_of_the_freeze_are_those_of_its_options() -> None:
    assert [key.lower() for key in FREEZE_KEYS] == [field.name for field in fields(FreezeOptions)]


def test_the_modules_are_those_of_the_detectors() -> None:
    tops = {section: modules[0] for section, modules in MODULES.items()}
    assert tops == {slot.section: slot.attribute for slot in TOPOLOGY if slot.section != "PFE"}


def test_entries_are_modules_of_the_config_and_what_its_list_names() -> None:
    assert "lane_head" not in entries_of(STAGE2) and "segment_head" in entries_of(STAGE2)
    assert "backbone_2d.segblocks" in entries_of("synthetic_models/stage3_lane.yaml")
    assert "lane_head" in entries_of(None) and "lane_head" in entries_of("no/such.yaml")


@pytest.mark.parametrize("model", ["{DENSE_HEADS: [1]}", "{NOT_TRAIN_IN_MULTI_TASK: [{a: b}, vfe]}"])
def test_a_config_that_is_not_valid_yet_gives_the_words_that_it_has(tmp_path: Path, model: str) -> None:
    (tmp_path / "new.yaml").write_text(f"MODEL: {model}\n")
    assert entries_of(str(tmp_path / "new.yaml")) == (["vfe"] if "vfe" in model else [])


def test_a_value_is_offered_where_it_can_be_named() -> None:
    assert values_of(STAGE2, "OPTIMIZATION.LR") == ["0.003"]
    assert values_of(STAGE2, "MODEL.DENSE_HEAD.USE_DIRECTION_CLASSIFIER") == ["True", "False"]
    assert values_of(STAGE2, "no.such") == []


def test_files_are_offered_by_their_suffix_with_folders(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    for name in ("a.pth", "b.txt", ".hidden.pth"):
        (tmp_path / name).touch()
    assert files(".pth")(f"{tmp_path}/") == [f"{tmp_path}/a.pth", f"{tmp_path}/runs/"]
    assert files()(f"{tmp_path}/b") == [f"{tmp_path}/b.txt"] and files()(f"{tmp_path}/no/") == []


def test_a_module_of_another_checkpoint_is_completed_on_both_sides_of_its_colon(tmp_path: Path) -> None:
    (tmp_path / "seg.pth").touch()
    take, args = COMPLETERS["take"], argparse.Namespace()
    assert "segment_head" in take("seg", parsed_args=args)
    assert take(f"a,b:{tmp_path}/s", parsed_args=args) == [f"a,b:{tmp_path}/seg.pth"]
