"""A stand-in for OpenPCDet: our own code in its public shape, small enough to train in a second on a CPU.

Signatures, call order, detectors, their loss calls and what is odd about them follow published facts; sizes
and arithmetic are toys. `STANDIN_VERSION` says which release's signatures it has.
"""

import os

VERSION = os.environ.get("STANDIN_VERSION", "8caccce")
__version__ = "0.6.0+standin"
