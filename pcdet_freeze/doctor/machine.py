"""Checks of disk, memory, shared memory, limits and the folder of outputs."""

from __future__ import annotations

import os
from collections.abc import Iterator

from pcdet_freeze.doctor.checks import Case, NotApplicable, check

GB = 10**9
LEAST_DISK, LEAST_MEMORY, LEAST_SHM = 2 * GB, 2 * GB, GB // 2
LEAST_FILES = 1024


@check("disk", "free disk space", "warning", "free disk space, or choose another --output_dir")
def disk(case: Case) -> Iterator[str]:
    free = _known(case.facts.free_disk, "free disk space")
    if free < LEAST_DISK:
        yield f"{free / GB:.2f} GB are free for {case.output}; the checkpoints of a run can need more"


@check(
    "output", "the output folder can be written", "error", "choose another --output_dir, or change its owner"
)
def output(case: Case) -> Iterator[str]:
    folder = case.output.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        yield f"{folder} is no folder"
    elif not os.access(folder, os.W_OK | os.X_OK):
        yield f"{folder} cannot be written to by this user"


@check(
    "memory",
    "free memory",
    "warning",
    "end other programs, or use fewer --workers and a smaller --batch_size",
)
def memory(case: Case) -> Iterator[str]:
    free = _known(case.facts.free_memory, "free memory")
    if free < LEAST_MEMORY:
        yield f"{free / GB:.2f} GB of memory are free; a loader that is killed for memory hangs or ends a run"


@check(
    "shm",
    "shared memory of the loader processes",
    "warning",
    "docker run --shm-size=8g (or --ipc=host), or train with --workers 0",
)
def shm(case: Case) -> Iterator[str]:
    free = _known(case.facts.free_shm, "shared memory")
    if case.workers == 0:
        raise NotApplicable("without loader processes no batch goes through shared memory")
    if free < LEAST_SHM:
        yield (
            f"/dev/shm has {free / 1e6:.0f} MB, through which {case.workers} loader processes send batches: "
            '"Bus error. It is possible that dataloader\'s workers are out of shared memory"'
        )


@check("open-files", "number of open files", "warning", "ulimit -n 65536, before the training")
def open_files(case: Case) -> Iterator[str]:
    limit = _known(case.facts.open_files, "limit of open files")
    if limit < LEAST_FILES:
        yield f'a process may open {limit} files; loader processes need more: "Too many open files"'


def _known(value: int | None, what: str) -> int:
    if value is None:
        raise NotApplicable(f"this system does not tell its {what}")
    return value
