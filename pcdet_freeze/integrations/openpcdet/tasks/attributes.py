"""Attributes that tasks set on objects of OpenPCDet, until ``uninstall``.

What an attribute was before lies on the object itself, so that nothing here keeps a data set, a loader or a
model alive. Copies of an object keep the replaced attributes: data workers work on such copies.
"""

from __future__ import annotations

from typing import Any
from weakref import ref

BEFORE = "_pcdet_freeze_before"
"""on a changed object: (name, new value, dict with the old value or empty) of each change, in order"""

_changed: list[ref[Any]] = []


def set_attribute(owner: Any, name: str, value: Any) -> None:
    """Set ``owner.name``, until :func:`restore_attributes`."""
    own = vars(owner)
    if not any(known() is owner for known in _changed):
        _changed[:] = [known for known in _changed if known() is not None] + [ref(owner)]
    before = {name: own[name]} if name in own else {}
    own.setdefault(BEFORE, []).append((name, value, before))
    own[name] = value


def restore_attributes() -> None:
    """Restore every attribute that was set, the last one first; one that was set again since is left."""
    while _changed:
        owner = _changed.pop()()
        for name, value, before in reversed([] if owner is None else vars(owner).pop(BEFORE, [])):
            own = vars(owner)
            if own.get(name) is value:
                del own[name]
                own.update(before)
