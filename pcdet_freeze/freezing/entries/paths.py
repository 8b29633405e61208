"""Names of modules: dotted paths from the detector, without wrappers; a module may have several.

A *path* is what a user writes (``backbone_2d.blocks.0``). The segments that wrappers add (``module`` for
DistributedDataParallel and DataParallel, ``_orig_mod`` for ``torch.compile``) are not part of it, so a
wrapped and a plain model have the same paths. A *state name* is a key of the unwrapped model's
``state_dict``, with the segments of wrappers inside the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from pcdet_freeze.utils.wrappers import WRAPPER_CHILDREN, inner, is_compiled, wrapped
from pcdet_freeze.utils.wrappers import unwrap as unwrap


def compiled_wrappers(model: nn.Module) -> tuple[nn.Module, ...]:
    """The ``torch.compile`` wrappers around ``model``, outermost first."""
    found: list[nn.Module] = []
    root = unwrap(model)
    while model is not root:
        if is_compiled(model):
            found.append(model)
        ((_, model),) = model.named_children()
    return tuple(found)


def join(path: str, name: str) -> str:
    """``path`` and a name below it as one path."""
    return f"{path}.{name}" if path else name


def is_within(path: str, top: str) -> bool:
    """Whether ``path`` is ``top`` or lies inside it."""
    return path == top or top == "" or path.startswith(top + ".")


def children(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Children of ``module`` with their paths. What a wrapper wraps has the wrapper's own path."""
    found = wrapped(module)
    if found is not None:
        yield path, found[1]
        return
    for name, child in module._modules.items():
        if child is not None:
            yield join(path, name), child


def walk(root: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Module | None]]:
    """Every (path, module, parent) below and including ``root``, parents first.

    A module that several paths reach comes once for each of them; a module inside itself is not followed.
    """
    yield from _walk("", root, None, ())


def _walk(
    path: str, module: nn.Module, parent: nn.Module | None, above: tuple[int, ...]
) -> Iterator[tuple[str, nn.Module, nn.Module | None]]:
    if id(module) in above:
        return
    yield path, module, parent
    for child_path, child in children(path, module):
        yield from _walk(child_path, child, module, (*above, id(module)))


def find(root: nn.Module, path: str) -> tuple[nn.Module, nn.Module | None] | None:
    """(module, parent) at a path or state name without globs, or None. Of a wrapped module, the wrapper."""
    module, parent = root, None
    for name in path.split(".") if path else []:
        if (found := wrapped(module)) is not None and name == found[0]:
            module = found[1]
            continue
        parent = inner(module)
        child = parent._modules.get(name)
        if child is None:
            return None
        module = child
    return module, parent


def state_name(root: nn.Module, path: str) -> str:
    """The name of the module at ``path`` in keys of ``root.state_dict()``."""
    module: nn.Module | None = root
    segments = []
    for name in path.split(".") if path else []:
        segments.append(name)
        module = None if module is None else inner(module)._modules.get(name)
        while module is not None and (found := wrapped(module)) is not None:
            segments.append(found[0])
            module = found[1]
    return ".".join(segments)


def path_of(root: nn.Module, name: str) -> str:
    """The path of a module or tensor whose state name is ``name``."""
    module: nn.Module | None = root
    segments = []
    for segment in name.split("."):
        found = None if module is None else wrapped(module)
        if found is not None and segment == found[0]:
            module = found[1]
            continue
        segments.append(segment)
        module = None if module is None else inner(module)._modules.get(segment)
    return ".".join(segments)


@dataclass(frozen=True)
class Match:
    """What an entry's segments lead to: ``paths``, or the deepest point where they stopped."""

    paths: tuple[str, ...]
    deepest: str = ""
    """Path of the last module that did resolve (empty: the detector itself)."""
    choices: tuple[str, ...] = ()
    """Names of the children there."""
    tensor: bool = False
    """The next segment is a parameter or buffer of that module, and the last one of the entry."""


def match(root: nn.Module, entry: str) -> Match:
    """Follow ``entry`` from ``root``; ``*``, ``?`` and ``[0-2]`` match within one segment."""
    level: list[tuple[str, nn.Module]] = [("", root)]
    segments = entry.split(".")
    for number, segment in enumerate(segments):
        below = [(path, inner(module)) for path, module in level]
        found = [
            (join(path, name), child)
            for path, holder in below
            for name, child in holder._modules.items()
            if child is not None and (name == segment or fnmatchcase(name, segment))
        ]
        if not found and segment in WRAPPER_CHILDREN:
            continue
        if not found:
            last = number == len(segments) - 1
            return _stopped(below, segment if last else "")
        level = found
    return Match(tuple(dict.fromkeys(path for path, _ in level if path)))


def _stopped(level: list[tuple[str, nn.Module]], tensor_name: str) -> Match:
    path, holder = level[0]
    choices = tuple(name for name, child in holder._modules.items() if child is not None)
    found = tensor_name in holder._parameters or tensor_name in holder._buffers
    return Match((), path, choices, bool(tensor_name) and found)


def segments_match(name: str, pattern: str) -> bool:
    """Whether the first segments of ``name`` match all segments of ``pattern``."""
    parts, patterns = name.split("."), pattern.split(".")
    return len(parts) >= len(patterns) and all(
        part == glob or fnmatchcase(part, glob) for part, glob in zip(parts, patterns, strict=False)
    )
