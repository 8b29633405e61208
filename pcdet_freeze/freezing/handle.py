"""What ``freeze`` returns: names, report, certificate, release."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from pcdet_freeze.errors import CertificateError, FreezeError
from pcdet_freeze.freezing import summary as tables
from pcdet_freeze.freezing.apply import frozen_parameters
from pcdet_freeze.freezing.entries.paths import path_of, unwrap
from pcdet_freeze.freezing.entries.resolve import Resolution
from pcdet_freeze.freezing.optimizer_and_ddp import refuse_live_ddp
from pcdet_freeze.freezing.plan import FreezePlan
from pcdet_freeze.freezing.reapply_hook import detach, detach_if_idle, reapply, record_replaced_modules
from pcdet_freeze.freezing.release import parameters_to_unfreeze, release
from pcdet_freeze.freezing.state import ROOT, FreezeRequest, get_freeze_state, get_module_state
from pcdet_freeze.freezing.verification.certificate import (
    Certificate,
    certify,
    compare,
    extra_states,
    frozen_tensors,
    match_names,
)
from pcdet_freeze.utils.distributed import agree


class FreezeHandle:
    """One freeze of one model. It applies to that model, not to copies of it."""

    def __init__(
        self, root: nn.Module, token: str, resolution: Resolution, wrappers: tuple[nn.Module, ...] = ()
    ) -> None:
        self.model = root
        """The frozen model, without wrappers."""
        self.token = token
        self.plan: FreezePlan = resolution.plan
        self.resolution = resolution
        self.notes: tuple[str, ...] = tuple(resolution.notes)
        """Merged entries, entries with nothing to freeze, accepted sharing."""
        self._wrappers = wrappers
        self._baseline: Certificate | None = None

    @property
    def request(self) -> FreezeRequest | None:
        """This freeze as it is kept on the model; None once it is released."""
        state = get_freeze_state(self.model)
        return None if state is None else state.requests.get(self.token)

    def _active_request(self, verb: str) -> FreezeRequest | None:
        """The request, or None where the list was empty; FreezeError where the freeze was released."""
        request = self.request
        if request is None and self.plan:
            raise FreezeError(
                f"{verb} needs an active freeze, but this one was released: call freeze() again"
            )
        return request

    @property
    def entries(self) -> tuple[str, ...]:
        """The list as it was written."""
        return self.plan.entries

    @property
    def names(self) -> tuple[str, ...]:
        """Paths of the outermost frozen modules, aliases and globs resolved; empty once released."""
        request = self.request
        return () if request is None else request.module_set.names(self.model)

    def parameters(self) -> list[nn.Parameter]:
        """Every parameter that this freeze freezes, once."""
        request = self.request
        return [] if request is None else frozen_parameters(self.model, request)

    def norm_layers(self) -> tuple[str, ...]:
        """Paths of the norm layers that are locked in eval mode."""
        request = self.request
        return () if request is None else tables.norm_layers(self.model, request)

    def summary(self) -> str:
        """One line for the log."""
        return tables.summary(self.model, self.plan, self.request)

    def report(self) -> str:
        """A table of modules: parameters, frozen ones, locked layers, the freezing entry; and notes."""
        return tables.report(self.model, self.request, self.resolution, self.notes)

    def certificate(self) -> Certificate:
        """Digest the frozen state as it is now. Raises FreezeError once this freeze is released."""
        request = self._active_request("certificate")
        if request is None:
            return Certificate()
        reapply(self.model)
        return certify(self.model, self.request or request)

    def renew(self) -> Certificate:
        """Take a new certificate for :meth:`verify` to compare with, for example after loading weights."""
        self._baseline = self.certificate()
        return self._baseline

    def verify(
        self, other: Certificate | Mapping[str, Any] | nn.Module | None = None, *, agreed: bool = True
    ) -> None:
        """Raise CertificateError, on all ranks, if frozen state changed on any.

        Args:
            other: what it must equal: a certificate (or its plain form), another model, or None for the
                certificate that was taken when the freeze began or :meth:`renew` was called last.
            agreed: in a distributed run, wait for the verdict of all ranks: every rank must call this. False
                checks this rank alone.
        """
        request = self._active_request("verify")
        changed = [] if request is None else self._changes(other, request)
        verdict = agree(changed) if agreed else changed
        if verdict:
            raise CertificateError("\n".join(["frozen state changed:", *(f"  {line}" for line in verdict)]))

    def _changes(
        self, other: Certificate | Mapping[str, Any] | nn.Module | None, request: FreezeRequest
    ) -> list[str]:
        now = self.certificate()
        if isinstance(other, nn.Module):
            return compare(now, certify(unwrap(other), request))
        before = self._baseline if other is None else other
        if before is None:
            raise FreezeError("verify needs a certificate; none was computed: call renew() first or pass one")
        if not isinstance(before, Certificate):
            before = Certificate.from_plain(before)
        if other is None:
            kept = {
                name: value
                for name, value in before.digests.items()
                if request.module_set.contains(path_of(self.model, name).rpartition(".")[0])
            }
            before = replace(before, digests=kept)
        return compare(before, now)

    def sync(self, copy: nn.Module) -> None:
        """Copy the frozen state to ``copy`` (an EMA, a teacher) bit for bit.

        Raises FreezeError, and changes nothing, where the copy lacks a tensor or has another shape or dtype.
        """
        request = self._active_request("sync")
        if request is None:
            return
        ours = {name: tensor for name, tensor, _ in frozen_tensors(self.model, request)}
        theirs = {name: tensor for name, tensor, _ in frozen_tensors(unwrap(copy), request)}
        theirs = {ours_name: theirs[name] for name, ours_name in match_names(theirs, ours).items()}
        faults = [f"  {name}" for name, tensor in ours.items() if not _fits(theirs.get(name), tensor)]
        if faults:
            rule = "sync needs a copy with the same frozen tensors; missing, or of another shape or dtype:"
            raise FreezeError("\n".join([rule, *faults]))
        with torch.no_grad():
            for name, tensor in ours.items():
                theirs[name].copy_(tensor)
        sources = dict(extra_states(self.model, request))
        targets = dict(extra_states(unwrap(copy), request))
        for name, source_name in match_names(targets, sources).items():
            targets[name].set_extra_state(sources[source_name].get_extra_state())

    def release(self, *, rebuilds_ddp: bool = False) -> None:
        """Undo this freeze; modules of another freeze stay frozen. A second call does nothing.

        Raises FreezeError where a live DistributedDataParallel has a parameter that would train again, unless
        ``rebuilds_ddp``: the caller wraps the model in a new one.
        """
        tokens = frozenset({self.token})
        record_replaced_modules(self.model)
        if not rebuilds_ddp:
            refuse_live_ddp(parameters_to_unfreeze(self.model, tokens), "unfreeze")
        release_request(self.model, self.token)
        for wrapper in self._wrappers:
            detach_if_idle(wrapper)

    def __repr__(self) -> str:
        return f"<FreezeHandle: {self.summary()}>"


def _fits(theirs: torch.Tensor | None, ours: torch.Tensor) -> bool:
    return theirs is not None and theirs.shape == ours.shape and theirs.dtype == ours.dtype


def release_request(root: nn.Module, token: str) -> None:
    """Undo one request of ``root``; after the last one, remove the hook and the freeze state."""
    state = get_freeze_state(root)
    if state is None or token not in state.requests:
        return
    del state.requests[token]
    release(root, frozenset({token}))
    tidy(root)


def tidy(root: nn.Module) -> None:
    """Remove what no request needs any more."""
    state = get_freeze_state(root)
    if state is None:
        return
    if not state.requests:
        detach(root)
        del root.__dict__[ROOT]
        return
    frozen_paths = {
        path
        for request in state.requests.values()
        for path, module, _ in request.module_set.modules(root)
        if get_module_state(module) is not None
    }
    state.saved_states = {
        path: module_state for path, module_state in state.saved_states.items() if path in frozen_paths
    }
