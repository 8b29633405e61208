"""The command ``doctor``; its flags and help: ``arguments/doctor.py``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from pcdet_freeze import doctor
from pcdet_freeze.doctor import CHECKS, Case, Outcome
from pcdet_freeze.doctor.openpcdet import find_openpcdet
from pcdet_freeze.errors import ConfigError
from pcdet_freeze.utils.settings.names import did_you_mean
from pcdet_freeze.utils.terminal import columns, paint, wrap

SOUND, TROUBLE, UNKNOWN = 0, 1, 2
ERROR_CODE = UNKNOWN


def run(args: argparse.Namespace) -> int:
    """Print what was found; returns the exit code."""
    names = _names(args.only, args.skip)
    if args.list:
        print(
            "\n".join(
                f"{one.id:<22}{one.severity:<9}{one.about}" for one in CHECKS.values() if one.id in names
            )
        )
        return SOUND
    case = Case(
        doctor.look(args.output_dir),
        args.cfg_file,
        tuple(args.set_cfgs),
        args.ckpt,
        args.openpcdet or find_openpcdet(Path.cwd()),
        args.output_dir,
        args.extra_tag,
        args.workers,
    )
    found = list(doctor.examine(case, names))
    print(json.dumps([one.to_plain() for one in found], indent=1) if args.json else text_of(found))
    states = {one.state for one in found}
    return TROUBLE if "trouble" in states else UNKNOWN if "failed" in states else SOUND


def _names(only: Sequence[str], skip: Sequence[str]) -> list[str]:
    given = [name for word in (*only, *skip) for name in word.split(",") if name]
    for name in given:
        if name not in CHECKS:
            near = did_you_mean(name, CHECKS)
            raise ConfigError(
                f"--only and --skip take ids of checks; got {name!r}{near} (known: {', '.join(CHECKS)})"
            )
    return given if only else [name for name in CHECKS if name not in given]


def text_of(found: Sequence[Outcome]) -> str:
    """Problems first, each with its fix; then what could not be checked; then the rest in a line each."""
    limit, lines = columns(), []
    for state, mark in (("trouble", ""), ("failed", "failed")):
        for one in (one for one in found if one.state == state):
            kind = (mark or one.severity).upper()
            title = paint(kind, "red" if one.severity == "error" else "yellow")
            lines += [f"{title} {one.id}: {one.about}", *_wrapped(one.text, limit)]
            lines += [*_wrapped(f"-> {one.cure}", limit), ""]
    for one in (one for one in found if one.state == "sound"):
        lines += wrap(f"{one.id}: {one.about}", limit, " " * 8, "ok      ")
    reasons = dict.fromkeys(one.text for one in found if one.state == "not applicable")
    for reason in reasons:
        names = ", ".join(one.id for one in found if one.state == "not applicable" and one.text == reason)
        lines += wrap(f"{names}: {reason}", limit, " " * 8, "-       ")
    count = {state: sum(one.state == state for one in found) for state in ("sound", "trouble", "failed")}
    lines.append(f"\n{count['sound']} ok, {count['trouble']} with a problem, {count['failed']} failed")
    return "\n".join(lines)


def _wrapped(text: str, limit: int) -> list[str]:
    return [part for line in text.splitlines() for part in wrap(line, limit, " " * 4)]
