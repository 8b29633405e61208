"""Format the results of whole trainings and of evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
SMALL = 0.001
"""parts with a smaller share are added up in one line"""


def parts_table(rows: Sequence[Row]) -> str:
    """Seconds of each part of a training, its share of the wall time, and the same of the process time."""
    first, keys = rows[0], ("seconds", "share", "cpu", "cpu_share")
    shown = [row for row in rows if row["share"] >= SMALL]
    small = [row for row in rows if row["share"] < SMALL]
    rest = {"part": "all others", **{key: sum(row[key] for row in small) for key in keys}}
    lines = [f"{'part':<32}{'seconds':>10}{'share':>9}{'process':>10}{'share':>9}"]
    lines += [
        f"{row['part']:<32}{row['seconds']:>10.2f}{row['share']:>9.2%}{row['cpu']:>10.2f}{row['cpu_share']:>9.2%}"
        for row in (*shown, rest)
    ]
    lines += [
        "",
        f"{first['iterations']} iterations in {first['wall']:.1f} s; {first['step_seconds']:.3f} s a step;",
        f"user {first['user']:.1f} s, system {first['system']:.1f} s;",
        f"{first['faults'] / 1e6:.2f} M page faults;",
        f"from the start of the process to the first step {first['to_first_step']:.1f} s.",
    ]
    return "\n".join(lines)


def allocator_table(rows: Sequence[Row]) -> str:
    """Whole processes with freed memory returned and kept."""
    lines = [
        f"{'freed memory':<14}{'user, s':>9}{'system, s':>11}{'faults, M':>11}{'peak, MB':>10}"
        f"{'worker, MB':>12}{'time':>7} (quartiles)"
    ]
    lines += [
        f"{row['variant']:<14}{row['user']:>9.1f}{row['system']:>11.2f}{row['faults'] / 1e6:>11.2f}"
        f"{row['peak_rss'] / 1e6:>10.0f}{row['worker_rss'] / 1e6:>12.0f}{row['time_ratio']:>7.3f} "
        f"({row['time_ratio_quartiles'][0]:.3f}-{row['time_ratio_quartiles'][1]:.3f})"
        for row in rows
    ]
    text = "time: user and system seconds of a process and its workers, relative to the first row; pairs"
    return "\n".join([*lines, "", f"{text} alternate, {rows[0]['rounds']} rounds."])


def seconds_table(rows: Sequence[Row]) -> str:
    """One line for each row: seconds with quartiles."""
    width = max(len(row["variant"]) for row in rows)
    return "\n".join(
        f"{row['variant']:<{width}}{row['seconds']:>9.4g} s ({row['seconds_quartiles'][0]:.4g}-"
        f"{row['seconds_quartiles'][1]:.4g})"
        for row in rows
    )
