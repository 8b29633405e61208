#!/usr/bin/env bash
#SBATCH --job-name=pcdet_freeze
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=USR1@180
# Train under SLURM, over as many time limits as it needs:
#
#   sbatch tools/scripts/slurm_train.sh --cfg_file cfgs/kitti_models/pointpillar.yaml --extra_tag run1
#
# 180 s before the limit SLURM sends SIGUSR1 to the ranks. They finish their step, write a checkpoint, and with
# --requeue rank 0 runs `scontrol requeue $SLURM_JOB_ID`; the job that starts next resumes. Preemption and
# scancel send SIGTERM: a checkpoint is written, too. Options of sbatch on the command line replace those above.
set -euo pipefail
TOOLS=${TOOLS:-${SLURM_SUBMIT_DIR:-.}/tools}
exec srun --kill-on-bad-exit=1 "${PYTHON:-python}" "$TOOLS/train.py" --launcher slurm --requeue "$@"
