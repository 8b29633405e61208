# ruff: noqa: E501, I001, F401
"""Trains, in OpenPCDet's order. Its search for a checkpoint hides every error."""

import _init_path
import argparse
import glob
import inspect
import os
from pathlib import Path

import torch
from test import repeat_eval_ckpt
from torch import nn

from pcdet.config import cfg, cfg_from_list, cfg_from_yaml_file, log_config_to_file
from pcdet.datasets import build_dataloader
from pcdet.models import build_network, model_fn_decorator
from pcdet.utils import common_utils
from train_utils.optimization import build_optimizer, build_scheduler
from train_utils.train_utils import train_model


def parse_config():
    parser = argparse.ArgumentParser()
    parser.add_argument("--cfg_file", type=str)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--extra_tag", type=str, default="default")
    parser.add_argument("--ckpt", type=str)
    parser.add_argument("--pretrained_model", type=str)
    parser.add_argument("--launcher", choices=["none", "pytorch"], default="none")
    parser.add_argument("--sync_bn", action="store_true")
    parser.add_argument("--set", dest="set_cfgs", default=None, nargs=argparse.REMAINDER)
    args = parser.parse_args()
    cfg_from_yaml_file(args.cfg_file, cfg)
    cfg.TAG = Path(args.cfg_file).stem
    cfg.EXP_GROUP_PATH = "/".join(args.cfg_file.split("/")[1:-1])
    if args.set_cfgs is not None:
        cfg_from_list(args.set_cfgs, cfg)
    return args, cfg


def main():
    args, cfg = parse_config()
    dist_train = args.launcher != "none"
    if dist_train:
        _, cfg.LOCAL_RANK = common_utils.init_dist_pytorch(
            18888, int(os.environ["LOCAL_RANK"]), backend="nccl"
        )
    common_utils.set_random_seed(666 + cfg.LOCAL_RANK)
    output_dir = cfg.ROOT_DIR / "output" / cfg.EXP_GROUP_PATH / cfg.TAG / args.extra_tag
    ckpt_dir = output_dir / "ckpt"
    ckpt_dir.mkdir(parents=True, exist_ok=True)
    logger = common_utils.create_logger(output_dir / "train.log", rank=cfg.LOCAL_RANK)
    log_config_to_file(cfg, logger=logger)

    train_set, train_loader, train_sampler = build_dataloader(
        cfg.DATA_CONFIG,
        cfg.CLASS_NAMES,
        args.batch_size,
        dist=dist_train,
        workers=args.workers,
        logger=logger,
    )
    model = build_network(model_cfg=cfg.MODEL, num_class=len(cfg.CLASS_NAMES), dataset=train_set)
    if args.sync_bn:
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if torch.cuda.is_available():
        model.cuda()
    optimizer = build_optimizer(model, cfg.OPTIMIZATION)

    start_epoch = it = 0
    last_epoch = -1
    if args.pretrained_model is not None:
        model.load_params_from_file(filename=args.pretrained_model, to_cpu=dist_train, logger=logger)
    if args.ckpt is not None:
        it, start_epoch = model.load_params_with_optimizer(
            args.ckpt, to_cpu=dist_train, optimizer=optimizer, logger=logger
        )
        last_epoch = start_epoch + 1
    else:
        ckpt_list = sorted(glob.glob(str(ckpt_dir / "*.pth")), key=os.path.getmtime)
        while ckpt_list:
            try:
                it, start_epoch = model.load_params_with_optimizer(
                    ckpt_list[-1], to_cpu=dist_train, optimizer=optimizer, logger=logger
                )
                last_epoch = start_epoch + 1
                break
            except:  # noqa: E722  the trap: whatever was raised, the run starts anew
                ckpt_list = ckpt_list[:-1]

    model.train()
    if dist_train:
        ids = [cfg.LOCAL_RANK] if torch.cuda.is_available() else None
        model = nn.parallel.DistributedDataParallel(model, device_ids=ids)
    lr_scheduler, lr_warmup_scheduler = build_scheduler(
        optimizer, len(train_loader), args.epochs, last_epoch, cfg.OPTIMIZATION
    )
    more = {"logger": logger} if "logger" in inspect.signature(train_model).parameters else {}
    logger.info("start training from epoch %d", start_epoch)
    train_model(
        model, optimizer, train_loader, model_func=model_fn_decorator(), lr_scheduler=lr_scheduler,
        optim_cfg=cfg.OPTIMIZATION, start_epoch=start_epoch, total_epochs=args.epochs, start_iter=it,
        rank=cfg.LOCAL_RANK, tb_log=None, ckpt_save_dir=ckpt_dir, train_sampler=train_sampler,
        lr_warmup_scheduler=lr_warmup_scheduler, **more,
    )  # fmt: skip

    inner = model.module if dist_train else model
    total = sum(value.detach().double().sum() for value in inner.parameters())
    print(f"weights of rank {cfg.LOCAL_RANK}: {total.item().hex()}", flush=True)

    _, test_loader, _ = build_dataloader(
        cfg.DATA_CONFIG, cfg.CLASS_NAMES, args.batch_size, dist=dist_train, workers=args.workers, logger=logger,
        training=False,
    )  # fmt: skip
    repeat_eval_ckpt(inner, test_loader, args, output_dir, logger, ckpt_dir, dist_test=dist_train)
    if dist_train:
        model = inner = optimizer = None
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
