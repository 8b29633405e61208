"""Detector3DTemplate: builds the modules of the config, runs them in order, sums their losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pcdet_freeze.errors import ConfigError, DataError
from pcdet_freeze.freezing.data_flow.module_graph import How, require_loss, run_in_eval_mode, training_steps
from pcdet_freeze.models.context import BuildContext
from pcdet_freeze.models.detectors import several_heads
from pcdet_freeze.models.detectors.topology import TOPOLOGY, Part, read_model
from pcdet_freeze.models.head_outputs import merged_heads
from pcdet_freeze.models.loss_normalization import LossNormalization, for_log
from pcdet_freeze.models.loss_weights import NAME, LossScale, apply_loss_weights
from pcdet_freeze.models.post_processing import PostProcessingSettings, box_candidates, post_process
from pcdet_freeze.models.trunk_gradients import task_gradient_norms, trunk_of
from pcdet_freeze.utils.devices import is_accelerator
from pcdet_freeze.utils.host_copies import to_host
from pcdet_freeze.utils.settings.faults import raise_faults

LOSS_NAMES = {"dense_head": "loss_rpn", "point_head": "loss_point", "roi_head": "loss_rcnn"}


class Detector3DTemplate(nn.Module):
    """A detector: modules that run in the order of ``module_topology``.

    A head is a module with ``get_loss(tb_dict) -> (loss, tb_dict)``. The training loss is the sum over heads,
    weighted by ``MODEL.LOSS_WEIGHTS`` and, with ``MODEL.LEARN_LOSS_WEIGHTS``, by the ``loss_scale`` of each
    head. A head can implement ``add_predictions(batch_dict, pred_dicts)``, which adds keys to the dict of
    each sample, and ``predictions(batch_dict)``: keys with tensors that it reads there, which are then
    copied from a device together with all others.

    A head that is frozen as a whole returns no loss and gets no labels. During training it is skipped if the
    declared keys prove that no running module reads its outputs; otherwise it runs in eval mode. The same
    applies to other frozen modules. A subclass with its own ``get_training_loss`` declares the keys of the
    batch that it reads in ``reads_train``; without this declaration no module is skipped.

    Args:
        model_cfg: ``cfg.MODEL``.
        num_class: number of detection classes.
        dataset: object with class_names, point_feature_encoder.num_point_features, point_cloud_range,
        grid_size,
            voxel_size and depth_downsample_factor; it is not stored.

    Raises:
        ConfigError: all invalid keys of the config at once, or the first module whose shapes do not match.
    """

    module_topology = tuple(slot.attribute for slot in TOPOLOGY)
    PostProcessing: ClassVar[type[Any]] = PostProcessingSettings
    """dataclass of ``MODEL.POST_PROCESSING``"""
    predictions: ClassVar[str] = "batch_box_preds"
    """key of the batch that ``detect`` reads"""
    detect: ClassVar[Callable[..., Any]] = staticmethod(post_process)
    """(batch_dict, post_processing_settings) -> (pred_dicts, recall_dict)"""
    global_step: Tensor
    reads_train: tuple[str, ...] | None = ()
    """keys of the batch read by an own training loss; None: unknown"""
    measure_gradients: bool = False
    """add ``grad_norm_<head>`` to ``tb_dict`` in train mode (see trunk_gradients)"""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "get_training_loss" in cls.__dict__ and "reads_train" not in cls.__dict__:
            cls.reads_train = None

    def __init__(self, model_cfg: Mapping[str, Any], num_class: int, dataset: Any) -> None:
        super().__init__()
        names = tuple(getattr(dataset, "class_names", ())) or None
        settings, faults = read_model(model_cfg, self.PostProcessing, self.predictions, names)
        raise_faults(faults)
        parts = settings.parts
        self.post_processing_settings = settings.post_processing
        self.loss_weights = settings.loss_weights
        self.loss_normalization = LossNormalization(settings.loss_normalization)

        context = BuildContext.from_dataset(dataset, num_class)
        context.channels_last = settings.channels_last
        self.model_cfg = model_cfg
        self.num_class, self.class_names = num_class, list(context.class_names)
        self.register_buffer("global_step", torch.zeros(1, dtype=torch.long))
        self.module_names = tuple(part.slot.attribute for part in parts)
        for part in parts:
            self.add_module(part.slot.attribute, part.cls(part.settings, _context_of(part, context)))
        self.merged = merged_heads(self, [part.slot.attribute for part in parts if part.class_names])
        for part in parts if settings.learn_loss_weights else ():
            if hasattr(part.cls, "get_loss"):
                getattr(self, part.slot.attribute).add_module(NAME, LossScale())

    @property
    def mode(self) -> str:
        return "TRAIN" if self.training else "TEST"

    @property
    def module_list(self) -> list[nn.Module]:
        """The modules in execution order."""
        return [getattr(self, name) for name in self.module_names]

    def update_global_step(self) -> None:
        self.global_step += 1

    def forward(self, batch_dict: dict[str, Any]) -> Any:
        """Run all modules on ``batch_dict``, which is modified in place.

        Returns:
            In train mode ``({'loss': loss}, tb_dict, disp_dict)``; in eval mode ``(pred_dicts, recall_dict)``
            with one dict per sample: pred_boxes (K, 7), pred_scores (K,), pred_labels (K,) from 1.

        Raises:
            DataError: a module reads a key that is neither in the batch nor written by an earlier module.
        """
        batch_dict = self.run_modules(batch_dict)
        if self.training:
            loss, tb_dict, disp_dict = self.get_training_loss()
            return {"loss": loss}, tb_dict, disp_dict
        return self.post_processing(batch_dict)

    def run_modules(self, batch_dict: dict[str, Any]) -> dict[str, Any]:
        """Run all modules on ``batch_dict``, which is modified in place, without losses or predictions."""
        steps = training_steps(self) if self.training else None
        given = frozenset(batch_dict)
        for name in self.module_names:
            module, step = getattr(self, name), None if steps is None else steps[name]
            if step is not None and step.how is How.SKIP:
                continue
            _check_reads(name, module, batch_dict)
            if step is not None and step.how is How.EVAL:
                run_in_eval_mode(name, module, batch_dict, given)
            elif step is not None and step.unneeded:
                batch_dict = module(batch_dict, skip=step.unneeded)
            else:
                batch_dict = module(batch_dict)
        return batch_dict

    def get_training_loss(self) -> tuple[Tensor, dict[str, float], dict[str, Any]]:
        """Weighted sum of the losses of the last forward, its terms by name, and an empty ``disp_dict``."""
        losses, parts = self.get_head_losses()
        if not losses:
            require_loss(self)
            raise ConfigError(
                f"training requires a head with a loss; got none among {', '.join(self.module_names)}"
            )
        names = [LOSS_NAMES.get(name, f"loss_{name}") for name in losses]
        stacked = torch.stack(list(losses.values()))
        tb_dict = dict(zip(names, for_log(stacked), strict=True))
        for name in losses:
            if isinstance(scale := getattr(getattr(self, name), NAME, None), LossScale):
                tb_dict[f"loss_weight_{name}"] = scale.weight()
        weighted = self.weigh_losses(losses)
        if self.measure_gradients:
            norms = task_gradient_norms(weighted, trunk_of(self.module_list))
            tb_dict |= {f"grad_norm_{name}": norm for name, norm in norms.items()}
        return torch.stack(list(weighted.values())).sum(), {**tb_dict, **parts}, {}

    def weigh_losses(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weighted loss of each head."""
        return {
            name: apply_loss_weights(name, getattr(self, name), loss, self.loss_weights)
            for name, loss in losses.items()
        }

    def get_head_losses(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Loss of each trainable head by name, and the terms of all losses for the log."""
        losses: dict[str, Tensor] = {}
        parts: dict[str, float] = {}
        heads = self.heads_with_loss()
        self.loss_normalization.share(heads)
        for name, head in heads.items():
            losses[name], parts = head.get_loss(parts)
        return losses, parts

    def heads_with_loss(self) -> dict[str, Any]:
        """Heads that contribute a loss: those that are not frozen as a whole."""
        return {name: getattr(self, name) for name, step in training_steps(self).items() if step.loss}

    def post_processing(self, batch_dict: dict[str, Any]) -> tuple[list[dict[str, Tensor]], dict[str, float]]:
        """Detections and recall counts (see ``detect``), and the predictions of other heads.

        What they need is copied from a device together: predictions are on the CPU.
        """
        batch_dict = self._predictions_on_host(batch_dict)
        pred_dicts: list[dict[str, Tensor]] = [{} for _ in range(int(batch_dict["batch_size"]))]
        recall_dict: dict[str, float] = {}
        settings = self.post_processing_settings
        if self.merged and settings is not None:
            pred_dicts, recall_dict = post_process(batch_dict, settings, self.merged)
        elif settings is not None and self.predictions in batch_dict:
            pred_dicts, recall_dict = self.detect(batch_dict, settings)
        for module in self.module_list:
            add_predictions: Any = getattr(module, "add_predictions", None)
            if add_predictions is not None:
                add_predictions(batch_dict, pred_dicts)
        return pred_dicts, recall_dict

    def _predictions_on_host(self, batch_dict: dict[str, Any]) -> dict[str, Any]:
        """The batch, on an accelerator with the outputs that ``post_processing`` reads on the host."""
        if not is_accelerator(self.global_step):
            return batch_dict
        found: dict[str, Any] = {}
        settings = self.post_processing_settings
        if self.merged and settings is not None:
            found |= box_candidates(batch_dict, settings, self.merged)
        elif isinstance(settings, PostProcessingSettings) and self.predictions in batch_dict:
            found |= box_candidates(batch_dict, settings)
        for module in self.module_list:
            if hasattr(module, "predictions"):
                found |= module.predictions(batch_dict)  # type: ignore[operator]
        return {**batch_dict, **to_host(found)}


def _context_of(part: Part, context: BuildContext) -> BuildContext:
    """The context with which a module is built; one of several dense heads has classes of its own."""
    if not part.class_names:
        return context
    name = part.slot.attribute
    return context.of_head(part.slot.section, several_heads.suffix_of(name), part.class_names)


def _check_reads(name: str, module: nn.Module, batch_dict: Mapping[str, Any]) -> None:
    missing = [key for key in getattr(module, "reads", ()) if key not in batch_dict]
    if missing:
        raise DataError(
            f"{name} ({type(module).__name__}) reads {', '.join(missing)}, but the batch has only "
            f"{', '.join(batch_dict)}. Add the data processor or the module that writes it."
        )
