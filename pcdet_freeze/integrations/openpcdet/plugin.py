"""The plugin: which functions of OpenPCDet it replaces, and its public functions."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from torch import Tensor, nn

from pcdet_freeze.errors import FreezeError, IntegrationError, PCDetFreezeError
from pcdet_freeze.integrations.openpcdet import replacements
from pcdet_freeze.integrations.openpcdet.checkpoint.loaded_tensors import LoadRecorder, names_of
from pcdet_freeze.integrations.openpcdet.command.installation import is_first_rank, missing_note
from pcdet_freeze.integrations.openpcdet.patching.after_import import AfterImport
from pcdet_freeze.integrations.openpcdet.patching.function_patcher import Patches
from pcdet_freeze.integrations.openpcdet.session import Session, session_of
from pcdet_freeze.integrations.openpcdet.tasks import registry
from pcdet_freeze.integrations.openpcdet.tasks.attributes import restore_attributes
from pcdet_freeze.integrations.openpcdet.tasks.replacements import build_dataloader

REPLACED: dict[str, dict[str, Callable[..., Any]]] = {
    "pcdet.models": {"build_network": replacements.build_network},
    "pcdet.datasets": {"build_dataloader": build_dataloader},
    "pcdet.config": {"cfg_from_list": replacements.cfg_from_list},
    "train_utils.optimization": {"build_optimizer": replacements.build_optimizer},
    "train_utils.train_utils": {
        "train_model": replacements.train_model,
        "train_one_epoch": replacements.train_one_epoch,
        "checkpoint_state": replacements.checkpoint_state,
    },
}
"""module (or the end of its name) -> function -> its replacement; only build_network is required"""
LOADING = {
    "load_params_from_file": replacements.load_params_from_file,
    "load_params_with_optimizer": replacements.load_params_with_optimizer,
}
"""method of a detector -> its replacement"""


class Plugin:
    """Everything that is changed while the plugin is installed."""

    def __init__(self) -> None:
        self.patches = Patches()
        self.loads = LoadRecorder()
        self.has_built = False
        """whether build_network was called"""
        self.found: set[str] = set()
        """names of the replaced functions"""
        self.errors: WeakKeyDictionary[nn.Module, PCDetFreezeError] = WeakKeyDictionary()
        """model without a list -> error to raise when its training begins"""
        self._models: WeakSet[nn.Module] = WeakSet()
        self._finder = AfterImport({name: self._patch for name in REPLACED})

    def install(self) -> None:
        """Replace the functions of imported modules now, the others when their module is imported."""
        self.loads.listeners.append(self._add_loaded)
        self._finder.install()

    def uninstall(self) -> None:
        """Release every frozen model and restore every function.

        Raises FreezeError, before any change, if a model is still in a DistributedDataParallel.
        """
        for session in self.sessions():
            session.release()
        restore_attributes()
        self._finder.uninstall()
        self.patches.undo()

    def sessions(self) -> list[Session]:
        """Sessions of the frozen models that still exist."""
        found = (session_of(model) for model in list(self._models))
        return [session for session in found if session is not None]

    def add(self, session: Session) -> None:
        """Register a model that was frozen."""
        self._models.add(session.model)
        self.patch_loading(session.model)

    def record_loads(self) -> None:
        """Record every ``load_state_dict`` from now on."""
        self.patches.wrap(nn.Module, "load_state_dict", self.loads.around)

    def patch_loading(self, model: nn.Module) -> None:
        """Replace the methods of the class of ``model`` that load a checkpoint."""
        for name, around in LOADING.items():
            owner = next((cls for cls in type(model).__mro__ if name in vars(cls)), None)
            if owner is not None:
                self.patches.wrap(owner, name, partial(around, self))

    def _add_loaded(self, loaded: list[Tensor]) -> None:
        for session in self.sessions():
            session.loaded |= names_of(session.model, loaded)

    def _patch(self, module: ModuleType) -> None:
        end = next(end for end in REPLACED if module.__name__ == end or module.__name__.endswith("." + end))
        if end == "pcdet.models" and not callable(vars(module).get("build_network")):
            raise IntegrationError(
                "The plugin needs an OpenPCDet, or a fork, whose pcdet.models has build_network(model_cfg, "
                f"num_class, dataset), but {getattr(module, '__file__', module)} has none. In "
                "this one, call pcdet_freeze.freeze(model, names) instead."
            )
        present = {name for name in REPLACED[end] if callable(vars(module).get(name))}
        for name in present:
            self.patches.wrap(module, name, partial(REPLACED[end][name], self))
        self.found |= present
        note = missing_note(module.__name__, sorted(set(REPLACED[end]) - present))
        if note and is_first_rank():
            print(f"pcdet_freeze: {note}", file=sys.stderr)


_plugin: Plugin | None = None


def install() -> None:
    """Freeze the modules that ``MODEL.NOT_TRAIN_IN_MULTI_TASK`` names in each model that OpenPCDet builds.

    Call it before ``build_network``. OpenPCDet is not imported. A second call does nothing.

    Raises IntegrationError, without any change, if the imported OpenPCDet has no ``build_network``.
    """
    global _plugin
    if _plugin is not None:
        return
    plugin = Plugin()
    try:
        plugin.install()
    except IntegrationError:
        plugin.uninstall()
        raise
    _plugin = plugin


def uninstall() -> None:
    """Undo :func:`install`: restore every function of OpenPCDet, and release every frozen model.

    Functions of data sets, loaders and models that tasks replaced are restored too, and all tasks are removed
    from the registry. The heads stay in the models that were built with them, but do not run.

    Raises FreezeError, without any change, while a frozen model is in a live DistributedDataParallel.
    """
    global _plugin
    if _plugin is not None:
        _plugin.uninstall()
        _plugin = None
        registry.clear()


def begin(model: nn.Module, optimizer: Any) -> None:
    """Run the checks that precede a training, in a training loop of your own, before its first step.

    Frozen parameters are removed from ``optimizer``; frozen weights must have been loaded from a checkpoint;
    the certificate is taken; the first forward and the first 20 steps are checked. OpenPCDet's
    ``train_model`` does this by itself. Call :func:`verify` from time to time and at the end.

    Args:
        model: built by OpenPCDet's ``build_network`` after :func:`install`; in its wrappers, as the loop
            calls it.
        optimizer: a torch optimizer, or OpenPCDet's OptimWrapper.

    Raises:
        FreezeError: the plugin did not freeze this model, its list has a schedule, frozen weights were never
            loaded, or a trainable parameter is in no param group.
    """
    _session("begin", model).begin_own_loop(model, optimizer)


def verify(model: nn.Module) -> None:
    """Raise CertificateError, on all ranks, if frozen state of ``model`` changed since its training began.

    For a training loop of your own; OpenPCDet's ``train_model`` does this by itself. Collective: every rank
    must call it.

    Raises:
        FreezeError: the plugin did not freeze this model.
    """
    _session("verify", model).check("since its training began")


def _session(function: str, model: nn.Module) -> Session:
    session = session_of(model)
    if session is None:
        raise FreezeError(
            f"{function} needs a model that the plugin froze, but this one has no "
            "MODEL.NOT_TRAIN_IN_MULTI_TASK, or was built before install()."
        )
    return session


def installed() -> Plugin | None:
    """The plugin, while it is installed."""
    return _plugin
