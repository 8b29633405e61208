"""report.json: written and read again, by this version and by others."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from pcdet_freeze.errors import DataError
from pcdet_freeze.report.record import Certificate, Part, Picture, RunRecord, Task, load_record

FULL = RunRecord(
    name="a", entries=["vfe"], tree=[Part("vfe", "PillarVFE", 3, "frozen")], tasks=[Task("detection")],
    certificate=Certificate({"vfe.w": "x"}, "abc", "blake2b"), after={"mAP": 0.5},
    pictures=[Picture("0", "", "pictures/0.png")], curves={"loss": [[1.0, 2.0]]},
)  # fmt: skip


def test_a_record_is_the_same_after_it_was_written_and_read(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(FULL.to_json())
    again = load_record(tmp_path)
    assert again.folder == str(tmp_path)
    again.folder = FULL.folder
    assert again == FULL


def test_numbers_that_are_not_finite_are_null_in_json() -> None:
    plain = json.loads(RunRecord(after={"a": math.nan, "b": -math.inf, "c": 1.0}).to_json())
    assert plain["after"] == {"a": None, "b": None, "c": 1.0}


def test_keys_of_another_version_are_left_out_and_missing_ones_have_defaults() -> None:
    record = RunRecord.from_plain({"name": "a", "later": 1, "tasks": [{"name": "x", "later": 2}]})
    assert record.name == "a" and record.tasks == [Task("x")] and record.iterations == 0


@pytest.mark.parametrize("text", [
    None, "", "[1]", "{", '{"tree": 3}', '{"tasks": [4]}', '{"after": {"mAP": "x"}}',
    '{"entries": null}', '{"seconds": null}', '{"parameters": "many"}', '{"schedule": [3]}',
    '{"warnings": 1}',
    '{"tasks": [{"name": null}]}', '{"peak_bytes": {"device": []}}', '{"certificate": {"tensors": [1]}}',
])  # fmt: skip
def test_a_missing_or_damaged_record_is_an_error_that_names_the_folder(
    tmp_path: Path, text: str | None
) -> None:
    if text is not None:
        (tmp_path / "report.json").write_text(text)
    with pytest.raises(DataError, match=str(tmp_path)):
        load_record(tmp_path)
