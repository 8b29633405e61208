# ruff: noqa: E501
"""What all detectors share: modules in the order of the topology, loading, post-processing."""

import os

import torch
from torch import nn

from ... import VERSION
from .. import parts


class Detector3DTemplate(nn.Module):
    def __init__(self, model_cfg, num_class, dataset):
        super().__init__()
        self.model_cfg, self.num_class, self.dataset = model_cfg, num_class, dataset
        self.class_names = dataset.class_names
        self.register_buffer("global_step", torch.LongTensor(1).zero_())
        self.module_topology = [
            "vfe", "backbone_3d", "map_to_bev_module", "pfe", "backbone_2d", "dense_head", "point_head", "roi_head",
        ]  # fmt: skip

    @property
    def mode(self):
        return "TRAIN" if self.training else "TEST"

    def update_global_step(self):
        self.global_step += 1

    def build_networks(self):
        made = {name: self.make(name) for name in self.module_topology}
        for name, module in made.items():
            self.add_module(name, module)
        return [module for module in made.values() if module is not None]

    def make(self, name):
        """The module that the config asks for under the name of its place, or None."""
        kind = self.model_cfg.get({"map_to_bev_module": "MAP_TO_BEV"}.get(name, name.upper()))
        if kind is None:
            return None
        if name == "dense_head" and kind.NAME == "DenseHead":
            return parts.DenseHead(predict_boxes_when_training=self.model_cfg.get("ROI_HEAD") is not None)
        part = getattr(parts, kind.NAME)
        return part(kind) if getattr(part, "reads_config", False) else part()

    def post_processing(self, batch_dict):
        scores = batch_dict["batch_cls_preds"]
        return [{"pred_scores": of_frame} for of_frame in (scores if scores.dim() == 3 else [scores])], {}

    def _load_state_dict(self, model_state_disk, *, strict=True):
        own = self.state_dict()
        fits = {
            key: value
            for key, value in model_state_disk.items()
            if key in own and own[key].shape == value.shape
        }
        if strict:
            self.load_state_dict(fits)
        else:
            own.update(fits)
            self.load_state_dict(own)
        return own, fits

    def _load_params(self, filename, logger, to_cpu):
        if not os.path.isfile(filename):
            raise FileNotFoundError
        checkpoint = torch.load(filename, map_location=torch.device("cpu") if to_cpu else None)
        own, fits = self._load_state_dict(checkpoint["model_state"], strict=False)
        logger.info("==> Done (loaded %d/%d)", len(fits), len(own))

    if VERSION == "8caccce":

        def load_params_from_file(self, filename, logger, to_cpu=False, pre_trained_path=None):
            self._load_params(filename, logger, to_cpu)

    else:

        def load_params_from_file(self, filename, logger, to_cpu=False):
            self._load_params(filename, logger, to_cpu)

    def load_params_with_optimizer(self, filename, to_cpu=False, optimizer=None, logger=None):
        if not os.path.isfile(filename):
            raise FileNotFoundError
        checkpoint = torch.load(filename, map_location=torch.device("cpu") if to_cpu else None)
        self._load_state_dict(checkpoint["model_state"], strict=True)
        if optimizer is not None:
            optimizer.load_state_dict(checkpoint["optimizer_state"])
        logger.info("==> Done (resumed from %s)", filename)
        return checkpoint.get("it", 0.0), checkpoint.get("epoch", -1)
