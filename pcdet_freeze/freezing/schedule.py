"""FREEZE.SCHEDULE for one model: the plan of each phase, and the parameters that begin to train in it.

Nothing here changes a model. A part that trains from some epoch on is exempted from the list from there on
(``!backbone_2d.blocks``), so each phase of a run has a plan of its own that ``freeze`` can apply.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from torch import nn

from pcdet_freeze.errors import FreezeError
from pcdet_freeze.freezing.apply import frozen_parameters
from pcdet_freeze.freezing.entries.module_set import ModuleSet
from pcdet_freeze.freezing.entries.paths import is_within, join, match, segments_match, unwrap, walk
from pcdet_freeze.freezing.entries.resolve import Resolution, aliases, no_such_module, resolve
from pcdet_freeze.freezing.handle import FreezeHandle
from pcdet_freeze.freezing.plan import SCHEDULE_KEY as KEY
from pcdet_freeze.freezing.plan import FreezePlan, ScheduleEntry
from pcdet_freeze.freezing.state import FreezeRequest


@dataclass(frozen=True)
class AddedParameters:
    """Parameters that a phase lets train, and the multiple of the learning rate that they get."""

    names: tuple[str, ...]
    """in the model's order"""
    lr_scale: float


@dataclass(frozen=True)
class Phase:
    """A stretch of a run in which the same modules are frozen."""

    begins: int
    """finished epochs at its start"""
    plan: FreezePlan
    """what is frozen in it; its own schedule is empty"""
    phases: tuple[ScheduleEntry, ...] = ()
    """the phases that begin with it"""
    entered: tuple[AddedParameters, ...] = ()
    """all that entered since the start of the run, in order; the last ones by ``phases``, one each"""

    def summary(self, handle: FreezeHandle) -> str:
        """One line for the log; ``handle`` is the freeze of this phase."""
        if self.entered and not self.plan:
            return "all modules of the list are unfrozen"
        return handle.summary()

    def lines(self) -> list[str]:
        """What begins with this span, one line a phase."""
        began = self.entered[len(self.entered) - len(self.phases) :]
        return [_line(phase, part) for phase, part in zip(self.phases, began, strict=True)]


def _line(phase: ScheduleEntry, entered: AddedParameters) -> str:
    epochs = "epoch" if phase.epoch == 1 else "epochs"
    begin = "begins" if len(phase.train) == 1 else "begin"
    what = f"{len(entered.names)} parameter tensors" if entered.names else "no parameters, only locked layers"
    rate = f", learning rate x {phase.lr_scale:g}" if phase.lr_scale != 1 else ""
    return f"after {phase.epoch} {epochs}, {', '.join(phase.train)} {begin} to train ({what}{rate})"


def phase_at(spans: Sequence[Phase], begun: int) -> Phase:
    """The span in which the ``begun``-th epoch (from 1) runs; 0, before the first, gives the first span.

    A run between two epochs is in the phase of the epoch that it finished.
    """
    return next(span for span in reversed(spans) if span.begins == 0 or span.begins < begun)


def timeline(plan: FreezePlan, model: nn.Module, epochs: int | None = None) -> tuple[Phase, ...]:
    """The spans of a run, in order; one where the plan has no schedule.

    Args:
        plan: list and schedule as the config has them.
        model: wrapped or not, frozen already or not; it is not changed.
        epochs: length of the run; None where it is not known yet.

    Raises:
        FreezeError: with every fault of list and schedule: names that are unknown or not frozen, parts that
            two phases name, phases beyond the run, tensors that a frozen and an entering part share.
    """
    root, now = unwrap(model), replace(plan, schedule=())
    if not plan.schedule:
        return (Phase(0, now),)
    faults = [fault for phase in plan.schedule for fault in _length_faults(phase, epochs)]
    resolution = None
    try:
        resolution = resolve(now, root)
    except FreezeError as error:
        faults.append(str(error))
    faults += _name_faults(plan.schedule, root, None if resolution is None else resolution.module_set)
    spans = [Phase(0, now)]
    if resolution is not None and not faults:
        spans += _later_phases(plan, root, resolution, faults)
    if faults:
        raise FreezeError(faults[0] if len(faults) == 1 else "\n".join(["the freeze list:", *faults]))
    return tuple(spans)


def _length_faults(phase: ScheduleEntry, epochs: int | None) -> list[str]:
    if epochs is None or phase.epoch < epochs:
        return []
    return [
        f"{KEY}: EPOCH must leave epochs to train in; {', '.join(phase.train)} would begin after epoch "
        f"{phase.epoch} of a run of {epochs}: lower it, or leave the phase out"
    ]


def _name_faults(
    schedule: Sequence[ScheduleEntry], root: nn.Module, module_set: ModuleSet | None
) -> list[str]:
    """Names that mean nothing, nothing frozen, or what another phase names too."""
    known = [path for path, _, _ in walk(root) if path]
    owners: dict[int, ScheduleEntry] = {}
    faults = []
    for phase in schedule:
        mine: dict[int, ScheduleEntry] = {}
        for name in phase.train:
            matched = match(root, name)
            if not matched.paths:
                faults.append(f"{KEY}, EPOCH {phase.epoch}: {no_such_module(name, matched, known)}")
            if module_set is None or not matched.paths:
                continue
            inside = [id(module) for module in _frozen_below(root, module_set, matched.paths)]
            if not inside:
                faults.append(
                    f"{KEY}, EPOCH {phase.epoch}: TRAIN must name what the list freezes, or a part of it; "
                    f"nothing in {name!r} is frozen"
                )
            earlier = next((owners[key] for key in inside if key in owners), None)
            if earlier is not None:
                faults.append(
                    f"{KEY}: a part may begin to train once; {name!r} of EPOCH {phase.epoch} overlaps with "
                    f"{', '.join(earlier.train)} of EPOCH {earlier.epoch}: name the rest only"
                )
            mine |= dict.fromkeys(inside, phase)
        owners |= mine
    return faults


def _frozen_below(root: nn.Module, module_set: ModuleSet, paths: Sequence[str]) -> Iterator[nn.Module]:
    for place, module, _ in walk(root):
        if module_set.contains(place) and any(is_within(place, path) for path in paths):
            yield module


def _later_phases(plan: FreezePlan, root: nn.Module, first: Resolution, faults: list[str]) -> Iterator[Phase]:
    """The spans after the first; adds to ``faults`` what keeps one from being frozen."""
    entries, module_set, before = plan.entries, first.module_set, _frozen_names(root, first)
    entered: tuple[AddedParameters, ...] = ()
    for epoch, group in groupby(plan.schedule, key=lambda phase: phase.epoch):
        phases = tuple(group)
        for path in (path for phase in phases for path in _paths(root, phase)):
            if module_set.touches(path):
                entries = (*entries, f"!{path}")
                for alias in aliases(root, path):
                    module_set = module_set.remove(alias)
        now = _reduced(
            replace(plan, entries=entries, schedule=(), notes=()), root, module_set, first.eval_set
        )
        try:
            after = _frozen_names(root, resolve(now, root))
        except FreezeError as error:
            faults.append(f"{KEY}, from EPOCH {epoch} on: {error}")
            return
        entered = (*entered, *_entering(root, phases, [name for name in before if name not in after]))
        yield Phase(epoch, now, phases, entered)
        before = after


def _paths(root: nn.Module, phase: ScheduleEntry) -> list[str]:
    """The outermost paths that a phase names."""
    paths = list(dict.fromkeys(path for name in phase.train for path in match(root, name).paths))
    return [path for path in paths if not any(is_within(path, top) for top in paths if top != path)]


def _reduced(plan: FreezePlan, root: nn.Module, module_set: ModuleSet, eval_set: ModuleSet) -> FreezePlan:
    """``plan`` with only the options that apply to ``module_set``; an empty plan where the set is empty."""
    if not module_set:
        return FreezePlan()
    buffers = [join(path, name) for path, module, _ in module_set.modules(root) for name in module._buffers]
    ignore = tuple(name for name in plan.ignore if any(segments_match(b, name) for b in buffers))
    return replace(
        plan, eval=tuple(top for top in eval_set.outermost() if module_set.contains(top)), ignore=ignore
    )


def _frozen_names(root: nn.Module, found: Resolution) -> list[str]:
    """Names of the parameters that ``found`` freezes, tied ones too, in the model's order."""
    sharing = found.sharing
    request = FreezeRequest("", found.plan, found.module_set, found.eval_set, sharing.tied, sharing.users)
    ours = {id(parameter) for parameter in frozen_parameters(root, request)}
    return [name for name, parameter in root.named_parameters() if id(parameter) in ours]


def _entering(
    root: nn.Module, phases: Sequence[ScheduleEntry], names: Sequence[str]
) -> Iterator[AddedParameters]:
    """Each of ``names`` under the phase that names it."""
    left = list(names)
    for phase in phases:
        paths = _paths(root, phase)
        mine = [name for name in left if any(is_within(name, path) for path in paths)]
        if phase is phases[-1]:
            mine = left  # a tied tensor goes by another name
        yield AddedParameters(tuple(mine), phase.lr_scale)
        left = [name for name in left if name not in mine]
