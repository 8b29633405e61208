"""Hooks of the user's own, named by import path in the YAML's HOOK section."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from engine_toy import toy_trainer

from pcdet_freeze.config import cfg_from_yaml_file
from pcdet_freeze.engine.hooks.base import HOOKS, Hook
from pcdet_freeze.engine.hooks.from_config import hooks_from_cfg, user_hook_faults, user_hooks
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.errors import ConfigError
from pcdet_freeze.utils.settings.faults import raise_faults

CODE = """
from pcdet_freeze.engine.hooks.base import ConfiguredHook, Hook

class Counts(Hook):
    def __init__(self, every, start=0):
        if every < 1:
            raise ValueError("EVERY must be 1 or more")
        self.every, self.start, self.seen = every, start, []

    def after_step(self, trainer):
        if trainer.iteration > self.start and trainer.iteration % self.every == 0:
            self.seen.append(trainer.iteration)

class Configured(ConfiguredHook):
    pass

class NoHook:
    pass
"""


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of the user's with three modules, two of them broken; HOOKS is restored afterwards."""
    folder = tmp_path / "users_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "hooks.py").write_text(CODE)
    (folder / "broken.py").write_text("1 / 0\n")
    (folder / "script.py").write_text("raise SystemExit(3)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(HOOKS, "_known", dict(HOOKS._known))


def cfg_of(tmp_path: Path, *entries: str) -> Any:
    lines = "".join(f"    - {entry}\n" for entry in entries)
    (tmp_path / "my.yaml").write_text(f"CLASS_NAMES: [Car]\nHOOK:\n{lines}")
    return cfg_from_yaml_file(tmp_path / "my.yaml")


COUNTS = "users_package.hooks.Counts"


def test_a_hook_is_created_from_its_import_path_with_its_settings(tmp_path: Path) -> None:
    (hook,) = user_hooks(cfg_of(tmp_path, f"{{NAME: {COUNTS}, EVERY: 3, START: 3}}"))
    toy_trainer([hook]).run()
    assert hook.seen == [6] and type(hook).__name__ == "Counts"


def test_it_is_registered_in_hooks_under_its_path(tmp_path: Path) -> None:
    hooks = user_hooks(cfg_of(tmp_path, f"{{NAME: {COUNTS}, EVERY: 2}}", f"{{NAME: {COUNTS}, EVERY: 3}}"))
    assert HOOKS.get(COUNTS) is type(hooks[0]) and [hook.every for hook in hooks] == [2, 3]
    assert hooks_from_cfg({"MODEL": {}}, toy_trainer().model) == []


def test_a_hook_that_was_registered_by_hand_goes_by_its_name(tmp_path: Path) -> None:
    @HOOKS.register
    class ByHand(Hook):
        def after_step(self, trainer: Trainer) -> None:
            trainer.stopped = True

    (hook,) = user_hooks(cfg_of(tmp_path, "{NAME: ByHand}"))
    assert isinstance(hook, ByHand)


@pytest.mark.parametrize("section", ["", "HOOK:\n", "HOOK: []\n"])
def test_no_section_is_no_hook(tmp_path: Path, section: str) -> None:
    (tmp_path / "my.yaml").write_text(f"CLASS_NAMES: [Car]\n{section}")
    assert user_hooks(cfg_from_yaml_file(tmp_path / "my.yaml")) == []


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("{NAME: no_such_package.hooks.Counts}", ["cannot be imported", "No module named", "PYTHONPATH"]),
        ("{NAME: users_package.hooks.Count}", ["cannot be imported", "Count"]),
        ("{NAME: users_package.broken.Counts}", ["cannot be imported", "ZeroDivisionError"]),
        ("{NAME: users_package.script.Counts}", ["cannot be imported", "SystemExit: 3"]),
        ("{NAME: users_package.hooks.NoHook}", ["must be a class derived from", "Hook"]),
        ("{NAME: users_package.hooks.Configured}", ["ConfiguredHook", "derive it from Hook"]),
        (f"{{NAME: {COUNTS}}}", ["settings", "EVERY, START", "every"]),
        (f"{{NAME: {COUNTS}, EVERY: 1, EVRY: 2}}", ["settings", "EVERY, START", "evry"]),
        (f"{{NAME: {COUNTS}, EVERY: 0}}", ["refuses its settings", "EVERY must be 1 or more"]),
        ("{NAME: DisableAugmentationHook, NUM_LAST_EPOCHS: 1}", ["DisableAugmentationHook", "OpenPCDet"]),
        ("{NAME: MultiTaskFreezeHook}", ["MultiTaskFreezeHook", "a key of its own"]),
    ],
)
def test_a_fault_names_file_line_and_cure(tmp_path: Path, entry: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        user_hooks(cfg_of(tmp_path, f"{{NAME: {COUNTS}, EVERY: 1}}", entry))
    message = str(caught.value)
    assert f"{tmp_path / 'my.yaml'}, line 4" in message
    assert [word for word in words if word not in message] == []


def test_a_refused_hook_does_not_stay_for_the_next_training(tmp_path: Path) -> None:
    assert user_hook_faults(cfg_of(tmp_path, "{NAME: users_package.hooks.Configured}"))
    assert hooks_from_cfg({"MODEL": {}}, toy_trainer().model) == []


def test_all_faults_of_the_section_are_found_before_a_hook_is_created(tmp_path: Path) -> None:
    cfg = cfg_of(tmp_path, "{NAME: a.b.C}", f"{{NAME: {COUNTS}}}", f"{{NAME: {COUNTS}, EVERY: 0}}")
    faults = user_hook_faults(cfg)
    assert [f"line {line}" in "".join(faults) for line in (3, 4, 5)] == [True, True, False]
    with pytest.raises(ConfigError) as caught:
        raise_faults(faults, cfg)
    assert str(caught.value).count("my.yaml") == 2


@pytest.mark.parametrize(
    "value", ["{DisableAugmentationHook: {NUM_LAST_EPOCHS: 1}}", "[a.b.C]", "[{EVERY: 1}]"]
)
def test_another_form_of_the_section_is_refused_by_file_and_line(tmp_path: Path, value: str) -> None:
    (tmp_path / "my.yaml").write_text(f"CLASS_NAMES: [Car]\nHOOK: {value}\n")
    with pytest.raises(ConfigError, match=r"my.yaml, line 2: HOOK must be a list of hooks.*NAME"):
        cfg_from_yaml_file(tmp_path / "my.yaml")
