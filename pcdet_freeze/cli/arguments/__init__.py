"""Help, examples and flags of each command; no torch is imported, so that help and completion are fast."""
