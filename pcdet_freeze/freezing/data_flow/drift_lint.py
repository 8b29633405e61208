"""The lint (P3): a frozen module whose inputs come from a trainable one will drift.

Read from the order of the detector's modules and the keys that they declare (:mod:`.module_graph`). Inside
one module nothing is declared, except where the module says which children make which key (``made_by``: a
mapping from a key to names of children; a child that it does not mention takes part in every key):

* of a partly frozen module, the trainable children are named;
* children of one module are taken to run in the order in which they were registered.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from pcdet_freeze.freezing import layer_types
from pcdet_freeze.freezing.data_flow.module_graph import Stage, common_keys, may_feed, stages
from pcdet_freeze.freezing.entries.paths import children, join
from pcdet_freeze.freezing.eval_lock import is_locked
from pcdet_freeze.freezing.state import is_fully_frozen
from pcdet_freeze.utils.wrappers import inner

BOXES = "batch_box_preds"
"""The key whose writers predict boxes; one of several heads appends its name."""


@dataclass(frozen=True)
class Drift:
    """A frozen module whose inputs depend on trainable ones."""

    frozen: tuple[str, ...]
    feeders: tuple[str, ...]
    """trainable modules before it"""
    certain: bool
    """whether all modules on the way declare their keys"""
    what: str
    """what will drift"""

    def __str__(self) -> str:
        one, single = len(self.frozen) == 1, len(self.feeders) == 1
        feeds = ("feeds" if single else "feed") if self.certain else "may feed"
        return (
            f"{_list(self.frozen)} {'is' if one else 'are'} frozen, but {_list(self.feeders)} {feeds} "
            f"{'it' if one else 'them'} and {'is' if single else 'are'} trainable: "
            f"{'its' if one else 'their'} {self.what} will drift"
        )


def lint(detector: nn.Module) -> list[Drift]:
    """What will drift in ``detector``, as it is frozen now; empty where nothing is.

    Empty, too, for a model that does not declare the order of its modules (``module_names``,
    ``module_list``).
    """
    order = stages(detector)
    return [drift for place in range(len(order)) for drift in _drifts(order, place)]


def live_inputs(detector: nn.Module) -> dict[str, list[str]]:
    """Each fully frozen module of ``detector`` -> the trainable parts that feed it, or may."""
    order = stages(detector)
    frozen = [place for place, stage in enumerate(order) if is_fully_frozen(stage.module)]
    return {order[place].name: feeding_parts(order, place)[0] for place in frozen}


def live_parts(path: str, module: nn.Module) -> list[str]:
    """Paths of the outermost parts at or below ``path`` in which all state is trainable."""
    part = inner(module)
    own = _trains(part)
    parts = [(child_path, child) for child_path, child in children(path, part)]
    found = {child_path: live_parts(child_path, child) for child_path, child in parts}
    stateful = [child_path for child_path, child in parts if _can_train(child)]
    if all(found[child_path] == [child_path] for child_path in stateful) and own is not False:
        return [path] if own or stateful else []
    lived = [part for child_path in found for part in found[child_path]]
    return [f"{path} (its own parameters)", *lived] if own else lived


def frozen_parts(path: str, module: nn.Module) -> list[str]:
    """Paths of the outermost parts at or below ``path`` that are fully frozen and have state."""
    whole = inner(module)
    if is_fully_frozen(whole):
        return [path] if layer_types.has_state(whole) else []
    return [part for child_path, child in children(path, whole) for part in frozen_parts(child_path, child)]


def _can_train(module: nn.Module) -> bool:
    return any(True for _ in module.parameters()) or any(
        layer_types.is_norm(part) for part in module.modules()
    )


def _trains(module: nn.Module) -> bool | None:
    """Whether the module's own state changes in training; None where it has no state of its own."""
    if any(p is not None and p.requires_grad for p in module._parameters.values()):
        return True
    if layer_types.is_norm(module):
        return not is_locked(module)
    return False if any(p is not None for p in module._parameters.values()) else None


def _drifts(order: Sequence[Stage], place: int) -> Iterator[Drift]:
    stage = order[place]
    frozen = _frozen_of(stage)
    if not frozen:
        return
    feeders, certain = feeding_parts(order, place)
    if feeders:
        yield Drift(tuple(frozen), tuple(feeders), certain, _what(stage, len(frozen) > 1))
    for part in (
        [] if stage.has_loss or frozen == [stage.name] else frozen
    ):  # a head's children run in parallel
        inside = _live_siblings(stage, part)
        if inside:
            yield Drift((part,), tuple(inside), False, "output")


def _frozen_of(stage: Stage) -> list[str]:
    """Frozen parts of a stage; a head without state counts, too, where it is named."""
    if stage.has_loss and is_fully_frozen(stage.module):
        return [stage.name]
    return frozen_parts(stage.name, stage.module)


def _what(stage: Stage, many: bool) -> str:
    if stage.has_loss:
        return "detections" if any(key.startswith(BOXES) for key in stage.writes) else "predictions"
    return "outputs" if many else "output"


def feeding_parts(order: Sequence[Stage], place: int) -> tuple[list[str], bool]:
    """Trainable parts of the modules that feed the one at ``place``, in order, and whether it is certain."""
    reached: dict[int, frozenset[str] | None] = {}
    certain = order[place].declared
    pending = [place]
    while pending:
        reader = order[current := pending.pop()]
        for earlier in range(current):
            writer = order[earlier]
            if not may_feed(writer, reader):
                continue
            certain = certain and writer.declared
            keys = frozenset(common_keys(writer, reader)) if writer.declared and reader.declared else None
            if earlier not in reached:
                pending.append(earlier)
            known = reached.get(earlier, frozenset())
            reached[earlier] = None if keys is None or known is None else known | keys
    return [part for at in sorted(reached) for part in _live_makers(order[at], reached[at])], certain


def _live_makers(stage: Stage, keys: frozenset[str] | None) -> list[str]:
    """Trainable parts of ``stage`` that help to make any of ``keys`` (None: any key that it writes)."""
    live = live_parts(stage.name, stage.module)
    made_by = stage.made_by
    if keys is None or not made_by:
        return live
    if live == [stage.name] and not all(_makes(stage, child, keys) for child in stage_children(stage)):
        live = [part for child, module in stage_children(stage).items() for part in live_parts(child, module)]
    return [part for part in live if _makes(stage, part, keys)]


def _makes(stage: Stage, part: str, keys: frozenset[str]) -> bool:
    made = _keys_made(stage, part)
    return made is None or bool(made & keys)


def _keys_made(stage: Stage, part: str) -> frozenset[str] | None:
    """Keys that the child of ``stage`` that ``part`` lies in helps to make; None: all."""
    child = part[len(stage.name) + 1 :].partition(".")[0]
    made_by = stage.made_by
    if not any(child in names for names in made_by.values()):
        return None
    return frozenset(key for key, names in made_by.items() if child in names)


def stage_children(stage: Stage) -> dict[str, nn.Module]:
    """Path -> each child of a stage."""
    return {join(stage.name, name): child for name, child in stage.module.named_children()}


def _live_siblings(stage: Stage, part: str) -> list[str]:
    """Trainable parts before a frozen ``part`` in its module that help to make the same keys."""
    live = live_parts(stage.name, stage.module)
    order = [path for path, _ in _below(stage.name, stage.module)]
    makes = _keys_made(stage, part)
    return [
        other
        for other in live
        if order.index(other.partition(" ")[0]) < order.index(part)
        and (makes is None or _makes(stage, other, makes))
    ]


def _below(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    yield path, module
    for child_path, child in children(path, module):
        yield from _below(child_path, inner(child))


def _list(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
