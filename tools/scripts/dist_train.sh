#!/usr/bin/env bash
# Train on all GPUs of one machine, or of several.
#
#   one machine:  tools/scripts/dist_train.sh NUM_GPUS --cfg_file cfgs/kitti_models/pointpillar.yaml
#   two machines: NNODES=2 RDZV_ENDPOINT=host0:29400 tools/scripts/dist_train.sh NUM_GPUS --cfg_file ...
#                 the same line on each; host0 is one of them
#   elastic:      NNODES=1:4 ...: goes on with the machines that are there, from the newest checkpoint
#
# MAX_RESTARTS (default 3): how often the run starts again after a rank was killed. A signal to this script
# reaches the ranks, which finish their step, write a checkpoint and end; see docs/reliability.md.
set -euo pipefail
NGPUS=${1:?usage: dist_train.sh NUM_GPUS --cfg_file CFG ...}
shift
exec "$(dirname "$0")/launch.sh" train "$NGPUS" "$@"
