"""Which modules of a detector feed which, and which of them run in training while a part is frozen (T1).

This is read from the order of the detector's modules and from what each module declares:

* ``reads``, ``writes``: keys of ``batch_dict`` that its forward reads and writes;
* ``reads_train``: keys that it reads in train mode beside them (labels);
* ``get_loss``: it is a head, and gives a loss unless it is fully frozen;
* ``made_by``: a mapping from a key that it writes to the names of the children that make it. Its forward then
  takes ``skip`` beside the batch: keys that it need not write this time.

A module without declarations may read and write anything: in doubt it runs. Keys that the detector itself
reads in training (for a loss of its own) are its ``reads_train``; None there says that they are not known.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from pcdet_freeze.errors import FreezeError
from pcdet_freeze.freezing.entries.paths import unwrap
from pcdet_freeze.freezing.eval_lock import eval_mode
from pcdet_freeze.freezing.layer_types import has_state
from pcdet_freeze.freezing.state import freeze_version, is_fully_frozen
from pcdet_freeze.utils.wrappers import inner


@dataclass(frozen=True)
class Stage:
    """One module of a detector, and what it declares."""

    name: str
    module: nn.Module
    """without wrappers"""
    reads: frozenset[str]
    reads_train: frozenset[str]
    writes: frozenset[str]
    declared: bool
    """False: it may read and write anything"""
    has_loss: bool
    made_by: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """key -> names of the children that make it; empty: not known"""

    @classmethod
    def of(cls, name: str, module: nn.Module) -> Stage:
        """Read the declarations of ``module``."""
        plain = inner(module)
        reads, writes = (_keys(getattr(plain, key, None)) for key in ("reads", "writes"))
        return cls(
            name,
            plain,
            reads or frozenset(),
            _keys(getattr(plain, "reads_train", None)) or frozenset(),
            writes or frozenset(),
            reads is not None and writes is not None,
            callable(getattr(plain, "get_loss", None)),
            made_by if isinstance(made_by := getattr(plain, "made_by", None), Mapping) else {},
        )


def _keys(declared: object) -> frozenset[str] | None:
    return frozenset(declared) if isinstance(declared, tuple | list | set | frozenset) else None


def stages(detector: nn.Module) -> tuple[Stage, ...]:
    """The modules of ``detector`` in the order in which they run; empty where it does not declare it.

    The order is ``module_names``, or ``module_list`` (its modules, as in OpenPCDet).
    """
    root: Any = unwrap(detector)
    names = getattr(root, "module_names", None)
    if names is None:
        order = {id(module): place for place, module in enumerate(getattr(root, "module_list", ()))}
        own = [(name, module) for name, module in root.named_children() if id(module) in order]
        names = [name for name, module in sorted(own, key=lambda pair: order[id(pair[1])])]
    return tuple(Stage.of(name, getattr(root, name)) for name in names)


def may_feed(writer: Stage, reader: Stage, training: bool = False) -> bool:
    """Whether ``reader`` may use what the earlier ``writer`` wrote: certain only where both declare keys."""
    return not (writer.declared and reader.declared) or bool(common_keys(writer, reader, training))


def common_keys(writer: Stage, reader: Stage, training: bool = False) -> list[str]:
    """Declared keys that ``writer`` writes and ``reader`` reads."""
    wanted = reader.reads | (reader.reads_train if training else frozenset())
    return sorted(writer.writes & wanted)


class How(Enum):
    """How a module runs in a training forward."""

    PLAIN = "runs"
    EVAL = "runs in eval mode"
    SKIP = "skipped"


@dataclass(frozen=True)
class Step:
    """How one module runs in a training forward, and why."""

    name: str
    how: How
    loss: bool
    """whether its loss counts"""
    frozen: bool
    """whether it is fully frozen"""
    why: str = ""
    unneeded: frozenset[str] = frozenset()
    """keys that it need not write: frozen children make them, and no running module reads them"""

    def __str__(self) -> str:
        """ "dense_head: gives no loss, skipped: no running module reads batch_box_preds"."""
        return f"{self.name}: {self.how.value}: {self.why}"


_known: WeakKeyDictionary[nn.Module, tuple[object, tuple[int, ...], dict[str, Step]]] = WeakKeyDictionary()


def training_steps(detector: nn.Module) -> dict[str, Step]:
    """Name -> how each module of ``detector`` runs in a training forward.

    Computed again only where something else is frozen.
    """
    root: Any = unwrap(detector)
    modules = tuple(map(id, root.module_list)) if hasattr(root, "module_list") else ()
    version, known = freeze_version(root), _known.get(root)
    if known is None or known[0] != version or known[1] != modules:
        known = version, modules, {step.name: step for step in decide(stages(root), _own_reads(root))}
        _known[root] = known
    return known[2]


def _own_reads(detector: nn.Module) -> Stage:
    """What the detector itself reads in training, as a last module that always runs."""
    declared = getattr(detector, "reads_train", ())
    keys = _keys(declared)
    none: frozenset[str] = frozenset()
    return Stage("the detector", detector, keys or none, none, none, keys is not None, False)


def decide(order: Sequence[Stage], detector: Stage | None = None) -> tuple[Step, ...]:
    """Go backwards from the trainable modules: a frozen one runs only where a module that runs may read it.

    A module without parameters and buffers has nothing to train, and so follows the same rule where anything
    is frozen at all.
    """
    frozen = [is_fully_frozen(stage.module) for stage in order]
    steps: list[Step] = []
    readers: list[Stage] = [] if detector is None else [detector]
    for stage, is_frozen in zip(reversed(order), reversed(frozen), strict=True):
        idle = is_frozen or (any(frozen) and not stage.has_loss and not has_state(stage.module))
        step = (
            _step(stage, readers, is_frozen) if idle else Step(stage.name, How.PLAIN, stage.has_loss, False)
        )
        if step.how is How.PLAIN:
            step = replace(step, unneeded=_unneeded(stage, readers))
        steps.append(step)
        if step.how is How.PLAIN:
            readers.append(stage)
        elif step.how is How.EVAL:
            readers.append(_as_in_eval(stage))
    return tuple(reversed(steps))


def _step(stage: Stage, readers: Sequence[Stage], is_frozen: bool) -> Step:
    """How a module that does not train runs, given the modules that run after it."""
    run = How.EVAL if stage.has_loss else How.PLAIN
    if not stage.declared:
        return Step(
            stage.name, run, False, is_frozen, "it does not declare what it writes, so it may be needed"
        )
    for reader in readers:
        if may_feed(stage, reader, training=True):
            keys = ", ".join(common_keys(stage, reader, training=True))
            why = f"{reader.name} reads {keys}" if keys else f"{reader.name} does not declare what it reads"
            return Step(stage.name, run, False, is_frozen, why)
    written = ", ".join(sorted(stage.writes)) or "its outputs"
    return Step(stage.name, How.SKIP, False, is_frozen, f"no running module reads {written}")


def _unneeded(stage: Stage, readers: Sequence[Stage]) -> frozenset[str]:
    """Keys of ``stage`` that frozen children make and no reader wants; none where a reader may read all.

    A key whose makers all take part in a key that is needed is made on the way to it.
    """
    makers = {key: [getattr(stage.module, name) for name in names] for key, names in stage.made_by.items()}
    frozen = {key for key, parts in makers.items() if _all_frozen(parts)}
    if not all(reader.declared for reader in readers):
        return frozenset()
    unread = frozen - {key for reader in readers for key in reader.reads | reader.reads_train}
    needed = [set(names) for key, names in stage.made_by.items() if key not in unread]
    return frozenset(key for key in unread if not any(set(stage.made_by[key]) <= names for names in needed))


def _all_frozen(parts: Sequence[nn.Module]) -> bool:
    """Whether all that has state in ``parts`` is frozen, and there is something."""
    stateful = [part for part in parts if has_state(part)]
    return bool(stateful) and all(is_fully_frozen(part) for part in stateful)


def _as_in_eval(stage: Stage) -> Stage:
    """``stage`` without the labels that it reads in train mode."""
    return replace(stage, reads_train=frozenset())


def require_loss(detector: nn.Module) -> None:
    """Raise FreezeError where the detector has heads, but all of them are fully frozen (T3)."""
    heads = [stage.name for stage in stages(detector) if stage.has_loss]
    steps = training_steps(detector)
    if heads and not any(steps[name].loss for name in heads):
        raise FreezeError(
            f"At least one head must give a loss, but all heads are fully frozen: {', '.join(heads)}. Remove "
            "one from MODEL.NOT_TRAIN_IN_MULTI_TASK, or exempt a part of it (`!dense_head.conv_cls`)."
        )


def explain_steps(detector: nn.Module) -> list[str]:
    """One line for each frozen head, and for each module whose training forward is skipped."""
    heads = {stage.name for stage in stages(detector) if stage.has_loss}
    lines = []
    for step in training_steps(detector).values():
        if step.frozen and step.name in heads:
            lines.append(f"{step.name} gives no loss; in training it {_verb(step.how)}: {step.why}")
        elif step.how is How.SKIP:
            lines.append(f"{step.name} is skipped in training: {step.why}")
        elif step.unneeded:
            keys, one = ", ".join(sorted(step.unneeded)), "it" if len(step.unneeded) == 1 else "them"
            lines.append(f"{step.name} does not compute {keys} in training: no running module reads {one}")
    return lines


def _verb(how: How) -> str:
    return "is skipped" if how is How.SKIP else how.value


@torch.no_grad()
def run_in_eval_mode(
    name: str, module: nn.Module, batch_dict: dict[str, Any], given: Collection[str]
) -> None:
    """Run a frozen head as in eval, without a graph, on a shallow copy of ``batch_dict``.

    Of what it writes, its declared ``writes`` are taken over, so it cannot replace labels. Where it declares
    nothing, all is taken over but the keys that came with the batch.

    Args:
        name: what the module is called in the detector.
        given: keys that the loader gave.
    """
    stage = Stage.of(name, module)
    with eval_mode(module):
        found = module(dict(batch_dict))
    batch_dict.update(
        {
            key: value
            for key, value in found.items()
            if (key in stage.writes if stage.declared else key not in given)
        }
    )
