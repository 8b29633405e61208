"""Find memo numbers in a pickle that are larger than the pickle itself.

The C unpickler allocates and clears its memo up to the largest number that a PUT names: nine bytes can take
32 GB (CPython issue 115952). A memo number counts stored objects, and each takes a byte or more to write.
"""

from __future__ import annotations

import pickle
import re

# opcodes with an argument of fixed size, and those with a length before their bytes (see pickletools)
_FIXED = {0: b"(012)]}N.abdelotPQRstu\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94\x97\x98",
          1: b"Khq\x80\x82", 2: b"M\x83", 4: b"Jj\x84", 8: b"G\x95"}  # fmt: skip
_ANY = b"|".join(b"[" + re.escape(ops) + b"].{%d}" % size for size, ops in _FIXED.items())
_RUN = re.compile(b"(?:" + _ANY + b")+", re.S)
_RUN_OF_LARGE = re.compile(b"(?:" + _ANY + rb"|r...\0)+", re.S)
"""the same with memo numbers below 2**24, which take at most 256 MB; for speed"""
_LARGE = 2**22
"""bytes of a pickle that may have so many objects"""
_LENGTHS = {1: b"UC\x8c\x8a", 4: b"TBX\x8b", 8: b"\x8d\x8e\x96"}
_SIZED = {op: size for size, ops in _LENGTHS.items() for op in ops}
"""opcode -> bytes of the length that comes before its bytes"""
_LINES = {op: 1 for op in b"IFSVLgpP"} | {op: 2 for op in b"ci"}
_PUT, _LONG_PUT = ord("p"), ord("r")


def check_memo(raw: bytes) -> None:
    """Raise pickle.UnpicklingError for a memo number above the length of ``raw``; ignore other damage."""
    at, end = 0, len(raw)
    runs = _RUN if end < _LARGE else _RUN_OF_LARGE
    while at < end:
        run = runs.match(raw, at)
        if run is not None:
            at = run.end()
            continue
        number, at = _step(raw, at)
        if number > end:
            raise pickle.UnpicklingError(f"it stores an object as number {number}, but has {end} bytes")


def _step(raw: bytes, at: int) -> tuple[int, int]:
    """The memo number that the opcode at ``at`` stores to (0: none), and the place of the next opcode."""
    op, end = raw[at], len(raw)
    if op == _LONG_PUT:
        return int.from_bytes(raw[at + 1 : at + 5], "little"), at + 5
    if op in _SIZED:
        begin = at + 1 + _SIZED[op]
        length = int.from_bytes(raw[at + 1 : begin], "little")
        return (length if op == 0x96 and length > end else 0), begin + length
    for _ in range(_LINES.get(op, 0)):
        line, at = at + 1, raw.find(b"\n", at + 1)
        if at < 0:
            return 0, end
        if op == _PUT and raw[line:at].strip().isdigit():
            return int(raw[line:at][:20]), at + 1
    return (0, at + 1) if op in _LINES else (0, end)
