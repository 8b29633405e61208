"""What ``freeze`` gives back: names, report, proof, and the way back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from pcdet_freeze.errors import CertificateError, FreezeError
from pcdet_freeze.freezing import summary as tables
from pcdet_freeze.freezing.apply import frozen_parameters, parameters_to_thaw, release
from pcdet_freeze.freezing.certificate import Certificate, certify, compare, extra_states, frozen_tensors
from pcdet_freeze.freezing.optimizer_and_ddp import refuse_live_ddp
from pcdet_freeze.freezing.paths import unwrap
from pcdet_freeze.freezing.plan import FreezePlan
from pcdet_freeze.freezing.reapply_hook import detach, detach_if_idle, put_right
from pcdet_freeze.freezing.resolve import Resolution
from pcdet_freeze.freezing.state import ROOT, Claim, record_of, state_of
from pcdet_freeze.utils.agreement import agree


class FreezeHandle:
    """One freeze of one model. It belongs to the model it was made for, not to copies of that model."""

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
    def claim(self) -> Claim | None:
        """What the model remembers of this freeze; None once it is released."""
        state = state_of(self.model)
        return None if state is None else state.claims.get(self.token)

    def _held_claim(self, verb: str) -> Claim | None:
        """The claim, or None where the list was empty; FreezeError where the freeze was released."""
        claim = self.claim
        if claim is None and self.plan:
            raise FreezeError(f"{verb} needs a freeze that is held; this one was released: freeze again")
        return claim

    @property
    def entries(self) -> tuple[str, ...]:
        """The list as it was written."""
        return self.plan.entries

    @property
    def names(self) -> tuple[str, ...]:
        """Paths of the outermost frozen modules, aliases and globs resolved; empty once released."""
        claim = self.claim
        return () if claim is None else claim.cover.names(self.model)

    def parameters(self) -> list[nn.Parameter]:
        """Every parameter that this freeze holds, once."""
        claim = self.claim
        return [] if claim is None else frozen_parameters(self.model, claim)

    def norm_layers(self) -> tuple[str, ...]:
        """Paths of the norm layers that are held."""
        claim = self.claim
        return () if claim is None else tables.norm_layers(self.model, claim)

    def summary(self) -> str:
        """One line for the log."""
        return tables.summary(self.model, self.plan, self.claim)

    def report(self) -> str:
        """A table of the model's modules: parameters, frozen ones, held layers, by which entry; and notes."""
        return tables.report(self.model, self.claim, self.resolution, self.notes)

    def certificate(self) -> Certificate:
        """Digest the frozen state as it is now. Raises FreezeError once this freeze is released."""
        claim = self._held_claim("certificate")
        if claim is None:
            return Certificate()
        put_right(self.model)
        return certify(self.model, self.claim or claim)

    def renew(self) -> Certificate:
        """Take the certificate that :meth:`verify` compares with anew (after loading weights, say)."""
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
        claim = self._held_claim("verify")
        changed = [] if claim is None else self._changes(other, claim)
        verdict = agree(changed) if agreed else changed
        if verdict:
            raise CertificateError("\n".join(["frozen state changed:", *(f"  {line}" for line in verdict)]))

    def _changes(self, other: Certificate | Mapping[str, Any] | nn.Module | None, claim: Claim) -> list[str]:
        now = self.certificate()
        if isinstance(other, nn.Module):
            return compare(now, certify(unwrap(other), claim))
        before = self._baseline if other is None else other
        if before is None:
            raise FreezeError("verify needs a certificate; none was taken: call renew() first or pass one")
        if not isinstance(before, Certificate):
            before = Certificate.from_plain(before)
        if other is None:
            kept = {name: value for name, value in before.digests.items() if claim.cover.holds(_holder(name))}
            before = Certificate(kept, before.entries)
        return compare(before, now)

    def sync(self, copy: nn.Module) -> None:
        """Write the frozen state into ``copy`` (an EMA, a teacher) bit for bit.

        Raises FreezeError, and changes nothing, where the copy lacks a tensor or has another shape or dtype.
        """
        claim = self._held_claim("sync")
        if claim is None:
            return
        ours = {name: tensor for name, tensor, _ in frozen_tensors(self.model, claim)}
        theirs = {name: tensor for name, tensor, _ in frozen_tensors(unwrap(copy), claim)}
        faults = [f"  {name}" for name, tensor in ours.items() if not _fits(theirs.get(name), tensor)]
        if faults:
            rule = "sync needs a copy with the same frozen tensors; missing, or of another shape or dtype:"
            raise FreezeError("\n".join([rule, *faults]))
        with torch.no_grad():
            for name, tensor in ours.items():
                theirs[name].copy_(tensor)
        sources = dict(extra_states(self.model, claim))
        for name, module in extra_states(unwrap(copy), claim):
            if name in sources:
                module.set_extra_state(sources[name].get_extra_state())

    def release(self, *, rebuilds_ddp: bool = False) -> None:
        """Undo this freeze; what another freeze also owns stays frozen. A second call does nothing.

        Raises FreezeError where a live DistributedDataParallel holds a parameter that would train again,
        unless ``rebuilds_ddp`` says that the model is wrapped anew.
        """
        tokens = frozenset({self.token})
        if not rebuilds_ddp:
            refuse_live_ddp(parameters_to_thaw(self.model, tokens), "unfreeze")
        release_claim(self.model, self.token)
        for wrapper in self._wrappers:
            detach_if_idle(wrapper)

    def __repr__(self) -> str:
        return f"<FreezeHandle: {self.summary()}>"


def _holder(name: str) -> str:
    return name.rpartition(".")[0]


def _fits(theirs: torch.Tensor | None, ours: torch.Tensor) -> bool:
    return theirs is not None and theirs.shape == ours.shape and theirs.dtype == ours.dtype


def release_claim(root: nn.Module, token: str) -> None:
    """Undo one claim of ``root``; the last one takes the hook and the root's record along."""
    state = state_of(root)
    if state is None or token not in state.claims:
        return
    del state.claims[token]
    release(root, frozenset({token}))
    tidy(root)


def tidy(root: nn.Module) -> None:
    """Forget what no claim needs any more."""
    state = state_of(root)
    if state is None:
        return
    if not state.claims:
        detach(root)
        del root.__dict__[ROOT]
        return
    owned = {
        path
        for claim in state.claims.values()
        for path, module, _ in claim.cover.modules(root)
        if record_of(module) is not None
    }
    state.memory = {path: record for path, record in state.memory.items() if path in owned}
