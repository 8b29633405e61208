"""Ask SLURM to run this job again after SIGUSR1, which `sbatch --signal=USR1@120` sends before the limit."""

from __future__ import annotations

import logging
import os
import signal
import subprocess


def requeue_after(number: int, logger: logging.Logger) -> None:
    """Run ``scontrol requeue $SLURM_JOB_ID`` where ``number`` is SIGUSR1; a failure is a warning."""
    if number != signal.SIGUSR1:
        return
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        logger.warning("--requeue needs SLURM_JOB_ID, which SLURM sets; the job is not run again.")
        return
    command = ["scontrol", "requeue", job]
    try:
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or error
        logger.warning("`%s` failed (%s): submit the job again.", " ".join(command), str(said).strip())
    else:
        logger.info("`%s`: SLURM runs the job again.", " ".join(command))
