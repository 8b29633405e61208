"""The exceptions of this package.

```
PCDetFreezeError            everything this package raises on purpose
├── ConfigError             a YAML file, a key, a flag
├── FreezeError             MODEL.NOT_TRAIN_IN_MULTI_TASK, or a frozen module that cannot be held
│   └── CertificateError    frozen state that changed
├── DataError               a frame, a label, an info file, a missing folder
├── CheckpointError         a checkpoint that cannot be read, or belongs to another model
└── IntegrationError        a package to work inside of (OpenPCDet) that is missing or too different
```

Every message states the rule, the value that was found and what to do about it.
"""

from __future__ import annotations


class PCDetFreezeError(Exception):
    """Base of every error that the package raises on purpose."""


class ConfigError(PCDetFreezeError, ValueError):
    """A config file, key or flag that cannot be used."""


class FreezeError(PCDetFreezeError, ValueError):
    """A freeze list that cannot be applied, or a frozen module that cannot be held."""


class CertificateError(FreezeError):
    """Frozen state that is no longer what it was."""


class DataError(PCDetFreezeError, ValueError):
    """A frame, label or info file that cannot be used."""


class CheckpointError(PCDetFreezeError, RuntimeError):
    """A checkpoint that cannot be read, or that belongs to another model or another list."""


class IntegrationError(PCDetFreezeError, RuntimeError):
    """A package to work inside of that is missing, or too different to work in."""
