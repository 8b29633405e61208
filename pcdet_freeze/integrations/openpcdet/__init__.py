"""Plugin that freezes modules in an unmodified OpenPCDet; :mod:`pcdet_freeze.openpcdet` is its public API."""
