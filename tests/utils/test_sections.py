"""Config sections -> frozen dataclasses: types, rules, every fault at once, file and line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import pytest
from easydict import EasyDict

from pcdet_freeze.errors import ConfigError, FreezeError
from pcdet_freeze.utils.settings.faults import raise_faults
from pcdet_freeze.utils.settings.rules import Count, Name, above, length, not_empty, one_of
from pcdet_freeze.utils.settings.sections import Section, read_section


@dataclass(frozen=True)
class Inner(Section):
    lower_keys: ClassVar[bool] = True
    sizes: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Store(Section):
    short_key: ClassVar[str] = "FOLDER"
    folder: Name


@dataclass(frozen=True)
class Outer(Section):
    not_built: ClassVar[tuple[str, ...]] = ("SHARED_MEMORY",)
    depth: Count
    parts: tuple[Inner, ...] = ()
    rate: float = 0.5
    flag: bool = False
    limit: Annotated[float, above(0)] | None = None
    kind: Annotated[str, one_of(("max", "mean"))] = "max"
    fuse: bool | Literal["force"] = True
    names: tuple[Name, ...] = ()
    size: Annotated[tuple[float, ...], length(2, "two numbers [x, y]")] = (1.0, 1.0)
    store: Store | None = None

    def faults(self) -> Iterator[str]:
        if self.flag and self.rate == 0:
            yield "RATE must not be 0 with FLAG"

    @classmethod
    def required(cls, values: Any) -> dict[str, str]:
        return {"LIMIT": " with KIND mean"} if values.get("KIND") == "mean" else {}


@dataclass(frozen=True)
class Foreign:
    """A dataclass of a user's module, without the base."""

    width: int

    def __post_init__(self) -> None:
        if self.width % 2:
            raise ConfigError(f"WIDTH must be even; got {self.width}")


def read(values: object) -> tuple[Outer | None, list[str]]:
    return read_section(Outer, values, "MODEL.X")


def test_values_become_plain_and_typed() -> None:
    settings, faults = read(EasyDict({"DEPTH": 2, "RATE": 1, "PARTS": [{"sizes": [[1, 2.5]]}]}))
    assert settings == Outer(2, (Inner(((1.0, 2.5),)),), 1.0)
    assert faults == []


def test_what_is_absent_has_its_default_and_null_is_none_where_it_may_be() -> None:
    assert read({"DEPTH": 1, "LIMIT": None, "NAMES": None})[0] == Outer(1)
    assert read({"DEPTH": 1, "LIMIT": 3})[0] == Outer(1, limit=3.0)


def test_a_union_takes_each_of_its_types() -> None:
    assert [read({"DEPTH": 1, "FUSE": value})[0] for value in (False, "force")] == [
        Outer(1, fuse=False),
        Outer(1, fuse="force"),
    ]


def test_a_string_may_stand_for_a_section() -> None:
    assert read({"DEPTH": 1, "STORE": "a"})[0] == read({"DEPTH": 1, "STORE": {"FOLDER": "a"}})[0]


def test_a_key_that_is_not_built_may_be_turned_off() -> None:
    assert read({"DEPTH": 1, "SHARED_MEMORY": False})[0] == Outer(1)


FAULTS = [
    ({}, "MODEL.X.DEPTH is required, but missing"),
    ({"DEPTH": True}, "MODEL.X.DEPTH must be a whole number, 1 or more; got True"),
    ({"DEPTH": 1.5}, "MODEL.X.DEPTH must be a whole number, 1 or more; got 1.5"),
    ({"DEPTH": 0}, "MODEL.X.DEPTH must be a whole number, 1 or more; got 0"),
    (
        {"DEPTH": 2 * 10**9},
        "MODEL.X.DEPTH must be a whole number, 1 or more, up to 1000000000; got 2000000000",
    ),
    ({"DEPTH": 1, "RATE": "1e-3"}, "MODEL.X.RATE must be a number; got '1e-3'"),
    ({"DEPTH": 1, "FLAG": 1}, "MODEL.X.FLAG must be true or false; got 1"),
    ({"DEPTH": 1, "PARTS": "ab"}, "MODEL.X.PARTS must be a list; got str 'ab'"),
    (
        {"DEPTH": 1, "PARTS": [{"sizes": [[1, None]]}]},
        "MODEL.X.PARTS[0].sizes[0][1] must be a number; got None",
    ),
    ([1], "MODEL.X must be a section (a mapping of keys); got [1]"),
    ({"DEPTH": 1, "LIMIT": 0}, "MODEL.X.LIMIT must be a number above 0; got 0"),
    ({"DEPTH": 1, "LIMIT": float("nan")}, "MODEL.X.LIMIT must be a number above 0; got nan"),
    (
        {"DEPTH": 1, "LIMIT": "None"},
        "MODEL.X.LIMIT must be a number above 0 or null; got 'None': write null (YAML reads None as a word)",
    ),
    ({"DEPTH": 1, "KIND": "men"}, "MODEL.X.KIND must be one of max, mean; got 'men'; did you mean mean?"),
    ({"DEPTH": 1, "KIND": "mean"}, "MODEL.X.LIMIT is required with KIND mean, but missing"),
    ({"DEPTH": 1, "FUSE": "no"}, "MODEL.X.FUSE must be true, false or 'force'; got 'no'"),
    ({"DEPTH": 1, "SIZE": [1]}, "MODEL.X.SIZE must be two numbers [x, y]; got [1]"),
    (
        {"DEPTH": 1, "NAMES": "(a, b)"},
        "MODEL.X.NAMES must be a list of names; got str '(a, b)': write [a, b]",
    ),
    ({"DEPTH": 1, "NAMES": ["a", " "]}, "MODEL.X.NAMES[1] must be a name; got ' '"),
    ({"DEPTH": 1, "FLAG": True, "RATE": 0}, "MODEL.X.RATE must not be 0 with FLAG"),
    (
        {"DEPTH": 1, "SHARED_MEMORY": True},
        "MODEL.X.SHARED_MEMORY is not implemented: set it to False, or remove it",
    ),
]


@pytest.mark.parametrize(("values", "fault"), FAULTS)
def test_a_fault_is_one_line_that_begins_with_its_dotted_key(values: object, fault: str) -> None:
    settings, faults = read(values)
    assert settings is None
    assert faults == [fault]


def test_an_unknown_key_comes_with_the_nearest_and_all_known_ones() -> None:
    _, faults = read({"DEPTHS": 1})
    assert "MODEL.X.DEPTHS" in faults[0] and "did you mean DEPTH?" in faults[0]
    assert "known: DEPTH, PARTS, RATE, FLAG, LIMIT" in faults[0]
    assert len(faults) == 2


def test_a_dataclass_without_the_base_may_raise_config_errors() -> None:
    assert read_section(Foreign, {"WIDTH": 2}, "MODEL.VFE") == (Foreign(2), [])
    assert read_section(Foreign, {"WIDTH": 3}, "MODEL.VFE")[1] == ["MODEL.VFE: WIDTH must be even; got 3"]


def test_several_faults_are_one_error_of_the_asked_kind() -> None:
    raise_faults([])
    with pytest.raises(ConfigError, match="has 2 faults:\n  - one\n  - two"):
        raise_faults(["one", "two", "one"])
    with pytest.raises(FreezeError, match=r"^one$"):
        raise_faults(["one"], error=FreezeError)


def test_a_fault_stands_behind_the_file_and_line_of_its_key() -> None:
    cfg = EasyDict()
    object.__setattr__(cfg, "_marks", {"": "m.yaml", "A": "m.yaml, line 1", "A.B.1.C": "m.yaml, line 9"})
    with pytest.raises(ConfigError) as caught:
        raise_faults(["A.B[1].C is wrong", "A.D is missing", "E is missing"], cfg)
    lines = str(caught.value).splitlines()[1:]
    assert lines == [
        "  - m.yaml, line 9: A.B[1].C is wrong",
        "  - m.yaml, line 1: A.D is missing",
        "  - m.yaml: E is missing",
    ]


def test_an_empty_list_and_a_value_given_twice_are_refused_where_the_rule_says_so() -> None:
    rule = not_empty("a list of names, all different")
    assert [rule.test(value) for value in ((), ("a", "a"), ("a", "b"))] == [False, False, True]
