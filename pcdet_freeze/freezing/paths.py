"""Names of modules: dotted paths from the detector, wrappers left out, aliases kept apart.

A *path* is what a user writes (``backbone_2d.blocks.0``). The segments that wrappers add (``module`` for
DistributedDataParallel, DataParallel and AveragedModel, ``_orig_mod`` for ``torch.compile``) are no part of
it, so a wrapped and a plain model have the same paths.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

WRAPPER_CHILDREN = ("module", "_orig_mod")


def wrapped(module: nn.Module) -> nn.Module | None:
    """The one module that ``module`` wraps, or None where it is no wrapper."""
    children = module._modules
    if len(children) != 1:
        return None
    ((name, child),) = children.items()
    return child if name in WRAPPER_CHILDREN and not module._parameters else None


def unwrap(module: nn.Module) -> nn.Module:
    """``module`` without its wrappers."""
    inside = wrapped(module)
    while inside is not None:
        module, inside = inside, wrapped(inside)
    return module


def compiled_wrappers(model: nn.Module) -> tuple[nn.Module, ...]:
    """The ``torch.compile`` wrappers around ``model``, outermost first."""
    found: list[nn.Module] = []
    inside = wrapped(model)
    while inside is not None:
        if "_orig_mod" in model._modules:
            found.append(model)
        model, inside = inside, wrapped(inside)
    return tuple(found)


def join(path: str, name: str) -> str:
    """``path`` and a name below it as one path."""
    return f"{path}.{name}" if path else name


def is_within(path: str, top: str) -> bool:
    """Whether ``path`` is ``top`` or lies inside it."""
    return path == top or top == "" or path.startswith(top + ".")


def children(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Children of ``module`` with their paths. What a wrapper wraps has the wrapper's own path."""
    inside = wrapped(module)
    if inside is not None:
        yield path, inside
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
    """(module, parent) at a path without globs, or None. Of a wrapped module, the wrapper is returned."""
    module, parent = root, None
    for name in path.split(".") if path else []:
        holder = unwrap(module)
        child = holder._modules.get(name)
        if child is None:
            return None
        module, parent = child, holder
    return module, parent


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
        below = [(path, unwrap(module)) for path, module in level]
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
    owned = tensor_name in holder._parameters or tensor_name in holder._buffers
    return Match((), path, choices, bool(tensor_name) and owned)


def segments_match(name: str, pattern: str) -> bool:
    """Whether the first segments of ``name`` match all segments of ``pattern``."""
    parts, patterns = name.split("."), pattern.split(".")
    return len(parts) >= len(patterns) and all(
        part == glob or fnmatchcase(part, glob) for part, glob in zip(parts, patterns, strict=False)
    )
