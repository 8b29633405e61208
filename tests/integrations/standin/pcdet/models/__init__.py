"""build_network and what the loop calls."""

from collections import namedtuple

import numpy as np
import torch

from .detectors import build_detector


def build_network(model_cfg, num_class, dataset):
    return build_detector(model_cfg=model_cfg, num_class=num_class, dataset=dataset)


def load_data_to_gpu(batch_dict):
    for key, value in batch_dict.items():
        if isinstance(value, np.ndarray) and value.dtype.kind == "f":
            tensor = torch.from_numpy(value).float()
            batch_dict[key] = tensor.cuda() if torch.cuda.is_available() else tensor


def model_fn_decorator():
    ModelReturn = namedtuple("ModelReturn", ["loss", "tb_dict", "disp_dict"])

    def model_func(model, batch_dict):
        load_data_to_gpu(batch_dict)
        ret_dict, tb_dict, disp_dict = model(batch_dict)
        (model if hasattr(model, "update_global_step") else model.module).update_global_step()
        return ModelReturn(ret_dict["loss"].mean(), tb_dict, disp_dict)

    return model_func
