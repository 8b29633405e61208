"""The frozen prefix of OpenPCDet's modules (FREEZE.FUSE): faster forms of its classes."""
