"""Read a few frames of a data set so that nothing of it is kept."""

from __future__ import annotations

import copy
from typing import TypeVar

from pcdet_freeze.datasets.template import DatasetTemplate

D = TypeVar("D", bound=DatasetTemplate)


def lone_reader(dataset: D) -> D:
    """A shallow copy of ``dataset`` and of the sets in it, to read single frames with in this process.

    A data set may open its files with the first frame. Loader processes inherit what is open in this one, and
    two that read one open file move each other's position; an open file cannot be pickled either. What the
    copy opens and keeps is not part of ``dataset``.
    """
    twin = copy.copy(dataset)
    own = {key: copy.copy(value) for key, value in vars(twin).items() if type(value) in (dict, list, set)}
    vars(twin).update(own)
    members = []
    for member in getattr(twin, "members", ()):
        member = copy.copy(member)
        member.dataset = lone_reader(member.dataset)
        members.append(member)
    if members:
        vars(twin)["members"] = members
    return twin
