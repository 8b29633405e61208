"""``MODEL.DENSE_HEADS``: several dense heads on one map, each with classes of its own.

It is a mapping from the name of each head, which is its module in the detector, to its section, or a list,
whose heads are called ``dense_head``, ``dense_head_2``, ... A section is that of ``DENSE_HEAD`` with a key
``CLASS_NAMES``. The head ``dense_head`` reads and writes what a single ``DENSE_HEAD`` does; the others append
their name to the keys that they write, and to their losses in the log.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pcdet_freeze.config.schema import ClassNames
from pcdet_freeze.utils.settings.names import did_you_mean
from pcdet_freeze.utils.settings.sections import Section, read_section

KEY = "DENSE_HEADS"
FIRST = "dense_head"
"""the head whose keys, losses and checkpoints are those of a single DENSE_HEAD"""
NAME = re.compile(r"[a-z][a-z0-9_]*_head(_\d+)?")


@dataclass(frozen=True)
class HeadClasses(Section):
    """The key that a section of DENSE_HEADS has beside those of DENSE_HEAD."""

    other_keys: ClassVar[bool] = True
    class_names: ClassNames
    """classes of the head, of those of the config"""


def sections_of_heads(model_cfg: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    """Name of each head -> its key in MODEL, and its section; null removes a head of a base config."""
    given = model_cfg.get(KEY)
    if isinstance(given, Mapping):
        named = {str(name): (f"{KEY}.{name}", section) for name, section in given.items()}
    elif isinstance(given, Sequence) and not isinstance(given, str):
        named = {_numbered(index): (f"{KEY}[{index}]", section) for index, section in enumerate(given)}
    else:
        named = {}
    return {name: entry for name, entry in named.items() if entry[1] is not None}


def _numbered(index: int) -> str:
    return f"{FIRST}_{index + 1}" if index else FIRST


def suffix_of(name: str) -> str:
    """What the head ``name`` appends to the keys that it writes."""
    return "" if name == FIRST else f"_{name}"


def read_classes(section: object, where: str, faults: list[str]) -> tuple[str, ...]:
    """CLASS_NAMES of a head; empty where it is wrong."""
    if not isinstance(section, Mapping):
        return ()
    found, wrong = read_section(HeadClasses, section, where)
    faults += wrong
    return () if found is None else found.class_names


def key_faults(model_cfg: Mapping[str, Any], taken: Collection[str]) -> Iterator[str]:
    """What is wrong with DENSE_HEADS itself: its form, and the names of its heads.

    Args:
        taken: names of the other modules of a detector.
    """
    given = model_cfg.get(KEY)
    if given is None:
        return
    form = "a mapping from the name of each head to its section, or a list of sections"
    if (
        isinstance(given, str)
        or not isinstance(given, Mapping | Sequence)
        or not sections_of_heads(model_cfg)
    ):
        yield f"MODEL.{KEY} must be {form}, one or more; got {given!r}"
    if model_cfg.get("DENSE_HEAD") is not None:
        yield (
            f"MODEL.{KEY} takes the place of MODEL.DENSE_HEAD, but both are given: move the section to "
            f"{KEY}.{FIRST}, with its CLASS_NAMES, and set DENSE_HEAD: null where a base config has it"
        )
    for name in sections_of_heads(model_cfg):
        if not NAME.fullmatch(name) or name in taken:
            yield (
                f"MODEL.{KEY}.{name} must be the name of a head (such as {FIRST}, truck_head): in lower "
                f"case, with _head at its end, not the name of another module; got {name!r}"
            )


def class_faults(classes: Mapping[str, tuple[str, ...]], class_names: Sequence[str] | None) -> Iterator[str]:
    """Classes that two heads have, that the config does not have, or that no head has.

    Args:
        classes: name of each head -> its classes.
        class_names: CLASS_NAMES of the config; None: not known.
    """
    owner: dict[str, str] = {}
    unknown = False
    for head, names in classes.items():
        for name in names:
            if name in owner:
                yield (
                    f"MODEL.{KEY}.{head}.CLASS_NAMES must be classes that no other head has; got {name}, "
                    f"which {owner[name]} has too. Remove it from one of them"
                )
            owner.setdefault(name, head)
            if class_names is not None and name not in class_names:
                unknown = True
                yield (
                    f"MODEL.{KEY}.{head}.CLASS_NAMES must be among CLASS_NAMES of the config "
                    f"({', '.join(class_names)}); got {name}{did_you_mean(name, class_names)}"
                )
    lacking = [name for name in class_names or () if name not in owner]
    if lacking and not unknown:  # else a name is misspelled
        yield (
            f"MODEL.{KEY} must have a head for each of CLASS_NAMES; no head has {', '.join(lacking)}. Add "
            "a head, or add the class to CLASS_NAMES of one"
        )
