"""Whether the files of a data set can be what its config says, judged on a few frames; what a frame holds."""

from pcdet_freeze.datasets.checks.findings import Finding, check_frames, raise_or_warn

__all__ = ["Finding", "check_frames", "raise_or_warn"]
