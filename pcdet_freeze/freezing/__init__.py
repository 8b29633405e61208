"""Freeze modules of a model by name, in place, with a certificate and an exact release.

The keys of MODEL.FREEZE are the fields of ``FreezeOptions`` in ``plan``.
"""

from pcdet_freeze.errors import CertificateError, FreezeError
from pcdet_freeze.freezing.api import freeze, frozen, unfreeze
from pcdet_freeze.freezing.bn_eval import set_bn_eval, set_bn_to_eval
from pcdet_freeze.freezing.ema import copying_frozen
from pcdet_freeze.freezing.entries.resolve import Resolution, resolve
from pcdet_freeze.freezing.handle import FreezeHandle
from pcdet_freeze.freezing.plan import FreezePlan
from pcdet_freeze.freezing.state import is_frozen, is_fully_frozen
from pcdet_freeze.freezing.verification.certificate import Certificate, compare
from pcdet_freeze.freezing.verification.state_diff import compare_states

__all__ = [
    "Certificate",
    "CertificateError",
    "FreezeError",
    "FreezeHandle",
    "FreezePlan",
    "Resolution",
    "compare",
    "compare_states",
    "copying_frozen",
    "freeze",
    "frozen",
    "is_frozen",
    "is_fully_frozen",
    "resolve",
    "set_bn_eval",
    "set_bn_to_eval",
    "unfreeze",
]
