#!/usr/bin/env bash
# torchrun for tools/train.py and tools/test.py; used by dist_train.sh and dist_test.sh.
set -euo pipefail
COMMAND=$1 NGPUS=$2
shift 2
TOOLS=$(cd "$(dirname "$0")/.." && pwd)
# so that torchrun hands SIGUSR1 (SLURM's --signal) on to the ranks instead of ending by it
export TORCHELASTIC_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2
ENDPOINT=${RDZV_ENDPOINT:-localhost:0}
if [ "${NNODES:-1}" != 1 ] && [ -z "${RDZV_ENDPOINT:-}" ]; then
    echo "NNODES=$NNODES needs RDZV_ENDPOINT=HOST:PORT, the same on each machine" >&2
    exit 2
fi
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --nproc_per_node="$NGPUS" --max-restarts="${MAX_RESTARTS:-3}" \
    --rdzv-backend=c10d --rdzv-endpoint="$ENDPOINT" --rdzv-id="${RDZV_ID:-pcdet_freeze}" \
    "$TOOLS/$COMMAND.py" --launcher pytorch "$@"
