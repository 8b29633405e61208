"""Replacements of OpenPCDet's functions: ``replacement(plugin, original, *args, **kwargs)``.

For a model without a list each of them only calls the original; but checkpoints with numpy scalars, which
OpenPCDet writes and torch 2.6 refuses, are then read too.
"""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from torch import nn

from pcdet_freeze import config as configs
from pcdet_freeze.errors import PCDetFreezeError
from pcdet_freeze.freezing import FreezePlan
from pcdet_freeze.freezing.entries.paths import unwrap
from pcdet_freeze.freezing.plan import BLOCK
from pcdet_freeze.integrations.openpcdet.checkpoint import resume
from pcdet_freeze.integrations.openpcdet.checkpoint.loaded_tensors import LoadRecorder, names_of
from pcdet_freeze.integrations.openpcdet.command import environment
from pcdet_freeze.integrations.openpcdet.model.rebuild import Rebuild
from pcdet_freeze.integrations.openpcdet.prefix.frozen_prefix import with_defaults
from pcdet_freeze.integrations.openpcdet.session import Session, session_of
from pcdet_freeze.integrations.openpcdet.tasks.replacements import log_task_heads, with_task_heads
from pcdet_freeze.utils.untrusted_files.safe_torch_load import allow_numpy_scalars

KEYS = ("MODEL.NOT_TRAIN_IN_MULTI_TASK", "MODEL.FREEZE")
WITHOUT = {
    "train_one_epoch": "the certificate is not checked after each epoch, and FREEZE.SCHEDULE cannot be used",
    "checkpoint_state": "checkpoints hold no list and no certificate, so a changed list is not detected",
}
"""function of train_utils -> consequence if a fork has no such function"""


class Plugin(Protocol):
    """What the replacements need of the plugin."""

    has_built: bool
    found: set[str]
    loads: LoadRecorder
    errors: WeakKeyDictionary[nn.Module, PCDetFreezeError]

    def add(self, session: Session) -> None:
        """Register a model that was frozen."""

    def record_loads(self) -> None:
        """Record every ``load_state_dict``."""

    def patch_loading(self, model: nn.Module) -> None:
        """Replace the model's methods that load a checkpoint."""


def arguments(function: Callable[..., Any], args: Any, kwargs: Any) -> inspect.BoundArguments:
    """The arguments of a call by name, with defaults."""
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound


def build_network(plugin: Plugin, original: Any, *args: Any, **kwargs: Any) -> Any:
    """Build the model, then freeze the modules that ``model_cfg`` names."""
    original = with_task_heads(original)
    call = arguments(original, args, kwargs).arguments
    logger = getattr(call.get("dataset"), "logger", None) or logging.getLogger("pcdet_freeze.openpcdet")
    plugin.has_built = True
    plan = read_plan(call.get("model_cfg"))
    if not plan:
        model = original(*args, **kwargs)
        log_task_heads(model, call.get("model_cfg"), logger)
        plugin.patch_loading(model)
        logger.info("pcdet_freeze: nothing is frozen: MODEL.NOT_TRAIN_IN_MULTI_TASK is absent, null or empty")
        for key, is_given in {"TRAIN_DROPPED": plan.train_dropped, "LR_SCALE": plan.lr_scale}.items():
            if is_given:
                text = "pcdet_freeze: FREEZE.%s has no effect without a list of frozen modules"
                logger.warning(text, key)
        return model
    plugin.record_loads()
    rebuild = Rebuild(original, args, kwargs)
    with plugin.loads.collecting() as loaded:
        model = original(*args, **kwargs)
    log_task_heads(model, call.get("model_cfg"), logger)
    session = Session(model, plan, logger, rebuild)
    session.loaded = names_of(model, loaded)
    plugin.add(session)
    session.log_summary()
    warning = environment.numpy_warning()
    if warning:
        logger.warning("pcdet_freeze: %s", warning)
    return model


def read_plan(model_cfg: Any) -> FreezePlan:
    """The plan in ``cfg.MODEL``. If it belongs to OpenPCDet's global config, all of that is validated."""
    if not isinstance(model_cfg, Mapping):
        return FreezePlan()
    whole = getattr(sys.modules.get("pcdet.config"), "cfg", None)
    if not isinstance(whole, Mapping) or whole.get("MODEL") is not model_cfg:
        whole = model_cfg
    return with_defaults(FreezePlan.from_cfg(whole), model_cfg.get(BLOCK) or {})


def cfg_from_list(_: Plugin, original: Any, *args: Any, **kwargs: Any) -> Any:
    """``--set``: freeze keys need not be in the YAML and accept names; OpenPCDet parses all other keys."""
    bound = arguments(original, args, kwargs)
    (list_name, cfg_list), (_config_name, config) = list(bound.arguments.items())[:2]
    items = list(cfg_list)
    pairs = [items[index : index + 2] for index in range(0, len(items), 2)]
    freeze_pairs = [pair for pair in pairs if pair[0] in KEYS or pair[0].startswith(f"{KEYS[1]}.")]
    if not freeze_pairs:
        return original(*args, **kwargs)
    view = type(config)()
    view["MODEL"] = config["MODEL"]
    configs.cfg_from_list([item for pair in freeze_pairs for item in pair], view)
    config["MODEL"] = view["MODEL"]
    bound.arguments[list_name] = [item for pair in pairs if pair not in freeze_pairs for item in pair]
    return original(*bound.args, **bound.kwargs)


def build_optimizer(_: Plugin, original: Any, *args: Any, **kwargs: Any) -> Any:
    """Remove frozen parameters from the optimizer, and add trainable ones that it dropped."""
    optimizer = original(*args, **kwargs)
    session = session_of(arguments(original, args, kwargs).arguments.get("model"))
    if session is not None:
        session.use_optimizer(optimizer)
    return optimizer


def load_params_from_file(_: Plugin, original: Any, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Load weights; tensors of the file count as loaded, and the certificate is taken again."""
    session = session_of(model)
    if session is None:
        with allow_numpy_scalars():
            return original(model, *args, **kwargs)
    return resume.load_weights(session, lambda: original(model, *args, **kwargs))


def load_params_with_optimizer(
    plugin: Plugin, original: Any, model: nn.Module, *args: Any, **kwargs: Any
) -> Any:
    """Resume from a checkpoint, under the list that it was written with only."""
    filename = str(arguments(original, (model, *args), kwargs).arguments["filename"])
    session = session_of(model)
    if session is not None:
        return resume.load_all(session, filename, lambda: original(model, *args, **kwargs))
    # before loading: OpenPCDet may load the optimizer state of a frozen run without an error
    refusal = resume.error_without_list(filename)
    if refusal is not None:
        plugin.errors.setdefault(model, refusal)  # of the newest file: OpenPCDet then tries older ones
        raise refusal
    with allow_numpy_scalars():
        return original(model, *args, **kwargs)


def train_model(plugin: Plugin, original: Any, *args: Any, **kwargs: Any) -> Any:
    """The training: checks and pending errors before it, the certificate after it."""
    call = arguments(original, args, kwargs).arguments
    session = session_of(call["model"])
    if session is None:
        error = plugin.errors.get(unwrap(call["model"]))
        if error is not None:
            raise error
        return original(*args, **kwargs)
    for name in [name for name in WITHOUT if name not in plugin.found]:
        session.warn_missing(name, WITHOUT[name])
    session.begin(call["model"], call["optimizer"], call["start_epoch"], call["total_epochs"])
    try:
        result = original(*args, **kwargs)
    except BaseException:  # Ctrl-C too
        session.interrupted()
        raise
    session.end()
    return result


def train_one_epoch(_: Plugin, original: Any, *args: Any, **kwargs: Any) -> Any:
    """One epoch, in its phase of the schedule; all ranks check after it, before rank 0 saves."""
    bound = arguments(original, args, kwargs)
    session = session_of(bound.arguments["model"])
    if session is None:
        return original(*args, **kwargs)
    bound.arguments["model"] = session.before_epoch(bound.arguments.get("cur_epoch"))
    result = original(*bound.args, **bound.kwargs)
    session.after_epoch()
    return result


def checkpoint_state(_: Plugin, original: Any, *args: Any, **kwargs: Any) -> Any:
    """Add the freeze metadata to the checkpoint."""
    state = original(*args, **kwargs)
    session = session_of(arguments(original, args, kwargs).arguments.get("model"))
    if session is not None and isinstance(state, dict):
        session.at_checkpoint(state)
    return state
