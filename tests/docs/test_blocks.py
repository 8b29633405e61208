"""The fenced blocks of the documentation: what they are, and that their YAML is a config that is accepted."""

from __future__ import annotations

import argparse
import re
from importlib import import_module
from pathlib import Path

import pytest
from docs_blocks import Block, all_blocks, pages

from pcdet_freeze import FreezePlan
from pcdet_freeze.__main__ import COMMANDS
from pcdet_freeze.config import cfg_from_yaml_file
from pcdet_freeze.engine.check_config import check_config

BLOCKS = all_blocks()
MOST_MARKERS = 10
COMMAND = re.compile(r"^(pcdet-freeze|python|torchrun|pip|make) ", re.MULTILINE)
BASES = {
    "ConcatDataset": "mixed_models/stage1_detect.yaml",
    "argoverse2_dataset.yaml": "argoverse2_log_models/stage1_detect.yaml",
    "argoverse2_sweeps.yaml": "argoverse2_models/stage1_detect.yaml",
    "pandaset_dataset.yaml": "pandaset_models/stage3_lane.yaml",
    "semantic_kitti_dataset.yaml": "semantic_kitti_models/stage2_segment.yaml",
    "FOLDER: semantic": "kitti_models/pointpillar.yaml",
    "DENSE_HEADS": "synthetic_models/new_class.yaml",
    "": "synthetic_models/multi_task.yaml",
}
"""text of a fragment -> the config that it is added to; the first that fits"""
OPENPCDET = ("docs/openpcdet.md", "docs/openpcdet_tasks.md", "docs/from_a_fork.md")
"""pages whose fragments belong into configs of OpenPCDet"""


def test_every_block_has_a_language_that_says_what_becomes_of_it() -> None:
    others = {str(b): b.language for b in BLOCKS if b.language not in ("bash", "python", "yaml", "text")}
    assert not others, "write ```bash, ```python or ```yaml, and ```text for what nobody runs"


def test_only_few_blocks_do_not_run_and_each_says_why() -> None:
    marked = [block for block in BLOCKS if block.marker]
    written = sum(len(re.findall(r"^ *<!-- not run:", page.read_text(), re.MULTILINE)) for page in pages())
    assert len(marked) == written <= MOST_MARKERS, [str(block) for block in marked]
    assert all(block.language in ("bash", "python") for block in marked)


def test_no_command_hides_in_a_block_of_text() -> None:
    assert [str(block) for block in BLOCKS if block.language == "text" and COMMAND.search(block.text)] == []


def test_a_command_has_no_placeholder() -> None:
    for block in BLOCKS:
        if block.language == "bash" and not block.marker:
            assert not re.search(r"\.\.\.|<[a-z]", block.text), f"{block}: write a command that runs"


INLINE = sorted({
    (page.name, words)
    for page in pages()
    for words in re.findall(r"(?<!`)`pcdet-freeze ([a-z][^`]*)`(?!`)", page.read_text())
})  # fmt: skip


@pytest.mark.parametrize(("page", "line"), INLINE)
def test_a_command_in_a_sentence_has_the_flags_that_it_is_given(page: str, line: str) -> None:
    name, *words = line.split()
    assert name in COMMANDS
    parser = argparse.ArgumentParser()
    import_module(f"pcdet_freeze.cli.arguments.{name.replace('-', '_')}").add_arguments(parser)
    flags = {word.strip("[]") for word in words if word.strip("[]").startswith("--")}
    assert flags <= {"--", *parser._option_string_actions}


@pytest.fixture(autouse=True)
def hook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hook of a reader."""
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package/my_module.py").write_text(
        "from pcdet_freeze.engine.hooks.base import Hook\n"
        "class MyHook(Hook):\n    def __init__(self, every: int): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "yaml" and not b.file], ids=str)
def test_a_fragment_of_a_config_is_accepted(block: Block, tmp_path: Path) -> None:
    base = next(name for word, name in BASES.items() if word in block.text)
    text = re.sub(r"^_BASE_CONFIG_.*\n", "", block.text).replace(", ...}", "}")  # `...`: as in the base
    (tmp_path / "config.yaml").write_text(f"_BASE_CONFIG_: cfgs/{base}\n{text}")
    cfg = cfg_from_yaml_file(tmp_path / "config.yaml")
    if block.page in OPENPCDET:
        cfg.MODEL.pop("SEGMENT_HEAD", None)  # a head of the reader
        FreezePlan.from_cfg(cfg)
    else:
        check_config(cfg)
