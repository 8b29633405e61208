"""The command ``python -m pcdet_freeze.openpcdet``: which OpenPCDet, its scripts, ``explain``."""
