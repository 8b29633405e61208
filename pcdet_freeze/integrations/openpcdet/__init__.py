"""The same freeze inside an unmodified OpenPCDet; :mod:`pcdet_freeze.openpcdet` is its public name."""
