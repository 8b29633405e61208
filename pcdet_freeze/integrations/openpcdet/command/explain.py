"""``python -m pcdet_freeze.openpcdet explain``: print what a training would freeze, without training.

The only module of the plugin that uses ``engine``: the table is that of the trainer's ``explain``.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pcdet_freeze.engine.explain import Explanation, explain
from pcdet_freeze.errors import ConfigError, PCDetFreezeError
from pcdet_freeze.freezing import FreezeHandle, FreezePlan, freeze
from pcdet_freeze.integrations.openpcdet.command.run_script import pcdet_missing
from pcdet_freeze.integrations.openpcdet.model import frozen_heads
from pcdet_freeze.integrations.openpcdet.optimizer.param_groups import inner_optimizer
from pcdet_freeze.integrations.openpcdet.plugin import install
from pcdet_freeze.integrations.openpcdet.session import session_of

LAST_LOSS = "_pcdet_freeze_last_loss"
"""on a trainable module: its loss in the last forward"""

_logger = logging.getLogger("pcdet_freeze.openpcdet.explain")
_logger.addHandler(logging.NullHandler())
_logger.propagate = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add = parser.add_argument
    add("--cfg_file", required=True, help="config of OpenPCDet, in a folder `cfgs`")
    add("--depth", type=int, default=2, help="number of module levels; default 2")
    add("--batch_size", type=int, default=2, help="samples in the batch that the losses are computed with")
    add("--json", action="store_true", help="print JSON")
    add(
        "--set",
        dest="set_cfgs",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="override keys of the config; must come last",
    )


def gather(args: argparse.Namespace) -> tuple[Explanation, str]:
    """(the table, a description of the batch that the losses were computed with).

    Raises:
        ConfigError: there is no such config.
        FreezeError: the list cannot be applied.
        IntegrationError: pcdet cannot be imported.
    """
    cfg_file = enter_folder(Path(args.cfg_file))
    install()
    try:
        config, datasets, models = map(
            importlib.import_module, ("pcdet.config", "pcdet.datasets", "pcdet.models")
        )
    except ImportError as error:
        raise pcdet_missing(error) from error
    cfg = config.cfg
    config.cfg_from_yaml_file(str(cfg_file), cfg)
    if args.set_cfgs:
        config.cfg_from_list(args.set_cfgs, cfg)
    dataset, batch, source = one_batch(cfg, datasets, args.batch_size)
    model = models.build_network(model_cfg=cfg.MODEL, num_class=len(cfg.CLASS_NAMES), dataset=dataset)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    session = session_of(model)
    handle = freeze(model, FreezePlan(), certify=False) if session is None else session.handle
    with _captured_warnings() as warnings:
        optimizer = _optimizer(model, cfg.OPTIMIZATION)
    try:
        if batch is not None:
            models.load_data_to_gpu(batch)
        found = _explain(handle, cfg.OPTIMIZATION, batch, args.depth, optimizer)
    except PCDetFreezeError:
        raise
    except Exception as error:  # the forward may need CUDA or compiled operators that are missing
        source = f"nothing: the forward failed ({type(error).__name__}: {error})"
        found = _explain(handle, cfg.OPTIMIZATION, None, args.depth, optimizer)
    notes = (*handle.notes, *frozen_heads.explain_heads(model))
    schedule = () if session is None else tuple(session.schedule())
    all_warnings = (*found.warnings, *warnings)
    return replace(found, notes=notes, schedule=schedule, warnings=all_warnings), source


def enter_folder(cfg_file: Path) -> Path:
    """Change to the folder that holds ``cfgs``, as OpenPCDet's scripts do; returns the path from there."""
    if not cfg_file.is_file():
        raise ConfigError(
            f"--cfg_file must be a config of OpenPCDet, but there is no file {cfg_file}. Check the path."
        )
    cfg_file = cfg_file.resolve()
    found = next((parent for parent in cfg_file.parents if parent.name == "cfgs"), None)
    if found is None:
        return cfg_file
    tools = found.parent
    os.chdir(tools)
    for folder in (tools, tools.parent):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
    return cfg_file.relative_to(tools)


def one_batch(cfg: Any, datasets: Any, batch_size: int) -> tuple[Any, Any, str]:
    """(data set, training batch or None, description of the batch); without data there is no batch."""
    try:
        dataset, loader, _ = datasets.build_dataloader(
            dataset_cfg=cfg.DATA_CONFIG, class_names=cfg.CLASS_NAMES, batch_size=batch_size, dist=False,
            workers=0, logger=_logger, training=True,
        )  # fmt: skip
        return dataset, next(iter(loader)), f"one batch of {cfg.DATA_CONFIG.DATASET} ({batch_size} frames)"
    except Exception as error:  # each data set raises other errors for missing data
        bare = datasets.DatasetTemplate(
            dataset_cfg=cfg.DATA_CONFIG,
            class_names=cfg.CLASS_NAMES,
            training=False,
            root_path=Path(cfg.DATA_CONFIG.DATA_PATH),
            logger=_logger,
        )
        return bare, None, f"nothing: no batch could be read ({type(error).__name__}: {error})"


def _optimizer(model: nn.Module, optim_cfg: Any) -> torch.optim.Optimizer | None:
    """OpenPCDet's optimizer if its tools can be imported; None: pcdet_freeze's, which has equal groups."""
    try:
        build: Callable[..., Any] = importlib.import_module("train_utils.optimization").build_optimizer
    except ImportError:
        return None
    return inner_optimizer(build(model, optim_cfg))


@contextmanager
def _captured_warnings() -> Iterator[list[str]]:
    """Context that collects the warnings of the plugin."""
    found: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    _logger.addHandler(handler)
    try:
        yield found
    finally:
        _logger.removeHandler(handler)


def _explain(handle: FreezeHandle, optim_cfg: Any, batch: Any, *more: Any) -> Explanation:
    """The table, with one loss for each trainable module."""
    model = handle.model
    trainable = [part.module for part in frozen_heads.parts(model) if part.gives_loss and not part.is_frozen]
    for module in trainable:
        module.__dict__["get_loss"] = partial(_record_loss, module)
    if trainable:
        model.__dict__["get_head_losses"] = partial(_recorded_losses, model)
    try:
        with _not_copied(getattr(model, "dataset", None)):
            return explain(handle, optim_cfg, batch, *more)
    finally:
        model.__dict__.pop("get_head_losses", None)
        for module in trainable:
            del module.__dict__["get_loss"]


@contextmanager
def _not_copied(value: Any) -> Iterator[None]:
    """Context in which ``deepcopy`` shares ``value``: the detector holds its data set, which may be large."""
    if not hasattr(value, "__dict__"):
        yield
        return
    value.__dict__["__deepcopy__"] = lambda memo: value
    try:
        yield
    finally:
        del value.__dict__["__deepcopy__"]


def _record_loss(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    result = type(module).get_loss(module, *args, **kwargs)  # type: ignore[attr-defined]
    module.__dict__[LAST_LOSS] = result[0] if isinstance(result, tuple) else result
    return result


def _recorded_losses(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The loss of each trainable module in the last forward."""
    found = {
        part.name: part.module.__dict__.get(LAST_LOSS)
        for part in frozen_heads.parts(model)
        if part.gives_loss
    }
    return {name: loss for name, loss in found.items() if loss is not None}, {}
