#!/usr/bin/env bash
# What can be tried on a GPU only, within eight minutes and offline. From the project's root, in an environment with a
# CUDA build of torch:
#
#   tools/gpu_check.sh [--json FILE] [--wheels DIR] [--seconds 480]
#   OPENPCDET=/path/to/OpenPCDet CFG=cfgs/kitti_models/pointpillar.yaml CKPT=/path/to/pointpillar.pth \
#       LIST=vfe,backbone_2d tools/gpu_check.sh                           # and the plugin, in OpenPCDet with data
#
# --wheels DIR: packages that are missing here are taken from the wheels in DIR, without a network. The three that may be
# missing altogether are spconv, easydict and tensorboardX. --device cpu tries the script itself, without a GPU.
# It prints one table and writes one JSON (gpu_check.json). Exit code 0 if everything holds, 1 if not, 2 without a GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
exec python tests/gpu_check.py "$@"
