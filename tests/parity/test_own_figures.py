"""The figures that travel with the project: parity where OpenPCDet's own figures are absent.

See tests/figures/make_figures.py for how they were made. Tolerances are those of the reference; the loss of
the second and third step has more, since Adam multiplies rounding.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

FIGURES = Path(__file__).resolve().parents[1] / "figures"


def load_maker() -> Any:
    spec = importlib.util.spec_from_file_location("make_figures", FIGURES / "make_figures.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKER = load_maker()
STORED = json.loads((FIGURES / "models.json").read_text())


@pytest.fixture(scope="module", params=MAKER.NAMES)
def both(request: pytest.FixtureRequest) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the code computes now, and what is stored."""
    return MAKER.figures_of(request.param), STORED[request.param]


def assert_stages(found: dict[str, Any], stored: dict[str, Any], within: float) -> None:
    assert found.keys() == stored.keys()
    assert found["voxels"] == stored["voxels"]
    for key in found.keys() - {"voxels"}:
        deviation = stored[key][1]
        assert found[key] == pytest.approx(stored[key], abs=within * deviation, rel=1e-6), key


def test_keys_and_shapes_of_the_state_are_as_stored(both: Any) -> None:
    found, stored = both
    assert found["keys"] == stored["keys"]


def test_every_stage_in_eval_mode_is_as_stored(both: Any) -> None:
    assert_stages(both[0]["eval"], both[1]["eval"], 1e-5)


def test_the_best_detections_are_as_stored(both: Any) -> None:
    for scores, stored in zip(both[0]["best_scores"], both[1]["best_scores"], strict=True):
        assert scores == pytest.approx(stored, abs=1e-5)


def test_every_stage_in_train_mode_is_as_stored(both: Any) -> None:
    assert_stages(both[0]["train"], both[1]["train"], 3e-4)


def test_loss_parts_and_gradients_are_as_stored(both: Any) -> None:
    found, stored = both
    assert found["parts"] == pytest.approx(stored["parts"], rel=1e-4, abs=1e-6)
    assert found["gradients"] == pytest.approx(stored["gradients"], rel=6e-3, abs=1e-5)


def test_the_first_steps_are_as_stored(both: Any) -> None:
    found, stored = both
    assert found["losses"][0] == pytest.approx(stored["losses"][0], rel=1e-5)
    assert found["losses"] == pytest.approx(stored["losses"], rel=2e-2)
    assert found["norms"] == pytest.approx(stored["norms"], rel=1e-1)


def test_the_figures_are_small_enough_to_travel() -> None:
    assert sum(file.stat().st_size for file in FIGURES.iterdir() if file.is_file()) < 200_000
