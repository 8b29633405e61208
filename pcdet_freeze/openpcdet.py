"""The same freeze inside an unmodified OpenPCDet.

```
python -m pcdet_freeze.openpcdet tools/train.py --cfg_file tools/cfgs/kitti_models/pv_rcnn.yaml ...
torchrun --nproc_per_node=8 -m pcdet_freeze.openpcdet tools/train.py --launcher pytorch --cfg_file ...
python -m pcdet_freeze.openpcdet explain --cfg_file tools/cfgs/kitti_models/pv_rcnn.yaml
python -m pcdet_freeze.openpcdet verify A.pth B.pth
```

In a script of your own, before ``pcdet`` is used: ``import pcdet_freeze.openpcdet``, then
``pcdet_freeze.openpcdet.install()``; ``verify(model)`` in a training loop of your own.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence

from pcdet_freeze.errors import PCDetFreezeError
from pcdet_freeze.integrations.openpcdet.plugin import install, uninstall, verify
from pcdet_freeze.integrations.openpcdet.run_script import run_script

__all__ = ["install", "uninstall", "verify"]

USAGE = "usage: python -m pcdet_freeze.openpcdet (SCRIPT [its arguments] | explain ... | verify A.pth B.pth)"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a script of OpenPCDet with the plugin on, or one of the two commands; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if words else 2
    try:
        if words[0] == "verify":
            from pcdet_freeze.__main__ import main as run_command

            return run_command(words)
        if words[0] == "explain":
            return explain(words[1:])
        run_script(words)
    except PCDetFreezeError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def explain(words: Sequence[str]) -> int:
    """Print the table of a config; 1 where a training would be refused."""
    # imported here: a training needs neither this package's models nor its data sets
    from pcdet_freeze.cli.explain import WIDEST, print_table
    from pcdet_freeze.integrations.openpcdet import explain

    parser = argparse.ArgumentParser(prog="python -m pcdet_freeze.openpcdet explain")
    explain.add_arguments(parser)
    args = parser.parse_args(words)
    found, source = explain.gather(args)
    if args.json:
        print(json.dumps({"cfg_file": args.cfg_file, "batch": source, **found.to_plain()}, indent=1))
    else:
        columns = shutil.get_terminal_size((WIDEST, 24)).columns
        print_table(found, ["random weights", source], columns)
    return 1 if found.problems else 0


if __name__ == "__main__":
    sys.exit(main())
