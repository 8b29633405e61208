#!/usr/bin/env bash
# What can be tried on a GPU only. From the project's root, in an environment with the CUDA build of torch:
#
#   tools/gpu_check.sh                                                    # the project alone, some minutes
#   OPENPCDET=/path/to/OpenPCDet CFG=cfgs/kitti_models/pointpillar.yaml CKPT=/path/to/pointpillar.pth \
#       LIST=vfe,backbone_2d tools/gpu_check.sh                           # and the plugin, in OpenPCDet with data
#
# It ends with exit code 0 if everything holds, 1 at the first failure, 2 without a GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH=$PWD
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
if [ "$gpus" = 0 ]; then
    echo "gpu_check.sh needs a GPU and the CUDA build of torch, but torch finds none" >&2
    exit 2
fi

step() { echo; echo "== $*"; }

# train.py ARGS: three tasks on simulated scenes, the pillar encoder and the 2D backbone frozen
train() {
    "$@" --cfg_file cfgs/synthetic_models/multi_task.yaml --output_dir "$out" --batch_size $((2 * gpus)) --workers 2 \
        --fix_random_seed --extra_tag "$tag" --max_iters "$iterations" "${more[@]}" \
        --set DATA_CONFIG.NUM_SCENES.train 40 DATA_CONFIG.NUM_SCENES.test 4 \
        MODEL.NOT_TRAIN_IN_MULTI_TASK vfe,backbone_2d.blocks MODEL.FREEZE.ALLOW_RANDOM True
}

step "tests on the GPU: cuDNN, autocast, GradScaler, fused optimizers, one wait a certificate, NCCL"
python -m pytest -q -m cuda

for mode in "" "--use_amp"; do
    step "training in one process $mode, stopped and resumed"
    tag=one$mode more=($mode)
    iterations=6 train python tools/train.py
    iterations=12 train python tools/train.py
done

step "training under NCCL with $gpus processes and --sync_bn, stopped and resumed"
tag=nccl more=(--launcher pytorch --sync_bn)
iterations=6 train torchrun --nproc_per_node="$gpus" tools/train.py
iterations=12 train torchrun --nproc_per_node="$gpus" tools/train.py

if [ -n "${OPENPCDET:-}" ]; then
    : "${CFG:?the YAML, relative to the tools folder of OpenPCDet}" "${CKPT:?a checkpoint for it}" "${LIST:?names}"
    cd "$OPENPCDET/tools"
    for mode in "" "--use_amp"; do
        step "the plugin in OpenPCDet, one epoch $mode"
        python -m pcdet_freeze.openpcdet train.py --cfg_file "$CFG" --pretrained_model "$CKPT" --epochs 1 $mode \
            --extra_tag "gpu_check$mode" --set MODEL.NOT_TRAIN_IN_MULTI_TASK "$LIST"
    done
    step "the plugin in OpenPCDet under NCCL with $gpus processes, one epoch"
    torchrun --nproc_per_node="$gpus" -m pcdet_freeze.openpcdet train.py --launcher pytorch --cfg_file "$CFG" \
        --pretrained_model "$CKPT" --epochs 1 --extra_tag gpu_check_nccl --sync_bn \
        --set MODEL.NOT_TRAIN_IN_MULTI_TASK "$LIST"
fi

step "all checks passed"
