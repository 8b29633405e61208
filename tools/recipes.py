"""Train the same three tasks by five recipes; the same as ``pcdet-freeze recipes``.

python tools/recipes.py                      # 100 iterations a stage
python tools/recipes.py --max_iters 450      # a budget like that of three_stages.py
python tools/recipes.py --quick              # a few minutes: not the quality
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pcdet_freeze.__main__ import leave
from pcdet_freeze.__main__ import main as command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command ``recipes``; returns its exit code."""
    return command(["recipes", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    leave(main())
