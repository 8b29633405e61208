"""--against: other packages freeze the same list, or an error says what to install."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from bench_toys import toy_contenders
from torch import nn

from pcdet_freeze.__main__ import main
from pcdet_freeze.bench.other_packages import AGAINST
from pcdet_freeze.errors import ConfigError

PLACES = {"lightning": "lightning.pytorch.callbacks", "timm": "timm.utils.model"}


@pytest.mark.parametrize("name", AGAINST)
def test_a_package_that_is_not_installed_is_an_error_with_the_line_that_installs_it(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, PLACES[name], None)  # what import does where there is none
    assert main(["bench", "--variants", "exact", "--against", name]) == 1
    said = capsys.readouterr().err
    assert f"--against {name} needs the package {name}" in said and f"pip install {name}" in said


def stand_in(monkeypatch: pytest.MonkeyPatch, place: str, **content: Any) -> None:
    """A package of that name with what is used of it, whether there is one or not."""
    parts = place.split(".")
    for end in range(1, len(parts) + 1):
        monkeypatch.setitem(sys.modules, ".".join(parts[:end]), ModuleType(".".join(parts[:end])))
    sys.modules[place].__dict__.update(content)


def test_timm_is_given_the_model_and_the_names_of_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def freeze(root_module: nn.Module, submodules: Any) -> None:
        given.append(submodules)
        for name in submodules:
            root_module.get_submodule(name).requires_grad_(False)

    stand_in(monkeypatch, PLACES["timm"], freeze=freeze)
    made = toy_contenders("timm")
    assert given == [["vfe"]]
    assert not any(p.requires_grad for p in made["timm"].trainer.model.vfe.parameters())
    assert all(p.requires_grad for p in made["none"].trainer.model.parameters())


def test_lightning_is_given_the_modules_of_the_list_batchnorm_too(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def freeze(modules: Any, train_bn: bool = True) -> None:
        given.append((modules, train_bn))

    base = SimpleNamespace(freeze=freeze)
    stand_in(monkeypatch, PLACES["lightning"], BaseFinetuning=base)
    model = toy_contenders("lightning")["lightning"].trainer.model
    assert given == [([model.vfe], False)]


def test_an_unknown_package_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"other packages, lightning, timm; got 'keras'"):
        toy_contenders("keras")
