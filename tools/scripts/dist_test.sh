#!/usr/bin/env bash
# Evaluate on all GPUs of one machine, or of several (NNODES, RDZV_ENDPOINT: see dist_train.sh).
#
#   tools/scripts/dist_test.sh NUM_GPUS --cfg_file cfgs/kitti_models/pointpillar.yaml --ckpt checkpoint.pth
set -euo pipefail
NGPUS=${1:?usage: dist_test.sh NUM_GPUS --cfg_file CFG --ckpt FILE ...}
shift
MAX_RESTARTS=0 exec "$(dirname "$0")/launch.sh" test "$NGPUS" "$@"
