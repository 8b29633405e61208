"""Load checkpoints into a frozen model of OpenPCDet.

OpenPCDet resumes inside a ``try`` whose bare ``except`` falls back to the next older file, and in the end
starts silently at epoch 0. Errors that must not be lost are kept in ``Session.pending_error``, which the
beginning of the training raises.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import torch

from pcdet_freeze.errors import CertificateError, CheckpointError, PCDetFreezeError
from pcdet_freeze.freezing import FreezePlan
from pcdet_freeze.freezing.schedule import phase_at
from pcdet_freeze.freezing.verification.certificate import compare
from pcdet_freeze.freezing.verification.checkpoint_meta import CHECKPOINT_KEY, FreezeMetadata
from pcdet_freeze.integrations.openpcdet.command.environment import advice_for
from pcdet_freeze.integrations.openpcdet.session import BEGUN, Session
from pcdet_freeze.utils.untrusted_files.safe_torch_load import allow_numpy_scalars

Load = Callable[[], Any]


def load_weights(session: Session, load: Load) -> Any:
    """``load_params_from_file``: the tensors count as loaded, and the certificate is taken again."""
    with allow_numpy_scalars():
        result = load()
    session.renew_certificate()
    return result


def load_all(session: Session, filename: str, load: Load) -> Any:
    """``load_params_with_optimizer``: under the list that the checkpoint was written with only.

    Raises:
        CheckpointError: another list. It is raised again when the training begins.
        CertificateError: the state does not match its certificate. Likewise.
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
        if not session.pending_error_is_final:  # of the newest file: OpenPCDet then tries older ones
            session.pending_error, session.pending_error_is_final = error, True
        raise
    except Exception as error:
        if not session.pending_error_is_final:
            session.pending_error = resume_error(filename, error)
        raise
    if session.pending_error is not None and not session.pending_error_is_final:
        session.logger.warning("pcdet_freeze: %s Resuming from %s instead.", session.pending_error, filename)
        session.pending_error = None
    session.renew_certificate()
    return result


def error_without_list(filename: str) -> PCDetFreezeError | None:
    """The error if a model without a list must not load this checkpoint, which has one; else None."""
    state = read(filename)
    if state is None or CHECKPOINT_KEY not in state:
        return None
    try:
        check_same_list(state, FreezePlan(), filename)
    except PCDetFreezeError as refusal:  # another list, or damaged metadata
        return refusal
    return None


def read(filename: str) -> dict[str, Any] | None:
    """A whole checkpoint, memory-mapped; None if it cannot be read."""
    try:
        # with torch's default of weights_only, like OpenPCDet
        with allow_numpy_scalars():
            # torch 2.2 maps a file only if its name is a str
            state = torch.load(str(filename), map_location="cpu", mmap=zipfile.is_zipfile(filename))
    except Exception:
        # any error of the file: OpenPCDet reads it next and raises the same
        return None
    return state if isinstance(state, dict) else None


def check_same_list(state: Mapping[str, Any] | None, plan: FreezePlan, filename: str) -> None:
    """Raise CheckpointError unless the checkpoint was written with the list and schedule of ``plan``."""
    metadata = FreezeMetadata.of(state)
    changes = metadata.changes(plan)
    if changes:
        written = "with others" if metadata.entries else "by a run without a list, which froze nothing"
        raise CheckpointError(
            "A run can only be resumed with the MODEL.NOT_TRAIN_IN_MULTI_TASK and FREEZE.SCHEDULE of its "
            f"checkpoint, but {filename} was written {written} (- then, + now):\n  "
            + "\n  ".join(changes)
            + "\nTo start a new stage from these weights, pass the file as --pretrained_model and choose "
            "another --extra_tag."
        )


def enter_phase(state: Mapping[str, Any], session: Session) -> None:
    """Enter the phase of the schedule in which the checkpoint was written, as its optimizer state needs."""
    begun = int(((state.get(CHECKPOINT_KEY) or {}).get("freeze") or {}).get(BEGUN, 0))
    if phase_at(session.phases, begun) is not session.phase:
        session.enter_phase(begun)


def check_certificate(state: Mapping[str, Any] | None, session: Session, filename: str) -> None:
    """Raise CertificateError if the loaded frozen state does not match the certificate in the file."""
    stored = FreezeMetadata.of(state).certificate
    if stored is None:
        return
    changed = compare(stored, session.handle.certificate())
    if changed:
        raise CertificateError(
            f"The frozen state of a checkpoint must match its certificate, but {filename} differs in:\n  "
            + "\n  ".join(changed)
            + "\nThe file was changed after it was written: resume from another."
        )


def resume_error(filename: str, error: Exception) -> CheckpointError:
    """The error to raise when the training begins although ``filename`` could not be loaded."""
    advice = advice_for(error) or (
        "Remove the file, or choose another --extra_tag to start from the beginning. (OpenPCDet alone would "
        "restart at epoch 0.)"
    )
    lines = str(error).strip().splitlines()
    refusal = CheckpointError(
        f"A run must resume from its checkpoint, but {filename} could not be loaded: {type(error).__name__}: "
        f"{lines[0] if lines else 'no message'} {advice}"
    )
    refusal.__cause__ = error
    return refusal
