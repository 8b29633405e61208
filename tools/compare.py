"""Former name of ``tools/recipes.py``: names the command and exits with 2."""

from __future__ import annotations

import sys

from pcdet_freeze.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["compare"]))
