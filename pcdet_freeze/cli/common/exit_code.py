"""Exit codes: 0, 1 after an expected error, 128 + N after signal N (130 after Ctrl-C)."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable

from pcdet_freeze.errors import PCDetFreezeError
from pcdet_freeze.utils.signals.stop_signals import StoppedBySignal

ERROR, INTERRUPTED = 1, 130


def exit_code(run: Callable[[], object], verbose: bool = False) -> int:
    """Call ``run``, which logs its errors itself; with ``verbose`` print the traceback of an error."""
    try:
        run()
        return 0
    except PCDetFreezeError:
        if verbose:
            traceback.print_exc(file=sys.stdout)
        return ERROR
    except KeyboardInterrupt:
        return INTERRUPTED
    except StoppedBySignal as stop:
        return 128 + stop.number
