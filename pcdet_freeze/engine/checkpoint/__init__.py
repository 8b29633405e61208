"""Checkpoints: writing, reading, resuming, loading pretrained weights, stitching."""
