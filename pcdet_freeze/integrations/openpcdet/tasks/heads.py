"""Task heads in a detector of OpenPCDet.

The forward of a detector is replaced on the object by one that runs the heads after it, adds their losses to
``ret_dict["loss"]`` in train mode and their predictions to ``pred_dicts`` in eval mode. It does so for every
detector, since all return these; the modules of the detection are not changed.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from pcdet_freeze.errors import ConfigError, DataError, IntegrationError
from pcdet_freeze.freezing import is_fully_frozen
from pcdet_freeze.freezing.data_flow.module_graph import stages
from pcdet_freeze.integrations.openpcdet.tasks.attributes import set_attribute
from pcdet_freeze.integrations.openpcdet.tasks.registry import Task


def wanted(model_cfg: Any, tasks: Sequence[Task]) -> list[Task]:
    """Those ``tasks`` whose sections are in ``model_cfg``."""
    sections = model_cfg if isinstance(model_cfg, Mapping) else {}
    return [task for task in tasks if sections.get(task.section) is not None]


def add_heads(model: nn.Module, model_cfg: Any, dataset: Any, tasks: Sequence[Task]) -> None:
    """Add the heads of those ``tasks`` whose sections are in ``model_cfg``.

    Raises:
        ConfigError: the section names another class.
        IntegrationError: the detector has a module of that name.
    """
    added = wanted(model_cfg, tasks)
    for task in added:
        _check(model, model_cfg[task.section], task)
    order = [stage.name for stage in stages(model)]
    for task in added:
        model.add_module(task.name, _build(task.head, _context(model, model_cfg[task.section], dataset)))
    if added:
        if order:  # module_list, which the detector runs itself, stays without the heads
            set_attribute(model, "module_names", [*order, *(task.name for task in added)])
        set_attribute(model, "forward", partial(forward_with_heads, model, tuple(added)))


def warn_unknown_sections(model: nn.Module, model_cfg: Any, logger: logging.Logger) -> None:
    """Warn of sections ``..._HEAD`` that became no module: OpenPCDet passes over them without a message."""
    sections = model_cfg if isinstance(model_cfg, Mapping) else {}
    for section in sections:
        named_head = str(section).endswith("_HEAD") and sections[section] is not None
        if named_head and getattr(model, str(section).lower(), None) is None:
            logger.warning(
                "pcdet_freeze: MODEL.%s became no module %s of %s. If it is a head of your own, register it "
                "with pcdet_freeze.openpcdet.add_task and pass the file with --task. If the detector builds "
                "it under another name, nothing is wrong.",
                section,
                str(section).lower(),
                type(model).__name__,
            )


def _check(model: nn.Module, section: Any, task: Task) -> None:
    if getattr(model, task.name, None) is not None:
        raise IntegrationError(
            f"MODEL.{task.section} adds the module {task.name}, but {type(model).__name__} has one of that "
            "name. Register the task with another section."
        )
    if section.get("NAME", task.head.__name__) != task.head.__name__:
        raise ConfigError(
            f"MODEL.{task.section}.NAME is {section['NAME']!r}, but add_task registered "
            f"{task.head.__name__}. Write that name, or leave it out."
        )


def _context(model: nn.Module, section: Any, dataset: Any) -> dict[str, Any]:
    """Keyword arguments for the head."""
    makers = [getattr(model, name, None) for name in ("backbone_2d", "map_to_bev_module")]
    channels = [getattr(maker, "num_bev_features", None) for maker in makers]
    return {
        "model_cfg": section,
        "input_channels": next((number for number in channels if number is not None), None),
        "num_class": getattr(model, "num_class", None),
        "class_names": getattr(dataset, "class_names", None),
        "grid_size": getattr(dataset, "grid_size", None),
        "voxel_size": getattr(dataset, "voxel_size", None),
        "point_cloud_range": getattr(dataset, "point_cloud_range", None),
    }


def _build(head: type[nn.Module], context: dict[str, Any]) -> nn.Module:
    accepted = inspect.signature(head).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values()):
        return head(**context)
    return head(**{name: value for name, value in context.items() if name in accepted})


def forward_with_heads(model: nn.Module, tasks: tuple[Task, ...], batch_dict: Any, *args: Any) -> Any:
    """Replaces the forward of a detector with task heads."""
    output = type(model).forward(model, batch_dict, *args)
    heads = [(task, getattr(model, task.name)) for task in tasks]
    for task, head in heads:
        if model.training and not is_fully_frozen(head):
            _require_labels(task, batch_dict)
        batch_dict = head(batch_dict)
    if model.training:
        ret_dict, tb_dict, disp_dict = output
        ret_dict, tb_dict = dict(ret_dict), dict(tb_dict)
        for _, head in heads:
            loss, values = head.get_loss()
            ret_dict["loss"] = ret_dict["loss"] + loss
            tb_dict.update(values)
        return ret_dict, tb_dict, disp_dict
    for task, head in heads:
        _add_predictions(task, head, batch_dict, output[0])
    return output


def _require_labels(task: Task, batch_dict: Any) -> None:
    if task.labels is not None and task.labels.key not in batch_dict:
        raise DataError(
            f"MODEL.{task.section} trains with batch_dict[{task.labels.key!r}], but the batch has none. "
            "Build the loader with OpenPCDet's build_dataloader, after add_task."
        )


def _add_predictions(task: Task, head: Any, batch_dict: Any, pred_dicts: list[dict[str, Any]]) -> None:
    """What the head adds to the predictions of each frame, and the counts of its metric."""
    if callable(getattr(head, "add_predictions", None)):
        head.add_predictions(batch_dict, pred_dicts)
    labelled = task.labels is None or task.labels.key in batch_dict
    if not callable(getattr(head, "metric_counts", None)) or not labelled:
        return
    counts: Tensor = head.metric_counts(batch_dict)
    if len(counts) != len(pred_dicts):
        raise IntegrationError(
            f"metric_counts of {task.head.__name__} must return one entry a frame ({len(pred_dicts)}), but "
            f"returned {len(counts)}. Return a tensor of shape (B, ...)."
        )
    for pred_dict, of_frame in zip(pred_dicts, counts, strict=True):
        # in the predictions, not in the batch: DistributedDataParallel passes a copy of that
        pred_dict[counts_key(task)] = of_frame


def counts_key(task: Task) -> str:
    """Key of the counts of the metric in the predictions of a frame."""
    return f"{task.name}_counts"
