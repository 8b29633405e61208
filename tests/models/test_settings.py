"""Config sections -> dataclasses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
from easydict import EasyDict

from pcdet_freeze.errors import ConfigError
from pcdet_freeze.models.settings import raise_faults, read_settings


@dataclass(frozen=True)
class Inner:
    lower_keys: ClassVar[bool] = True
    sizes: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Outer:
    depth: int
    parts: tuple[Inner, ...] = ()
    rate: float = 0.5
    flag: bool = False
    limit: float | None = None

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise ConfigError(f"DEPTH must be positive; got {self.depth}")


def read(values: object) -> tuple[Outer | None, list[str]]:
    faults: list[str] = []
    return read_settings(Outer, values, "MODEL.X", faults), faults


def test_values_become_plain_and_typed() -> None:
    settings, faults = read(EasyDict({"DEPTH": 2, "RATE": 1, "PARTS": [{"sizes": [[1, 2.5]]}]}))
    assert settings == Outer(2, (Inner(((1.0, 2.5),)),), 1.0)
    assert faults == []


def test_missing_keys_have_their_default_and_null_is_none_if_optional() -> None:
    assert read({"DEPTH": 1, "LIMIT": None})[0] == Outer(1)
    assert read({"DEPTH": 1, "LIMIT": 3})[0] == Outer(1, limit=3.0)


FAULTS = [
    ({}, "MODEL.X.DEPTH is required, but missing"),
    ({"DEPTH": True}, "MODEL.X.DEPTH must be an integer; got True"),
    ({"DEPTH": 1.5}, "MODEL.X.DEPTH must be an integer; got 1.5"),
    ({"DEPTH": 1, "RATE": "1e-3"}, "MODEL.X.RATE must be a number; got '1e-3'"),
    ({"DEPTH": 1, "FLAG": 1}, "MODEL.X.FLAG must be true or false; got 1"),
    ({"DEPTH": 1, "PARTS": "ab"}, "MODEL.X.PARTS must be a list; got 'ab'"),
    (
        {"DEPTH": 1, "PARTS": [{"sizes": [[1, None]]}]},
        "MODEL.X.PARTS[0].sizes[0][1] must be a number; got None",
    ),
    ({"DEPTH": 0}, "MODEL.X: DEPTH must be positive; got 0"),
    ([1], "MODEL.X must be a section (a mapping of keys); got [1]"),
]


@pytest.mark.parametrize(("values", "fault"), FAULTS)
def test_a_fault_is_reported_with_its_dotted_key(values: object, fault: str) -> None:
    settings, faults = read(values)
    assert settings is None
    assert faults == [fault]


def test_an_unknown_key_is_reported_with_the_nearest_and_all_known_keys() -> None:
    _, faults = read({"DEPTHS": 1})
    assert "did you mean DEPTH?" in faults[0]
    assert "Known keys: DEPTH, PARTS, RATE, FLAG, LIMIT" in faults[0]
    assert len(faults) == 2


def test_several_faults_are_one_error() -> None:
    raise_faults([])
    with pytest.raises(ConfigError, match="has 2 faults:\n  - one\n  - two"):
        raise_faults(["one", "two"])
