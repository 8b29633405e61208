"""What runs in place of OpenPCDet's functions: around(original, *args, **kwargs), bound to the plugin.

A model without a list goes straight through each of them.
"""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from torch import nn

from pcdet_freeze.config import cfg_from_list
from pcdet_freeze.errors import FreezeError, PCDetFreezeError
from pcdet_freeze.freezing import FreezePlan
from pcdet_freeze.freezing.paths import unwrap
from pcdet_freeze.freezing.plan import BLOCK, DEFAULTS
from pcdet_freeze.integrations.openpcdet import environment, resume
from pcdet_freeze.integrations.openpcdet.loaded_tensors import LoadWatch, names_of
from pcdet_freeze.integrations.openpcdet.session import Session, session_of

OWN_TRAINER = ("PREFIX_DTYPE", "CHANNELS_LAST", "COMPILE", "CACHE")
"""options of MODEL.FREEZE that need a loop of our own"""
KEYS = ("MODEL.NOT_TRAIN_IN_MULTI_TASK", "MODEL.FREEZE")


WITHOUT = {
    "train_one_epoch": "the certificate is not checked after each epoch, and no schedule can be followed",
    "checkpoint_state": "checkpoints carry no list and no certificate, so a changed list goes unnoticed",
}
"""function of train_utils -> what is not there where a fork has none"""


class Plugin(Protocol):
    """What the calls need of the plugin."""

    has_built: bool
    found: set[str]
    loads: LoadWatch
    faults: WeakKeyDictionary[nn.Module, PCDetFreezeError]

    def add(self, session: Session) -> None:
        """A model was frozen."""

    def watch_loads(self) -> None:
        """Look on at loading."""

    def watch_resume(self, model: nn.Module) -> None:
        """Be asked when the model loads a checkpoint."""


def arguments(function: Callable[..., Any], args: Any, kwargs: Any) -> inspect.BoundArguments:
    """The arguments of a call by name, defaults filled in."""
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound


def build_network(plugin: Plugin, original: Any, *args: Any, **kwargs: Any) -> Any:
    """Build as ever; freeze what ``model_cfg`` names."""
    given = arguments(original, args, kwargs).arguments
    logger = getattr(given.get("dataset"), "logger", None) or logging.getLogger("pcdet_freeze.openpcdet")
    plugin.has_built = True
    plan = read_plan(given.get("model_cfg"))
    if not plan:
        model = original(*args, **kwargs)
        plugin.watch_resume(model)
        logger.info("pcdet_freeze: nothing is frozen: MODEL.NOT_TRAIN_IN_MULTI_TASK is absent, null or empty")
        return model
    plugin.watch_loads()
    with plugin.loads.collecting() as filled:
        model = original(*args, **kwargs)
    session = Session(model, plan, logger, rebuild=lambda: original(*args, **kwargs))
    session.loaded = names_of(model, filled)
    plugin.add(session)
    session.tell()
    trap = environment.numpy_trap()
    if trap:
        logger.warning("pcdet_freeze: %s", trap)
    return model


def read_plan(model_cfg: Any) -> FreezePlan:
    """The plan in ``cfg.MODEL``; faults of the whole config are told, where it is OpenPCDet's own."""
    if not isinstance(model_cfg, Mapping):
        return FreezePlan()
    whole = getattr(sys.modules.get("pcdet.config"), "cfg", None)
    if not isinstance(whole, Mapping) or whole.get("MODEL") is not model_cfg:
        whole = model_cfg
    plan = FreezePlan.from_cfg(whole)
    block = model_cfg.get(BLOCK) or {}
    asked = [key for key in OWN_TRAINER if block.get(key, DEFAULTS[key]) not in (DEFAULTS[key], None)]
    asked += ["FUSE: force"] if block.get("FUSE") == "force" else []
    if asked:
        raise FreezeError(
            f"{', '.join(asked)} of MODEL.{BLOCK} work in this package's own trainer only, not inside "
            "OpenPCDet: leave them out"
        )
    return plan


def cfg_from_list_too(_: Plugin, original: Any, *args: Any, **kwargs: Any) -> Any:
    """``--set``: the freeze keys need not be in the YAML, and take names; all others are OpenPCDet's."""
    bound = arguments(original, args, kwargs)
    (list_name, cfg_list), (_config_name, config) = list(bound.arguments.items())[:2]
    words = list(cfg_list)
    pairs = [words[place : place + 2] for place in range(0, len(words), 2)]
    ours = [pair for pair in pairs if pair[0] in KEYS or pair[0].startswith(f"{KEYS[1]}.")]
    if not ours:
        return original(*args, **kwargs)
    view = type(config)()
    view["MODEL"] = config["MODEL"]
    cfg_from_list([word for pair in ours for word in pair], view)
    config["MODEL"] = view["MODEL"]
    bound.arguments[list_name] = [word for pair in pairs if pair not in ours for word in pair]
    return original(*bound.args, **bound.kwargs)


def build_optimizer(_: Plugin, original: Any, *args: Any, **kwargs: Any) -> Any:
    """Nothing frozen is in the optimizer, and all that trains is."""
    optimizer = original(*args, **kwargs)
    session = session_of(arguments(original, args, kwargs).arguments.get("model"))
    if session is not None:
        session.settle_optimizer(optimizer)
    return optimizer


def load_params_from_file(_: Plugin, original: Any, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """What the file holds is supplied; the certificate is taken after it."""
    session = session_of(model)
    if session is None:
        return original(model, *args, **kwargs)
    return resume.load_weights(session, lambda: original(model, *args, **kwargs))


def load_params_with_optimizer(
    plugin: Plugin, original: Any, model: nn.Module, *args: Any, **kwargs: Any
) -> Any:
    """Go on from a checkpoint only under the list that it was written with."""
    filename = str(arguments(original, (model, *args), kwargs).arguments["filename"])
    session = session_of(model)
    if session is not None:
        return resume.load_all(session, filename, lambda: original(model, *args, **kwargs))
    try:
        return original(model, *args, **kwargs)
    except Exception as error:
        fault = resume.unfrozen_fault(filename, error)
        if fault is None:
            raise
        plugin.faults.setdefault(model, fault)  # of the newest file: OpenPCDet goes on to older ones
        raise fault from error


def train_model(plugin: Plugin, original: Any, *args: Any, **kwargs: Any) -> Any:
    """The whole training: nothing hidden at its start, the proof at its end."""
    given = arguments(original, args, kwargs).arguments
    session = session_of(given["model"])
    if session is None:
        fault = plugin.faults.get(unwrap(given["model"]))
        if fault is not None:
            raise fault
        return original(*args, **kwargs)
    for name in [name for name in WITHOUT if name not in plugin.found]:
        session.lacks(name, WITHOUT[name])
    session.begin(given["model"], given["optimizer"], given["start_epoch"], given["total_epochs"])
    result = original(*args, **kwargs)
    session.end()
    return result


def train_one_epoch(_: Plugin, original: Any, *args: Any, **kwargs: Any) -> Any:
    """One epoch, in its phase of the schedule; all ranks agree after it, before rank 0 saves."""
    bound = arguments(original, args, kwargs)
    session = session_of(bound.arguments["model"])
    if session is None:
        return original(*args, **kwargs)
    bound.arguments["model"] = session.before_epoch(bound.arguments.get("cur_epoch"))
    result = original(*bound.args, **bound.kwargs)
    session.after_epoch()
    return result


def checkpoint_state(_: Plugin, original: Any, *args: Any, **kwargs: Any) -> Any:
    """What is saved carries the list and its certificate."""
    state = original(*args, **kwargs)
    session = session_of(arguments(original, args, kwargs).arguments.get("model"))
    if session is not None and isinstance(state, dict):
        session.at_checkpoint(state)
    return state
