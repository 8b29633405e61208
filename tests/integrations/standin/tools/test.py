"""Evaluation, as far as a training script needs it."""

import torch


def repeat_eval_ckpt(model, test_loader, args, eval_output_dir, logger, ckpt_dir, dist_test=False):
    model.eval()
    for path in sorted(ckpt_dir.glob("*.pth")):
        model.load_state_dict(torch.load(path, weights_only=False)["model_state"])
        for batch_dict in test_loader:
            batch_dict["points"] = torch.from_numpy(batch_dict["points"])
            batch_dict["gt_boxes"] = torch.from_numpy(batch_dict["gt_boxes"])
            with torch.no_grad():
                model(batch_dict)
        logger.info("evaluated %s", path.name)
