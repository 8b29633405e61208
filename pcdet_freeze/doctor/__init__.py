"""Checks of the machine, the packages, a config and an OpenPCDet beside it, before a training begins.

Nothing here imports torch, spconv or numba at the top: a broken one must not end the command that looks for
it. Each check reads a :class:`.checks.Case`, whose facts a test can replace.
"""

from importlib import import_module

from pcdet_freeze.doctor.checks import CHECKS, Case, Outcome, examine
from pcdet_freeze.doctor.facts import Facts, look

for _name in ("packages", "machine", "config_files", "openpcdet"):  # registers checks, in the order shown
    import_module(f"pcdet_freeze.doctor.{_name}")

__all__ = ["CHECKS", "Case", "Facts", "Outcome", "examine", "look"]
