"""A plan against a model: which modules its entries mean, or every reason why they mean nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import nn

from pcdet_freeze.errors import FreezeError
from pcdet_freeze.freezing import layer_types
from pcdet_freeze.freezing.apply import unusable
from pcdet_freeze.freezing.entries.module_set import ModuleSet
from pcdet_freeze.freezing.entries.paths import Match, is_within, join, match, segments_match, unwrap, walk
from pcdet_freeze.freezing.plan import EXAMPLE, RULE, FreezePlan
from pcdet_freeze.freezing.shared_tensors import Sharing, find_sharing
from pcdet_freeze.utils.settings.names import nearest

_CONTAINERS = (nn.ModuleList, nn.ModuleDict)


@dataclass
class Resolution:
    """What a plan means for one model."""

    plan: FreezePlan
    root: nn.Module
    """The model without wrappers."""
    module_set: ModuleSet = field(default_factory=ModuleSet)
    """The frozen subtrees."""
    eval_set: ModuleSet = field(default_factory=ModuleSet)
    """Subtrees that FREEZE.EVAL names."""
    named: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Entry -> the paths that it named."""
    notes: list[str] = field(default_factory=list)
    """What the user should know and what is no fault."""
    sharing: Sharing = field(default_factory=Sharing)

    @property
    def names(self) -> tuple[str, ...]:
        """The outermost frozen paths."""
        return self.module_set.names(self.root)

    def entry_of(self, path: str) -> str:
        """The last entry that froze the module at ``path``, or an empty string."""
        found = ""
        for entry, paths in self.named.items():
            if not entry.startswith("!") and any(is_within(path, top) for top in paths):
                found = entry
        return found if self.module_set.contains(path) else ""


def resolve(plan: FreezePlan, model: nn.Module) -> Resolution:
    """Work out what ``plan`` freezes in ``model`` (wrappers are seen through). Nothing is changed.

    Raises FreezeError with every fault: unknown names with the nearest valid ones, names of parameters,
    exemptions of nothing, uninitialised lazy modules, TorchScript modules, tensors shared with trainable
    modules.
    """
    root = unwrap(model)
    result = Resolution(plan, root, notes=list(plan.notes))
    paths = [path for path, _, _ in walk(root) if path]
    faults: list[str] = []
    for entry in plan.entries:
        faults += _apply_entry(entry, root, result, paths)
    if plan and not faults and not result.module_set:
        faults.append(f"the list must leave something to freeze; {list(plan.entries)} exempts all it names")
    if not faults:
        faults += _apply_eval(root, result, paths)
        faults += [f for p, m, _ in result.module_set.modules(root) if (f := unusable(p, m))]
    if not faults:
        faults += _ignore_faults(root, result)
        result.sharing = find_sharing(root, result.module_set, plan.parameters)
        if plan.shared == "error":
            faults += result.sharing.faults()
        else:
            result.notes += result.sharing.notes()
    if faults:
        raise FreezeError("\n".join(faults) if len(faults) == 1 else "\n".join(["cannot freeze:", *faults]))
    result.notes += _empty_notes(root, result)
    return result


def _apply_entry(entry: str, root: nn.Module, result: Resolution, known: list[str]) -> list[str]:
    """Add the modules that ``entry`` names to the set, or remove them; returns the faults."""
    exempt = entry.startswith("!")
    name = entry.removeprefix("!")
    matched = match(root, name)
    if not matched.paths:
        return [no_such_module(entry, matched, known)]
    if exempt:
        hit = [path for path in matched.paths if result.module_set.touches(path)]
        if not hit:
            return [f"{entry!r} must exempt a part of an earlier entry; no earlier entry covers {name!r}"]
    _note_overlap(entry, matched.paths, result, exempt)
    for path in matched.paths:
        for alias in aliases(root, path):
            result.module_set = result.module_set.remove(alias) if exempt else result.module_set.add(alias)
    result.named[entry] = matched.paths
    return []


def _note_overlap(entry: str, paths: tuple[str, ...], result: Resolution, exempt: bool) -> None:
    if exempt:
        return
    if entry in result.named:
        result.notes.append(f"{entry!r} is listed twice: merged")
        return
    for path in paths:
        known = result.module_set.outermost()
        overlapping = [top for top in known if is_within(top, path) or result.module_set.contains(path)]
        if overlapping:
            result.notes.append(f"{entry!r} overlaps with {overlapping[0]!r}: merged")
            return


def no_such_module(entry: str, matched: Match, known: Iterable[str]) -> str:
    """The message for an entry that names nothing."""
    name = entry.removeprefix("!")
    where = matched.deepest or "the model"
    if matched.tensor:
        holder = f"write {matched.deepest!r}" if matched.deepest else "it cannot be frozen by itself"
        return f"{entry!r} names a parameter or buffer of {where}; {RULE}: {holder}"
    close = nearest(name, known)
    hint = f" Nearest: {', '.join(close)}." if close else ""
    inside = ", ".join(matched.choices) or "no modules"
    holds = f"{matched.deepest or 'The model'} holds {inside}"
    return f"{entry!r} names no module of this model.{hint} {holds}. Example: {EXAMPLE}"


def aliases(root: nn.Module, path: str) -> list[str]:
    """The names that its caller has for the module at ``path``, in the order of registration.

    The caller is the module that runs it: the nearest one above that is no plain ModuleList or ModuleDict. A
    second name elsewhere belongs to another caller: that is sharing, not an alias.
    """
    places: dict[str, tuple[nn.Module, nn.Module | None]] = {}
    callers: dict[str, nn.Module | None] = {}
    for place, module, parent in walk(root):
        if place in places:
            continue
        places[place] = (module, parent)
        holder = place.rpartition(".")[0]
        callers[place] = callers.get(holder) if type(parent) in _CONTAINERS else parent
    target = places[path][0]
    return [p for p, (m, _) in places.items() if m is target and callers[p] is callers[path]]


def _apply_eval(root: nn.Module, result: Resolution, known: list[str]) -> list[str]:
    faults = []
    for name in result.plan.eval:
        matched = match(root, name)
        if not matched.paths:
            faults.append("FREEZE.EVAL: " + no_such_module(name, matched, known))
        for path in matched.paths:
            if result.module_set.contains(path):
                result.eval_set = result.eval_set.add(path)
            else:
                faults.append(f"FREEZE.EVAL must name modules inside frozen ones; {path!r} is not frozen")
    return faults


def _ignore_faults(root: nn.Module, result: Resolution) -> list[str]:
    """FREEZE.IGNORE may name frozen buffers, or modules for all their buffers; never a parameter."""
    buffers: list[str] = []
    parameters: list[str] = []
    for path, module, _ in result.module_set.modules(root):
        buffers += [join(path, name) for name, tensor in module._buffers.items() if tensor is not None]
        parameters += [join(path, name) for name, _ in module._parameters.items()]
    faults = []
    for name in result.plan.ignore:
        if any(len(p.split(".")) == len(name.split(".")) and segments_match(p, name) for p in parameters):
            faults.append(f"FREEZE.IGNORE names buffers; {name!r} is a parameter, which is always checked")
        elif not any(segments_match(buffer, name) for buffer in buffers):
            close = ", ".join(nearest(name, buffers)) or "none"
            faults.append(f"FREEZE.IGNORE must name frozen buffers; {name!r} names none. Nearest: {close}")
    return faults


def _empty_notes(root: nn.Module, result: Resolution) -> list[str]:
    """Notes for entries whose modules have neither parameters nor buffers."""
    stateful = {path for path, module, _ in walk(root) if layer_types.has_state(module)}
    return [
        f"{entry!r} has no parameters and no buffers: nothing to freeze there"
        for entry, paths in result.named.items()
        if not entry.startswith("!") and not any(path in stateful for path in paths)
    ]
