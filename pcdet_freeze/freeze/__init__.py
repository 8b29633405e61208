"""The heart: freezing modules of a model by name, in place, provably, with an exact way back."""

from pcdet_freeze.errors import CertificateError, FreezeError
from pcdet_freeze.freeze.averaging import copying_frozen
from pcdet_freeze.freeze.certificate import Certificate, compare, compare_states, verify_states
from pcdet_freeze.freeze.freezing import freeze, frozen, unfreeze
from pcdet_freeze.freeze.handle import FreezeHandle
from pcdet_freeze.freeze.plan import FreezePlan
from pcdet_freeze.freeze.recipe import set_bn_eval, set_bn_to_eval
from pcdet_freeze.freeze.records import is_frozen, is_still
from pcdet_freeze.freeze.resolve import Resolution, resolve

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
    "is_still",
    "resolve",
    "set_bn_eval",
    "set_bn_to_eval",
    "unfreeze",
    "verify_states",
]
