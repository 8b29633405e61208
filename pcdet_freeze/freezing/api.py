"""freeze, unfreeze, frozen: check everything, then change the model in place."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import nn

from pcdet_freeze.errors import FreezeError
from pcdet_freeze.freezing import optimizer_and_ddp
from pcdet_freeze.freezing.apply import (
    apply_request,
    frozen_parameters,
    parameters_to_change,
)
from pcdet_freeze.freezing.entries.paths import compiled_wrappers, is_within, match, unwrap, walk
from pcdet_freeze.freezing.entries.resolve import no_such_module, resolve
from pcdet_freeze.freezing.handle import FreezeHandle, tidy
from pcdet_freeze.freezing.plan import FreezePlan
from pcdet_freeze.freezing.reapply_hook import attach, detach_if_idle, record_replaced_modules
from pcdet_freeze.freezing.release import parameters_to_unfreeze, release
from pcdet_freeze.freezing.state import (
    FreezeRequest,
    ModuleState,
    get_freeze_state,
    get_module_state,
    set_module_state,
)

logger = logging.getLogger("pcdet_freeze.freeze")


def freeze(
    model: nn.Module,
    names_or_plan: Sequence[str] | FreezePlan | None,
    optimizer: Any = None,
    *,
    certify: bool = True,
    rebuilds_ddp: bool = False,
) -> FreezeHandle:
    """Freeze the named modules of ``model`` in place; they stay the same objects.

    Their parameters get ``requires_grad=False`` and lose ``.grad``; their norm layers normalise with their
    running statistics and their dropout is off, also after ``train()``, until the handle is released or
    :func:`unfreeze` is called. With ``parameters=False`` in the plan the layers are locked in eval mode
    in the same way, and every parameter trains.

    Args:
        model: any module, wrapped (DistributedDataParallel, ``torch.compile``) or not.
        names_or_plan: dotted paths such as ``["vfe", "backbone_2d.blocks"]``, or a :class:`FreezePlan`.
        optimizer: an optimizer that exists already; the frozen parameters and their state are removed from
            it. Parameter groups stay, even where they become empty.
        certify: take the certificate that ``handle.verify()`` compares with (0.2 s for 60 M parameters).
        rebuilds_ddp: the caller wraps the model in a new DistributedDataParallel at once, so that a live one
            is no error, and logs the summary itself.

    Returns:
        The handle. Nothing is frozen, and the handle says so, where the list is empty.

    Raises:
        FreezeError: with every fault, before anything was changed.
    """
    plan = FreezePlan.of(names_or_plan)
    if not isinstance(model, nn.Module):
        raise FreezeError(f"freeze needs a torch.nn.Module; got {type(model).__name__}")
    root = unwrap(model)
    resolution = resolve(plan, root)
    token = uuid.uuid4().hex
    handle = FreezeHandle(root, token, resolution, compiled_wrappers(model))
    if not plan:
        if not rebuilds_ddp:
            logger.info(handle.summary())
        return handle
    shared = resolution.sharing
    request = FreezeRequest(
        token, plan, resolution.module_set, resolution.eval_set, shared.tied, shared.users
    )
    _apply(model, request, optimizer, rebuilds_ddp)
    if certify:
        handle.renew()
    logger.debug(handle.summary())
    for note in handle.notes:
        logger.info(note)
    return handle


def _apply(model: nn.Module, request: FreezeRequest, optimizer: Any, rebuilds_ddp: bool) -> None:
    """Check all that can be refused, then change the model and the optimizer."""
    root = unwrap(model)
    groups = [] if optimizer is None else optimizer_and_ddp.optimizers(optimizer)
    if not rebuilds_ddp:
        optimizer_and_ddp.refuse_live_ddp(parameters_to_change(root, request), "freeze")
    apply_request(root, request)
    attach(model)
    optimizer_and_ddp.take_out(groups, frozen_parameters(root, request))


def unfreeze(model: nn.Module, names: Sequence[str] | None = None, *, rebuilds_ddp: bool = False) -> None:
    """Undo every freeze of ``model``, or of the named modules: classes, ``requires_grad``, dropout, modes.

    A locked layer takes its parent's current mode, unless it differed from that before the freeze. Parameters
    are not put back into an optimizer. To undo one freeze of several, use ``handle.release()``: a module is
    released by its last owner.

    Raises:
        FreezeError: names of no module, or of modules that are not frozen, or a live DistributedDataParallel;
            nothing was changed then.
    """
    root = unwrap(model)
    record_replaced_modules(root)
    paths = None if names is None else _frozen_paths(root, names)
    chosen = _chosen(root, paths)
    if not rebuilds_ddp:
        optimizer_and_ddp.refuse_live_ddp(parameters_to_unfreeze(root, None, chosen), "unfreeze")
    known = _drop_from_requests(root, paths)
    foreign = {
        id(module): [token for token in module_state.tokens if token not in known]
        for module in root.modules()
        if (module_state := get_module_state(module)) is not None and id(module) in chosen
    }
    release(root, None, chosen)
    _mark_released(root, foreign)
    for module in list(root.modules()):
        tidy(module)
    for wrapper in compiled_wrappers(model):
        detach_if_idle(wrapper)


def _frozen_paths(root: nn.Module, names: Sequence[str]) -> list[str]:
    """The paths that ``names`` mean, all of them frozen at least in part."""
    plan = FreezePlan.of(names)
    known = [path for path, _, _ in walk(root) if path]
    frozen_paths = [path for path, module, _ in walk(root) if get_module_state(module) is not None]
    faults: list[str] = []
    paths: list[str] = []
    for entry in plan.entries:
        matched = match(root, entry)
        if not matched.paths:
            faults.append(no_such_module(entry, matched, known))
        elif not any(is_within(place, path) for place in frozen_paths for path in matched.paths):
            faults.append(f"{entry!r} is not frozen")
        paths += matched.paths
    if faults:
        raise FreezeError("\n".join(faults))
    return paths


def _chosen(root: nn.Module, paths: list[str] | None) -> frozenset[int]:
    """Ids of the modules to release."""
    return frozenset(
        id(module)
        for place, module, _ in walk(root)
        if paths is None or any(is_within(place, path) for path in paths)
    )


def _drop_from_requests(root: nn.Module, paths: list[str] | None) -> set[str]:
    """Remove ``paths`` from every request made at ``root`` or below; returns the tokens of those requests."""
    known: set[str] = set()
    for place, module, _ in list(walk(root)):
        state = get_freeze_state(module)
        if state is None:
            continue
        known |= set(state.requests)
        if paths is None or any(is_within(place, path) for path in paths):
            state.requests.clear()
            continue
        inside = [path[len(place) + 1 :] if place else path for path in paths if is_within(path, place)]
        for token, request in list(state.requests.items()):
            for path in inside:
                sets = request.module_set.remove(path), request.eval_set.remove(path)
                request = replace(request, module_set=sets[0], eval_set=sets[1])
            state.requests[token] = request
            if not request.module_set:
                del state.requests[token]
    return known


def _mark_released(root: nn.Module, foreign: dict[int, list[str]]) -> None:
    """Mark modules that a freeze of a root above ``root`` no longer owns."""
    for module in root.modules():
        tokens = foreign.get(id(module))
        if tokens:
            set_module_state(
                module, replace(get_module_state(module) or ModuleState(), released=tuple(tokens))
            )


@contextmanager
def frozen(model: nn.Module, names_or_plan: Sequence[str] | FreezePlan) -> Iterator[FreezeHandle]:
    """Freeze inside a ``with`` block: ``with frozen(model, ["vfe"]): ...``

    No certificate is taken on entry, which keeps it cheap; ``handle.renew()`` takes one.
    """
    handle = freeze(model, names_or_plan, certify=False)
    try:
        yield handle
    finally:
        handle.release()
