"""install and uninstall: which functions of OpenPCDet are replaced, and when."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from torch import Tensor, nn

from pcdet_freeze.errors import FreezeError, IntegrationError, PCDetFreezeError
from pcdet_freeze.integrations.openpcdet import replacements
from pcdet_freeze.integrations.openpcdet.after_import import AfterImport
from pcdet_freeze.integrations.openpcdet.loaded_tensors import LoadWatch, names_of
from pcdet_freeze.integrations.openpcdet.patches import Patches
from pcdet_freeze.integrations.openpcdet.session import Session, session_of

WANTED: dict[str, dict[str, Callable[..., Any]]] = {
    "pcdet.models": {"build_network": replacements.build_network},
    "pcdet.config": {"cfg_from_list": replacements.cfg_from_list_too},
    "train_utils.optimization": {"build_optimizer": replacements.build_optimizer},
    "train_utils.train_utils": {
        "train_model": replacements.train_model,
        "train_one_epoch": replacements.train_one_epoch,
        "checkpoint_state": replacements.checkpoint_state,
    },
}
"""module (or the end of its name) -> function -> what runs around it; only build_network must be there"""
LOADING = {
    "load_params_from_file": replacements.load_params_from_file,
    "load_params_with_optimizer": replacements.load_params_with_optimizer,
}
"""method of a detector -> what runs around it"""


class Plugin:
    """Everything that is changed while the plugin is on."""

    def __init__(self) -> None:
        self.patches = Patches()
        self.loads = LoadWatch()
        self.has_built = False
        """whether build_network was called at all"""
        self.found: set[str] = set()
        """names of the functions that were replaced"""
        self.faults: WeakKeyDictionary[nn.Module, PCDetFreezeError] = WeakKeyDictionary()
        """of models without a list: what their training must raise"""
        self._models: WeakSet[nn.Module] = WeakSet()
        self._finder = AfterImport({name: self._patch for name in WANTED})

    def install(self) -> None:
        """Replace what is loaded already, and the rest when it is imported."""
        self.loads.listeners.append(self._note_loaded)
        self._finder.install()

    def uninstall(self) -> None:
        """Release every frozen model, and put every attribute back.

        Raises FreezeError, before anything is put back, where a model is still in a DistributedDataParallel.
        """
        for session in self.sessions():
            session.release()
        self._finder.uninstall()
        self.patches.undo()

    def sessions(self) -> list[Session]:
        """Of the frozen models that are still there."""
        found = (session_of(model) for model in list(self._models))
        return [session for session in found if session is not None]

    def add(self, session: Session) -> None:
        """A model was frozen."""
        self._models.add(session.model)
        self.watch_resume(session.model)

    def watch_loads(self) -> None:
        """Look on at every ``load_state_dict`` from here on."""
        self.patches.wrap(nn.Module, "load_state_dict", self.loads.around)

    def watch_resume(self, model: nn.Module) -> None:
        """Be asked when ``model``, or another one of its class, loads a checkpoint in OpenPCDet's way."""
        for name, around in LOADING.items():
            owner = next((cls for cls in type(model).__mro__ if name in vars(cls)), None)
            if owner is not None:
                self.patches.wrap(owner, name, partial(around, self))

    def _note_loaded(self, filled: list[Tensor]) -> None:
        for session in self.sessions():
            session.loaded |= names_of(session.model, filled)

    def _patch(self, module: ModuleType) -> None:
        end = next(end for end in WANTED if module.__name__ == end or module.__name__.endswith("." + end))
        if end == "pcdet.models" and not callable(vars(module).get("build_network")):
            raise IntegrationError(
                "The plugin works in an OpenPCDet, or a fork of it, whose pcdet.models has build_network("
                f"model_cfg, num_class, dataset); {getattr(module, '__file__', module)} has none: it is too "
                "different"
            )
        for name, around in WANTED[end].items():
            if callable(vars(module).get(name)):
                self.patches.wrap(module, name, partial(around, self))
                self.found.add(name)


_plugin: Plugin | None = None


def install() -> None:
    """Freeze, from here on, what ``MODEL.NOT_TRAIN_IN_MULTI_TASK`` names in each model that OpenPCDet builds.

    Nothing of OpenPCDet is imported. A second call does nothing.

    Raises IntegrationError, and changes nothing, where an OpenPCDet that is loaded already is too different.
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
    """Undo :func:`install`: every function is OpenPCDet's own again, every model as it was built.

    Raises FreezeError, and undoes nothing, while a frozen model is in a live DistributedDataParallel.
    """
    global _plugin
    if _plugin is not None:
        _plugin.uninstall()
        _plugin = None


def verify(model: nn.Module) -> None:
    """Raise CertificateError, on all ranks, if frozen state of ``model`` changed since its training began.

    For a training loop of one's own: OpenPCDet's is looked on at by itself. Raises FreezeError for a model
    that this plugin did not freeze.
    """
    session = session_of(model)
    if session is None:
        raise FreezeError(
            "verify needs a model that the plugin froze; this one has no list, or was built without it"
        )
    session.check("since its training began")


def installed() -> Plugin | None:
    """The plugin, while it is on."""
    return _plugin
