"""Checkpoints: OpenPCDet's keys and one of ours, written atomically, read as plain data.

```
epoch            finished epochs
it               iterations done, over all epochs
model_state      the detector's state_dict, on CPU, without wrapper prefixes
optimizer_state  torch's own format, on CPU
version          'pcdet_freeze+<version>'
pcdet_freeze     plain data: optimizer_names (a list a group, in order), optimizer_kind, scaler, rng (a list,
                 one state a rank), sampler, skipped_steps, head_classes, seed, cfg_digest, entries of hooks
                 (freeze, bad_data)
```
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from pcdet_freeze import __version__
from pcdet_freeze.engine.checkpoint.head_classes import KEY as HEAD_CLASSES
from pcdet_freeze.engine.checkpoint.head_classes import classes_of_heads
from pcdet_freeze.engine.optim.optimizer import parameter_names
from pcdet_freeze.engine.optim.optimizer_state import kind_of
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.errors import CheckpointError
from pcdet_freeze.freezing.verification.checkpoint_meta import CHECKPOINT_KEY
from pcdet_freeze.utils import distributed
from pcdet_freeze.utils.host_copies import to_host
from pcdet_freeze.utils.rng import rng_state
from pcdet_freeze.utils.untrusted_files.safe_torch_load import load_checkpoint

EPOCH_FILE = re.compile(r"checkpoint_epoch_(\d+)\.pth")
PART_FILE = re.compile(r"\..+\.(\d+)\.part")


def checkpoint_state(trainer: Trainer, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return all that a run needs to resume exactly; a collective call. Hooks may add data or raise."""
    trainer.settle()  # a step that is not finite must not count
    distributed.share_buffers(trainer.model)
    model = distributed.unwrap(trainer.model)
    ours: dict[str, Any] = {
        "optimizer_names": parameter_names(model, trainer.optimizer),
        "optimizer_kind": kind_of(trainer.optimizer),
        "scaler": dict(trainer.scaler.state_dict()),
        "rng": distributed.gather(rng_state()),
        "sampler": {
            "epoch": trainer.epoch,
            "offset": trainer.offset,
            "length": trainer.epoch_length,
            "batches": len(trainer.loader),
            "accumulate": trainer.accumulate,
        },
        "skipped_steps": trainer.guard.skipped,
        HEAD_CLASSES: classes_of_heads(model),
        **(extra or {}),
    }
    for hook in trainer.hooks:
        hook.at_checkpoint(trainer, ours)
    states = {"model_state": dict(model.state_dict()), "optimizer_state": trainer.optimizer.state_dict()}
    return {
        "epoch": trainer.epoch,
        "it": trainer.iteration,
        **to_host(states),
        "version": f"pcdet_freeze+{__version__}",
        CHECKPOINT_KEY: ours,
    }


def save_checkpoint(state: Mapping[str, Any], path: str | Path) -> None:
    """Write ``state`` to ``path``: to a temporary file beside it, synced, then renamed.

    A reader of ``path`` finds the old file or the new one, complete. Raises CheckpointError if it cannot be
    written (a full disk); the old file is kept.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"A checkpoint must be written completely, but {path} could not be: {error}. Free disk space, "
            "or choose another --output_dir."
        ) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_unfinished(folder: Path, logger: logging.Logger) -> list[Path]:
    """Delete the temporary files of saves that were killed; those that a living process has open remain."""
    found = [(path, PART_FILE.fullmatch(path.name)) for path in folder.glob(".*.part")]
    gone = [path for path, match in found if match and not _is_open_in(int(match.group(1)), path)]
    for path in gone:
        path.unlink(missing_ok=True)
    if gone:
        logger.info("Deleted %d unfinished files of a killed run in %s", len(gone), folder)
    return gone


def _is_open_in(process: int, path: Path) -> bool:
    """Whether ``process`` of this machine has ``path`` open; without /proc, whether it lives."""
    handles = Path(f"/proc/{process}/fd")
    if not Path("/proc/self/fd").is_dir():
        return process != os.getpid() and _lives(process)
    with suppress(OSError):
        return any(handle.resolve() == path.resolve() for handle in handles.iterdir())
    return False


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def newest_checkpoint(folder: str | Path, logger: logging.Logger) -> tuple[Path, dict[str, Any]] | None:
    """Return the checkpoint in ``folder`` with the most iterations, and its content; None if there is none.

    The iteration is read from the file, so copied files keep their order. A broken file is skipped with a
    warning that names it and the one that is used instead; if all are broken, CheckpointError.
    """
    broken: list[str] = []
    _require_folder(Path(folder))
    files = sorted(Path(folder).glob("*.pth"))
    for path in sorted(files, key=lambda path: _progress(path, broken), reverse=True):
        if str(path) in broken:
            continue
        try:
            state = load_checkpoint(path)
        except CheckpointError as error:
            logger.warning("%s", error)
            broken.append(str(path))
            continue
        if broken:
            logger.warning("Skipped the broken %s; resuming from %s instead.", ", ".join(broken), path)
        return path, state
    if broken:
        raise CheckpointError(
            f"A run must resume from a valid checkpoint, but none in {folder} can be read: "
            f"{', '.join(broken)}. Delete them to start from the beginning, or choose another --extra_tag."
        )
    return None


def _require_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(
            f"Checkpoints are kept in a folder, but {folder} is a file. Move it away, or choose another "
            "--extra_tag."
        )


def _progress(path: Path, broken: list[str]) -> tuple[int, int]:
    try:
        state = load_checkpoint(path, mmap=True)
        return int(state.get("it") or 0), path.stat().st_mtime_ns
    except CheckpointError:
        broken.append(str(path))
        return -1, 0


def prune(folder: str | Path, keep: int) -> list[Path]:
    """Delete the oldest ``checkpoint_epoch_N.pth`` until ``keep`` are left, and no other file."""
    ours = [path for path in Path(folder).iterdir() if EPOCH_FILE.fullmatch(path.name)]
    ours.sort(key=epoch_of)
    gone = ours[: max(len(ours) - max(keep, 1), 0)]
    for path in gone:
        path.unlink()
    return gone


def epoch_of(path: Path) -> int:
    """N of ``checkpoint_epoch_N.pth``; -1 for any other name."""
    match = EPOCH_FILE.fullmatch(path.name)
    return int(match.group(1)) if match else -1


def cfg_digest(cfg: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a config's content; the order of its keys does not matter."""
    return hashlib.sha256(json.dumps(cfg, sort_keys=True, default=str).encode()).hexdigest()
