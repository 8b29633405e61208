"""pcdet_freeze: train one LiDAR task without touching the others."""

from pcdet_freeze.freezing import (
    Certificate,
    CertificateError,
    FreezeError,
    FreezeHandle,
    FreezePlan,
    freeze,
    frozen,
    is_frozen,
    set_bn_eval,
    set_bn_to_eval,
    unfreeze,
)

__version__ = "0.2.0"

__all__ = [
    "Certificate",
    "CertificateError",
    "FreezeError",
    "FreezeHandle",
    "FreezePlan",
    "freeze",
    "frozen",
    "is_frozen",
    "set_bn_eval",
    "set_bn_to_eval",
    "unfreeze",
]
