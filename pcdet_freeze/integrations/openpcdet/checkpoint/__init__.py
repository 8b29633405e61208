"""Checkpoints: what was loaded, resume, and what the log says of it."""
