"""``verify A.pth B.pth`` by the certificate in B (P7)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn
from torch.optim.swa_utils import AveragedModel

from pcdet_freeze.__main__ import main
from pcdet_freeze.engine.checkpoint.io import save_checkpoint
from pcdet_freeze.freezing import Certificate, freeze
from pcdet_freeze.freezing.verification.checkpoint_meta import CHECKPOINT_KEY


class Residual(nn.Module):
    """One child, called ``module``."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(4, 4)


def toy() -> nn.Module:
    model = nn.Module()
    model.trunk = nn.Sequential(Residual(), AveragedModel(nn.Linear(4, 4)))
    model.head = nn.Linear(4, 1)
    return model


def save(
    path: Path, state: dict[str, Any], certificate: Certificate | None = None, averages: Any = None
) -> Path:
    ours: dict[str, Any] = {} if certificate is None else {"freeze": {"certificate": certificate.to_plain()}}
    if averages is not None:
        ours["ema"] = {"decay": 0.9, "updates": 3, "state": averages}
    save_checkpoint({"epoch": 1, "it": 1, "model_state": state, CHECKPOINT_KEY: ours}, path)
    return path


def verify(a: Path, b: Path, *words: str) -> int:
    return main(["verify", str(a), str(b), *words])


@pytest.mark.parametrize("name", ["trunk.0.module.weight", "trunk.1.module.bias", "trunk.1.n_averaged"])
@pytest.mark.parametrize("version", [1, 2])
def test_a_change_inside_a_module_called_module_is_found(
    tmp_path: Path, capsys: Any, name: str, version: int
) -> None:
    model = toy()
    certificate = freeze(model, ["trunk"]).certificate()
    if version == 1:  # as 58340af wrote it
        old = {key.replace(".module", ""): value for key, value in certificate.digests.items()}
        certificate = Certificate(old, certificate.entries, certificate.names, version=1)
    a = save(tmp_path / "a.pth", {key: value.clone() for key, value in model.state_dict().items()})
    assert verify(a, save(tmp_path / "b.pth", model.state_dict(), certificate)) == 0
    model.state_dict()[name].add_(1)
    assert verify(a, save(tmp_path / "b.pth", model.state_dict(), certificate)) == 1
    assert f"{name} changed" in capsys.readouterr().out


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_a_checkpoint_of_a_wrapped_model_is_compared_with_a_plain_one(tmp_path: Path, prefix: str) -> None:
    model = toy()
    certificate = freeze(model, ["trunk"]).certificate()
    a = save(tmp_path / "a.pth", model.state_dict())
    wrapped = {prefix + key: value.clone() for key, value in model.state_dict().items()}
    assert verify(a, save(tmp_path / "b.pth", wrapped, certificate)) == 0
    wrapped[prefix + "trunk.0.module.bias"] += 1
    assert verify(a, save(tmp_path / "b.pth", wrapped, certificate)) == 1


@pytest.mark.parametrize("wrap", [AveragedModel, lambda model: nn.DataParallel(AveragedModel(model))])
def test_a_checkpoint_of_an_averaged_model_is_compared_with_a_plain_one(tmp_path: Path, wrap: Any) -> None:
    model = toy()
    certificate = freeze(model, ["trunk"]).certificate()
    a = save(tmp_path / "a.pth", model.state_dict())
    averaged = wrap(model).state_dict()
    assert verify(a, save(tmp_path / "b.pth", averaged, certificate)) == 0
    next(value for key, value in averaged.items() if key.endswith("trunk.1.n_averaged")).add_(1)
    assert verify(a, save(tmp_path / "b.pth", averaged, certificate)) == 1


@pytest.mark.parametrize(("begins_from", "found"), [("averages", 0), ("weights", 0), ("neither", 1)])
def test_p7_a_stage_begins_from_the_averages_of_a_checkpoint_and_a_resume_from_its_weights(
    tmp_path: Path, capsys: Any, begins_from: str, found: int
) -> None:
    model = toy()
    certificate = freeze(model, ["trunk"]).certificate()
    states = {name: {k: v + number for k, v in model.state_dict().items()}
              for number, name in enumerate(["averages", "weights", "neither"])}  # fmt: skip
    a = save(tmp_path / "a.pth", states["weights"], averages=states["averages"])
    b = save(tmp_path / "b.pth", states[begins_from], certificate)
    assert verify(a, b) == found
    assert ("averages (OPTIMIZATION.EMA)" in capsys.readouterr().out) == (begins_from != "weights")


def test_a_certified_tensor_that_neither_file_has_is_an_error(tmp_path: Path, capsys: Any) -> None:
    model = toy()
    certificate = freeze(model, ["trunk"]).certificate()
    state = {key: value for key, value in model.state_dict().items() if key != "trunk.0.module.weight"}
    files = save(tmp_path / "a.pth", state), save(tmp_path / "b.pth", state, certificate)
    assert verify(*files) == 2
    assert "trunk.0.module.weight" in capsys.readouterr().err
    assert verify(*files, "--names", "trunk") == 0


def test_a_certified_tensor_that_one_file_lacks_is_a_change(tmp_path: Path, capsys: Any) -> None:
    model = toy()
    certificate = freeze(model, ["trunk"]).certificate()
    whole = model.state_dict()
    part = {key: value for key, value in whole.items() if key != "trunk.0.module.weight"}
    assert verify(save(tmp_path / "a.pth", whole), save(tmp_path / "b.pth", part, certificate)) == 1
    assert "trunk.0.module.weight is missing" in capsys.readouterr().out


def test_exempted_modules_are_named_as_exceptions(tmp_path: Path, capsys: Any) -> None:
    model = toy()
    certificate = freeze(model, ["trunk.0", "trunk.1", "!trunk.1"]).certificate()
    file = save(tmp_path / "a.pth", model.state_dict(), certificate)
    assert verify(file, file) == 0
    assert "of trunk.0 (without trunk.1) are the same" in " ".join(capsys.readouterr().out.split())
