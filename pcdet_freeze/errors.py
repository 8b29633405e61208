"""Exceptions, by what causes them.

```
PCDetFreezeError            base class of every error that this package raises on purpose
├── ConfigError             a YAML file, a key, a flag
├── FreezeError             MODEL.NOT_TRAIN_IN_MULTI_TASK, or a module that cannot be frozen
│   └── CertificateError    frozen state that changed
├── TrainingError           a training step that cannot be made; a StopIteration from user code
├── DataError               a frame, a label, an info file, a missing folder
├── CheckpointError         a checkpoint that cannot be read, or belongs to another model
├── OutputError             a file or folder of a run that cannot be written
└── IntegrationError        OpenPCDet is missing, or a version that the plugin does not support
```

Each message states the rule, the value that was found and what to do.
"""

from __future__ import annotations


class PCDetFreezeError(Exception):
    """Base class of every error that this package raises on purpose."""


class ConfigError(PCDetFreezeError, ValueError):
    """A config file, key or flag that cannot be used."""


class FreezeError(PCDetFreezeError, ValueError):
    """A freeze list that cannot be applied, or a module that cannot be frozen."""


class CertificateError(FreezeError):
    """Frozen state that changed."""


class TrainingError(PCDetFreezeError, RuntimeError):
    """A training that cannot go on: a loss without a graph, a StopIteration from user code, a guarded task
    that became worse."""


class DataError(PCDetFreezeError, ValueError):
    """A frame, label or info file that cannot be used."""


class CheckpointError(PCDetFreezeError, RuntimeError):
    """A checkpoint that cannot be read, or that belongs to another model or another list."""


class OutputError(PCDetFreezeError, RuntimeError):
    """A file or folder of a run that cannot be written: a full disk, a file in place of a folder."""


class IntegrationError(PCDetFreezeError, RuntimeError):
    """OpenPCDet is missing, or a version that the plugin does not support."""
