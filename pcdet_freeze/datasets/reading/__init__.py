"""Reads that hang or fail: limits of time, killed data workers, bad frames."""
