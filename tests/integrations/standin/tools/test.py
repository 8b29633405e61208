# ruff: noqa: I001, F401
"""Evaluation, as far as a training script needs it, and of one checkpoint."""

import _init_path
import argparse
from pathlib import Path

import torch
from pcdet.config import cfg, cfg_from_yaml_file
from pcdet.datasets import build_dataloader
from pcdet.models import build_network, load_data_to_gpu
from pcdet.utils import common_utils


def eval_one_epoch(model, test_loader, logger, dist_test=False):
    model.eval()
    annos, dataset = [], test_loader.dataset
    for batch_dict in test_loader:
        load_data_to_gpu(batch_dict)
        with torch.no_grad():
            pred_dicts, _ = model(batch_dict)
        if hasattr(dataset, "evaluation"):
            annos += dataset.generate_prediction_dicts(batch_dict, pred_dicts, dataset.class_names)
    if annos and not dist_test:
        logger.info(dataset.evaluation(annos, dataset.class_names)[0])


def repeat_eval_ckpt(model, test_loader, args, eval_output_dir, logger, ckpt_dir, dist_test=False):
    for path in sorted(ckpt_dir.glob("*.pth")):
        model.load_state_dict(torch.load(path, weights_only=False)["model_state"])
        eval_one_epoch(model, test_loader, logger, dist_test)
        logger.info("evaluated %s", path.name)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--cfg_file", type=str)
    parser.add_argument("--ckpt", type=str)
    args = parser.parse_args()
    cfg_from_yaml_file(args.cfg_file, cfg)
    logger = common_utils.create_logger(cfg.ROOT_DIR / "test.log", rank=0)
    test_set, test_loader, _ = build_dataloader(
        cfg.DATA_CONFIG, cfg.CLASS_NAMES, 4, dist=False, workers=0, logger=logger, training=False
    )
    model = build_network(model_cfg=cfg.MODEL, num_class=len(cfg.CLASS_NAMES), dataset=test_set)
    model.load_params_from_file(filename=args.ckpt, logger=logger)
    eval_one_epoch(model, test_loader, logger)


if __name__ == "__main__":
    main()
