"""Regression figures of the models in cfgs/ that tests/reference has no forward figures of.

They were computed when every stage of the other models was equal to OpenPCDet's (see the other files of this
folder). Tolerances are those of the reference; the loss of the second and third step has a larger one, since
Adam multiplies rounding. After a change that is meant to alter numbers, write
``{name: model_figures.figures_of(name)}`` to model_figures.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from model_figures import figures_of

STORED = json.loads(Path(__file__).with_name("model_figures.json").read_text())


@pytest.fixture(scope="module", params=sorted(STORED))
def both(request: pytest.FixtureRequest) -> tuple[dict[str, Any], dict[str, Any]]:
    """The figures computed now, and the stored ones."""
    return figures_of(request.param), STORED[request.param]


def assert_stages(found: dict[str, Any], stored: dict[str, Any], within: float) -> None:
    assert found.keys() == stored.keys()
    assert found["voxels"] == stored["voxels"]
    for key in found.keys() - {"voxels"}:
        deviation = stored[key][1]
        assert found[key] == pytest.approx(stored[key], abs=within * deviation, rel=1e-6), key


def test_keys_and_shapes_of_the_state_dict_equal_the_stored_ones(both: Any) -> None:
    found, stored = both
    assert found["keys"] == stored["keys"]


def test_every_stage_in_eval_mode_equals_the_stored_one(both: Any) -> None:
    assert_stages(both[0]["eval"], both[1]["eval"], 1e-5)


def test_the_best_scores_equal_the_stored_ones(both: Any) -> None:
    for scores, stored in zip(both[0]["best_scores"], both[1]["best_scores"], strict=True):
        assert scores == pytest.approx(stored, abs=1e-5)


def test_every_stage_in_train_mode_equals_the_stored_one(both: Any) -> None:
    assert_stages(both[0]["train"], both[1]["train"], 3e-4)


def test_loss_parts_and_gradients_equal_the_stored_ones(both: Any) -> None:
    found, stored = both
    assert found["parts"] == pytest.approx(stored["parts"], rel=1e-4, abs=1e-6)
    assert found["gradients"] == pytest.approx(stored["gradients"], rel=6e-3, abs=1e-5)


def test_the_first_steps_equal_the_stored_ones(both: Any) -> None:
    found, stored = both
    assert found["losses"][0] == pytest.approx(stored["losses"][0], rel=1e-5)
    assert found["losses"] == pytest.approx(stored["losses"], rel=2e-2)
    assert found["norms"] == pytest.approx(stored["norms"], rel=1e-1)


def test_no_model_has_figures_here_and_in_the_reference(reference: Path) -> None:
    golden = {path.stem for path in (reference / "forward").glob("*.json")}
    assert not golden & {name.replace("_models/", "_") for name in STORED}
