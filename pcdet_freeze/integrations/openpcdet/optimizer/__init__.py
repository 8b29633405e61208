"""OpenPCDet's optimizer: groups of trainable parameters, and FREEZE.SCHEDULE."""
