"""Loading into a frozen model of OpenPCDet: what its own loop would hide is kept, and raised where it shows.

OpenPCDet looks for a checkpoint to go on from in a ``try`` whose bare ``except`` takes the next older file,
and in the end starts at epoch 0 without a word. An error that must not be lost is kept in ``Session.fault``.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import torch

from pcdet_freeze.errors import CertificateError, CheckpointError, PCDetFreezeError
from pcdet_freeze.freezing import FreezePlan
from pcdet_freeze.freezing.certificate import compare
from pcdet_freeze.freezing.checkpoint_meta import CHECKPOINT_KEY, FreezeMetadata
from pcdet_freeze.freezing.schedule import phase_at
from pcdet_freeze.integrations.openpcdet.environment import cure_of
from pcdet_freeze.integrations.openpcdet.session import BEGUN, Session
from pcdet_freeze.utils.safe_torch_load import allow_numpy_scalars

Load = Callable[[], Any]


def load_weights(session: Session, load: Load) -> Any:
    """``load_params_from_file``: what it fills is supplied, and the certificate is taken after it."""
    with allow_numpy_scalars():
        result = load()
    session.weights_are_loaded()
    return result


def load_all(session: Session, filename: str, load: Load) -> Any:
    """``load_params_with_optimizer``: only under the list that the checkpoint was written with.

    Raises:
        CheckpointError: another list; it is raised again when the training begins.
        CertificateError: the state is not what its own certificate says; likewise.
    """
    state = read(filename)
    try:
        if state is not None:
            check_same_list(state, session.plan, filename)
            enter_phase(state, session)
        with allow_numpy_scalars():
            result = load()
        check_certificate(state, session, filename)
    except PCDetFreezeError as error:
        if not session.fault_is_final:  # of the newest file: OpenPCDet goes on to older ones
            session.fault, session.fault_is_final = error, True
        raise
    except Exception as error:
        if not session.fault_is_final:
            session.fault = cannot_resume(filename, error)
        raise
    if session.fault is not None and not session.fault_is_final:
        session.logger.warning("pcdet_freeze: %s Going on from %s instead.", session.fault, filename)
        session.fault = None
    session.weights_are_loaded()
    return result


def unfrozen_fault(filename: str, error: Exception) -> CheckpointError | None:
    """What must not be hidden where a model without a list could not load a checkpoint with one."""
    try:
        check_same_list(read(filename), FreezePlan(), filename)
    except CheckpointError as fault:
        fault.__cause__ = error
        return fault
    return None


def read(filename: str) -> dict[str, Any] | None:
    """A whole checkpoint, in memory that is shared with the file; None where it cannot be read."""
    try:
        # read with torch's own default, as OpenPCDet reads it
        with allow_numpy_scalars():
            state = torch.load(filename, map_location="cpu", mmap=zipfile.is_zipfile(filename))
    except Exception:
        # whatever is wrong with the file, OpenPCDet's own reading of it tells next
        return None
    return state if isinstance(state, dict) else None


def check_same_list(state: Mapping[str, Any] | None, plan: FreezePlan, filename: str) -> None:
    """CheckpointError unless the checkpoint was written under the list and schedule of ``plan``."""
    changes = FreezeMetadata.of(state).changes(plan)
    if changes:
        raise CheckpointError(
            "A run must go on with the list MODEL.NOT_TRAIN_IN_MULTI_TASK that its checkpoint was written "
            f"with, and its FREEZE.SCHEDULE, but {filename} differs (- then, + now):\n  "
            + "\n  ".join(changes)
            + "\nTo start a new stage from these weights, give the file as --pretrained_model and choose "
            "another --extra_tag. (OpenPCDet alone would start at epoch 0 here.)"
        )


def enter_phase(state: Mapping[str, Any], session: Session) -> None:
    """Let train what trained when the checkpoint was written: its optimizer state is of that."""
    begun = int(((state.get(CHECKPOINT_KEY) or {}).get("freeze") or {}).get(BEGUN, 0))
    if phase_at(session.spans, begun) is not session.span:
        session.enter(begun)


def check_certificate(state: Mapping[str, Any] | None, session: Session, filename: str) -> None:
    """CertificateError where the loaded frozen state is not what the file's own certificate says."""
    stored = FreezeMetadata.of(state).certificate
    if stored is None:
        return
    changed = compare(stored, session.handle.certificate())
    if changed:
        raise CertificateError(
            f"The frozen state of a checkpoint must be what its own certificate says, but {filename} differs "
            "in:\n  "
            + "\n  ".join(changed)
            + "\nThe file was changed after it was written: resume from another."
        )


def cannot_resume(filename: str, error: Exception) -> CheckpointError:
    """What to raise when the training begins although ``filename`` could not be loaded."""
    cure = cure_of(error) or (
        "Remove the file, or choose another --extra_tag to start anew on purpose. (OpenPCDet alone would "
        "start at epoch 0 here.)"
    )
    told = str(error).strip().splitlines()
    fault = CheckpointError(
        f"A run must go on from its checkpoint, but {filename} could not be loaded: {type(error).__name__}: "
        f"{told[0] if told else 'no message'} {cure}"
    )
    fault.__cause__ = error
    return fault
