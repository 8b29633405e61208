"""A pickle module for ``torch.load`` before 2.5: like ``weights_only=True``, but numpy scalars are accepted.

torch before 2.5 cannot extend the allow-list of ``weights_only=True``, and OpenPCDet's checkpoints hold numpy
scalars (the learning rates of its one-cycle schedule). Later versions do not need this module.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from typing import IO, Any, ClassVar

import torch

from pcdet_freeze.utils.untrusted_files.safe_pickle import NUMPY_SCALARS

_PythonUnpickler: Any = pickle._Unpickler  # the one in C has no load_build to override
_BUILT = (torch.Tensor, torch.nn.Parameter, OrderedDict, NUMPY_SCALARS["numpy", "dtype"])
"""types whose state a pickle may set"""


class Unpickler(_PythonUnpickler):  # type: ignore[misc]  # typeshed does not list it
    """Calls only what torch's own ``weights_only=True`` calls, and the stand-ins of numpy scalars.

    Raises pickle.UnpicklingError for anything else.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(_PythonUnpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        """The object that a pickle may name, see :class:`pickle.Unpickler`."""
        if (module, name) in NUMPY_SCALARS:
            return NUMPY_SCALARS[module, name]
        allowed = torch._weights_only_unpickler._get_allowed_globals()
        if f"{module}.{name}" not in allowed:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name} is neither a tensor nor a plain value")
        return allowed[f"{module}.{name}"]

    def load_build(self) -> None:
        """Set the state of the object on top of the stack."""
        kind = type(self.stack[-2])
        if kind not in _BUILT:
            raise pickle.UnpicklingError(f"a {kind.__name__} is neither a tensor nor a plain value")
        super().load_build()

    dispatch[pickle.BUILD[0]] = load_build


def load(file: IO[bytes], **options: Any) -> Any:
    """As :func:`pickle.load`."""
    return Unpickler(file, **options).load()
