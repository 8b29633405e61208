"""Evaluation, as far as a training script needs it."""

import torch
from pcdet.models import load_data_to_gpu


def repeat_eval_ckpt(model, test_loader, args, eval_output_dir, logger, ckpt_dir, dist_test=False):
    model.eval()
    for path in sorted(ckpt_dir.glob("*.pth")):
        model.load_state_dict(torch.load(path, weights_only=False)["model_state"])
        annos, dataset = [], test_loader.dataset
        for batch_dict in test_loader:
            load_data_to_gpu(batch_dict)
            with torch.no_grad():
                pred_dicts, _ = model(batch_dict)
            if hasattr(dataset, "evaluation"):
                annos += dataset.generate_prediction_dicts(batch_dict, pred_dicts, dataset.class_names)
        if annos and not dist_test:
            logger.info(dataset.evaluation(annos, dataset.class_names)[0])
        logger.info("evaluated %s", path.name)
