"""The certificate of a freeze as a report shows it."""

from __future__ import annotations

import hashlib

from pcdet_freeze.freezing import FreezeHandle
from pcdet_freeze.report.record import Certificate


def certificate_of(handle: FreezeHandle) -> Certificate:
    """Digest the frozen state as it is now, and its digests as one."""
    found = handle.certificate()
    lines = "".join(f"{name}={value}\n" for name, value in sorted(found.digests.items()))
    digest = hashlib.blake2b(lines.encode(), digest_size=16).hexdigest()
    return Certificate(dict(found.digests), digest, found.algorithm)
