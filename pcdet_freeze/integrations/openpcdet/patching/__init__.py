"""How functions of OpenPCDet are replaced, before or after it is imported, and restored."""
