"""Registries of model classes: NAME in a section of the config -> class.

A registered module class is built as ``cls(settings, context)``:

* ``settings``: an instance of ``cls.Settings`` (a dataclass, read by ``utils/settings/sections.py``) or,
  where the class has no ``Settings``, the section of the config as it stands;
* ``context``: a :class:`~pcdet_freeze.models.context.BuildContext`, with what the data set offers and what
  the modules before it write.

The class declares ``reads``, ``writes`` and ``reads_train``: keys of ``batch_dict``. A task head is one such
class, registered with ``@TASK_HEADS.register``; a section named ``X_HEAD`` becomes the attribute ``x_head``.
"""

from __future__ import annotations

from torch import nn

from pcdet_freeze.registry import Registry

PLUGIN_HINT = (
    "docs/models.md lists the implemented models. Models of OpenPCDet can be frozen inside OpenPCDet: "
    "python -m pcdet_freeze.openpcdet"
)
"""advice of errors about a NAME of OpenPCDet that is not implemented here"""

VFES: Registry[type[nn.Module]] = Registry("VFE")
BACKBONES_3D: Registry[type[nn.Module]] = Registry("BACKBONE_3D")
MAP_TO_BEVS: Registry[type[nn.Module]] = Registry("MAP_TO_BEV")
PFES: Registry[type[nn.Module]] = Registry("PFE")
BACKBONES_2D: Registry[type[nn.Module]] = Registry("BACKBONE_2D")
DENSE_HEADS: Registry[type[nn.Module]] = Registry("DENSE_HEAD")
TASK_HEADS: Registry[type[nn.Module]] = Registry("task head")
DETECTORS: Registry[type[nn.Module]] = Registry("detector")
