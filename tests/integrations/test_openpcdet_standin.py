"""The stand-in has the same signatures, call order, detectors and loss calls as OpenPCDet."""

from __future__ import annotations

import ast
import inspect
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from standin_runs import STANDIN, TOOLS, Standin

VERSIONS = {"8caccce": "8caccce (2024-04)", "0.6.0": "0.6.0 (aa753ec, 2022-09)", "0.5.2": "0.5.2 (tag)"}
FOR_ALL = ("pcdet.models", "Detector3DTemplate", "train_utils", "optimization")


@pytest.fixture(scope="session")
def api(reference: Path) -> dict[str, Any]:
    return json.loads((reference / "upstream_api.json").read_text())


def words_of(function: Any) -> list[str]:
    """``name`` or ``name=default`` of each positional parameter."""
    found = inspect.signature(function).parameters.values()
    positional = [p for p in found if p.kind is p.POSITIONAL_OR_KEYWORD]
    return [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in positional]


@pytest.mark.parametrize("version", VERSIONS)
def test_its_signatures_equal_those_of_the_release(api: Any, standin: Standin, version: str) -> None:
    standin.use(version)
    sys.path.insert(0, str(TOOLS))
    template = standin.module("pcdet.models.detectors.detector3d_template").Detector3DTemplate
    homes = (standin.module("pcdet.models"), template)
    homes += (standin.module("train_utils.train_utils"), standin.module("train_utils.optimization"))
    for place, home in zip(FOR_ALL, homes, strict=True):
        for name, parameters in api[VERSIONS[version]][place].items():
            assert words_of(getattr(home, name)) == parameters, f"{place}.{name}"


@pytest.mark.parametrize("version", VERSIONS)
def test_every_detector_calls_the_same_losses_in_the_same_order(api: Any, version: str) -> None:
    folder = STANDIN / "pcdet/models/detectors"
    for name, facts in api[VERSIONS[version]]["detectors"].items():
        tree = ast.parse((folder / Path(facts["file"]).name).read_text())
        cls = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
        calls = [ast.unparse(node) for node in ast.walk(cls) if isinstance(node, ast.Call)]
        losses = [call for call in calls if call.startswith("self.") and ".get_loss(" in call]
        expected = facts["loss_calls_in_order_of_appearance"]
        assert losses[: len(expected)] == expected, name  # the releases before 8caccce have fewer
        if version == "8caccce":
            assert losses == expected, name


def test_its_detectors_have_the_same_methods_and_topologies(api: Any, standin: Standin) -> None:
    detectors = standin.module("pcdet.models.detectors")
    for name, facts in api[VERSIONS["8caccce"]]["detectors"].items():
        cls = getattr(detectors, name)
        assert [m for m in facts["methods"] if m not in vars(cls)] == [], name
        if "module_topology" in facts:
            assert "".join(facts["module_topology"].split()).replace("'", '"')[1:-1] in "".join(
                inspect.getsource(cls).split()
            ), name
    assert standin.build("pv_rcnn").module_topology == api[VERSIONS["8caccce"]]["module_topology"]


@pytest.mark.parametrize("version", VERSIONS)
def test_its_train_script_makes_the_same_calls_in_the_same_order(api: Any, version: str) -> None:
    expected = api[VERSIONS[version]]["tools/train.py call order"]
    tree = ast.parse((TOOLS / "train.py").read_text())
    main = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "main")
    calls = sorted((n.lineno, ast.unparse(n.func)) for n in ast.walk(main) if isinstance(n, ast.Call))
    assert [name for _, name in calls if name in expected] == expected


def test_its_checkpoints_have_the_same_keys(api: Any, standin: Standin) -> None:
    run = standin.train("pointpillar", "--epochs", "1")
    for facts in api.values():
        assert sorted(run.state(1)) == sorted(facts["checkpoint keys"])
