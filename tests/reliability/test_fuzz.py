"""Damaged configs, labels, calibrations, points, infos, databases and checkpoints: refused, or plausible."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzz import fuzz
from fuzz_kinds import KINDS

QUICK, MANY = 12, 100
"""cases of each kind, in the slow test too; `python tests/helpers/fuzz.py --cases 10000` runs more"""


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.getLogger("pcdet_freeze").setLevel(logging.ERROR)
    yield
    logging.getLogger("pcdet_freeze").setLevel(logging.NOTSET)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_input_is_refused_by_our_own_errors_or_plausible(tmp_path: Path, kind: str) -> None:
    report = fuzz(QUICK, tmp_path, kinds=(kind,))
    assert report.faults == []
    assert report.verdicts[kind, "refused"] > 0


@pytest.mark.slow
def test_a_thousand_damaged_inputs_give_no_other_error_and_no_hang(tmp_path: Path) -> None:
    report = fuzz(MANY * len(KINDS), tmp_path, first=QUICK)
    assert report.faults == []
    assert all(report.verdicts[kind, "refused"] > MANY // 50 for kind in KINDS)
