"""Replacements of OpenPCDet's functions that serve tasks; without a task each only calls the original."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from pcdet_freeze.integrations.openpcdet.tasks.attributes import set_attribute
from pcdet_freeze.integrations.openpcdet.tasks.registry import Task, registered


def with_task_heads(build_network: Callable[..., Any]) -> Callable[..., Any]:
    """OpenPCDet's ``build_network``; the model that it returns has the heads of the registered tasks."""

    @functools.wraps(build_network)
    def build(*args: Any, **kwargs: Any) -> Any:
        # the heads need numpy and the freeze only; the plugin loads them where there is a model
        from pcdet_freeze.integrations.openpcdet.tasks.heads import add_heads

        model = build_network(*args, **kwargs)
        given = dict(zip(("model_cfg", "num_class", "dataset"), args, strict=False)) | kwargs
        add_heads(model, given.get("model_cfg"), given.get("dataset"), registered())
        return model

    return build


def log_task_heads(model: nn.Module, model_cfg: Any, logger: logging.Logger) -> None:
    """Log the task heads of a new model, and the sections that became no module."""
    from pcdet_freeze.integrations.openpcdet.tasks.heads import wanted, warn_unknown_sections

    for task in wanted(model_cfg, registered()):
        logger.info("pcdet_freeze: task head %s: %s", task.name, task.head.__qualname__)
    warn_unknown_sections(model, model_cfg, logger)


def build_dataloader(_: Any, original: Any, *args: Any, **kwargs: Any) -> Any:
    """Build the loader; its frames have the labels of the registered tasks, its evaluation their metrics."""
    built = original(*args, **kwargs)
    tasks = _in_config(args[0] if args else kwargs.get("dataset_cfg"))
    if not tasks:
        return built
    from pcdet_freeze.integrations.openpcdet.tasks.data import CollateWithLabels, attach
    from pcdet_freeze.integrations.openpcdet.tasks.scores import attach_metrics

    dataset, loader, *_more = built
    labels = tuple({task.labels.key: task.labels for task in tasks if task.labels is not None}.values())
    if labels:
        attach(dataset, labels)
        set_attribute(loader, "collate_fn", CollateWithLabels(loader.collate_fn, labels))
    attach_metrics(dataset, tasks)
    return built


def _in_config(dataset_cfg: Any) -> tuple[Task, ...]:
    """The tasks whose sections are in OpenPCDet's global config, if the data set is that of the config."""
    cfg = getattr(sys.modules.get("pcdet.config"), "cfg", None)
    if not isinstance(cfg, Mapping) or cfg.get("DATA_CONFIG") is not dataset_cfg or not cfg.get("MODEL"):
        return registered()
    return tuple(task for task in registered() if cfg["MODEL"].get(task.section) is not None)
