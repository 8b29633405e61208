"""Format results as tables of at most 100 columns."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap
from typing import Any

Row = dict[str, Any]
_STEP_HEAD = (
    f"{'variant':<14}{'seconds':>8} {'(quartiles)':<15}{'time':>6} {'(quartiles)':<15}"
    f"{'FLOPs':>7}{'saved':>7}{'peak':>7}{'ckpt':>7}{'optim':>7}"
)


def step_table(rows: Sequence[Row]) -> str:
    """Table of the variants of a step, with the figures that ratios refer to."""
    base = rows[0]
    lines = [_STEP_HEAD, *(_step_line(row) for row in rows), ""]
    lines += [
        f"Ratios to {base['variant']}; median of {base['rounds']} interleaved rounds, with quartiles.",
        f"{base['variant']}: {base['flops'] / 1e9:.4g} GFLOP a step, {_mb(base['saved_bytes'])} saved for "
        f"backward, peak {_mb(base['peak_bytes'])},",
        f"checkpoint {_mb(base['checkpoint_bytes'])} (optimizer state {_mb(base['optimizer_bytes'])}), "
        f"{base['trainable'] / 1e6:.3g} M trainable parameters.",
    ]
    if "to_ragged" in base:
        lines += ["", "Ratios to none_ragged, without padding:", _STEP_HEAD]
        lines += [*(_step_line(row | row["to_ragged"]) for row in rows), ""]
    losses = ", ".join(f"{row['variant']} {row['loss']:.7g}" for row in rows)
    lines += [_relative_to(rows, other) for other in base["time_ratios"]]
    for row in rows:
        if "untimed" in row:
            lines += wrap(f"{row['variant']} was not timed: {row['untimed']}", 100)
    return "\n".join([*lines, *wrap(f"Loss of the first step: {losses}", 100)])


def _relative_to(rows: Sequence[Row], other: str) -> str:
    """Time of every variant relative to the variant ``other``."""
    what = (
        f"{other}, the fastest without frozen parameters" if other == rows[0]["fastest_unfrozen"] else other
    )
    ratios = ", ".join(
        f"{row['variant']} {row['time_ratios'][other]:.3f}" for row in rows if row["time_ratios"]
    )
    return "\n".join(wrap(f"Time relative to {what}: {ratios}", 100))


def _step_line(row: Row) -> str:
    exact = ("flops", "saved_bytes", "peak_memory", "checkpoint", "optimizer")
    times = f"{'-':>8} {'':<15}{'-':>6} {'':<15}"
    if "untimed" not in row:
        times = f"{row['seconds']:>8.3g} {_range(row['seconds_quartiles']):<15}"
        times += f"{row['time_ratio']:>6.3f} {_range(row['time_ratio_quartiles']):<15}"
    return f"{row['variant']:<14}{times}" + "".join(f"{row[f'{name}_ratio']:>7.3f}" for name in exact)


def overhead_table(rows: Sequence[Row]) -> str:
    """Whole steps, by hand and frozen, and the overhead measured separately."""
    *steps, overhead = rows
    lines = [f"{'step':<10}{'seconds':>9} {'(quartiles)':<16}{'ratio':>8} {'(quartiles)':<16}"]
    lines += [
        f"{row['variant']:<10}{row['seconds']:>9.4g} {_range(row['seconds_quartiles']):<16}"
        f"{row['time_ratio']:>8.4f} {_range(row['time_ratio_quartiles']):<16}"
        for row in steps
    ]
    lines += ["", "Additional microseconds in a step of the frozen model, measured separately:"]
    parts = {"train_call": "model.train()", "pre_hook": "forward pre-hook", "norm_layers": "norm layers"}
    lines += [f"  {text:<18}{overhead[f'{key}_seconds'] * 1e6:>9.1f}" for key, text in parts.items()]
    lines += [f"  {'sum':<18}{overhead['seconds'] * 1e6:>9.1f} = {overhead['time_ratio'] - 1:.4%} of a step"]
    return "\n".join(lines)


def certificate_table(rows: Sequence[Row]) -> str:
    """One line: parameters, seconds, throughput."""
    row = rows[0]
    return (
        f"certificate of {row['parameters'] / 1e6:.1f} M parameters in {row['tensors']} tensors: "
        f"{row['seconds']:.3f} s {_range(row['seconds_quartiles'])}, "
        f"{row['bytes_per_second'] / 1e9:.2f} GB/s, {row['rounds']} rounds"
    )


def loading_table(rows: Sequence[Row]) -> str:
    """What workers send, frames per second, and the main process's time."""
    *ways, late = rows
    lines = [
        f"{'workers send':<14}{'frames/s':>9} {'(quartiles)':<16}{'ratio':>7}{'main process, ms/frame':>26}"
    ]
    lines += [
        f"{row['variant']:<14}{row['frames_per_second']:>9.1f} "
        f"{_range(row['frames_per_second_quartiles']):<16}{row['rate_ratio']:>7.2f}"
        f"{row['main_seconds'] * 1e3:>26.2f}"
        for row in ways
    ]
    text = f"{ways[0]['workers']} workers, {ways[0]['rounds']} rounds. Voxelising in the main process (CPU):"
    return "\n".join([*lines, "", f"{text} {late['late_seconds'] * 1e3:.2f} ms/frame."])


def operator_table(rows: Sequence[Row]) -> str:
    """Milliseconds of each operator, and ratios where it has a counterpart."""
    lines = [f"{'operator':<26}{'ms':>8} {'(quartiles)':<16}{'ratio':>7} {'(quartiles)':<16}"]
    for row in rows:
        line = f"{row['variant']:<26}{row['seconds'] * 1e3:>8.3g} "
        line += f"{_range([value * 1e3 for value in row['seconds_quartiles']]):<16}"
        if "time_ratio" in row:
            line += f"{row['time_ratio']:>7.3f} {_range(row['time_ratio_quartiles']):<16}"
        lines.append(line.rstrip())
    first = rows[0]
    same = "the same labels and targets" if first["equal"] else "DIFFERENT LABELS OR TARGETS"
    return "\n".join(
        [*lines, "", f"{first['anchors']} anchors; windows give {same}; {first['rounds']} rounds."]
    )


def scaling_table(rows: Sequence[Row]) -> str:
    """One line for each value of each axis: seconds of ``none`` and ``exact``, and their ratio."""
    base = {(row["axis"], row["value"]): row for row in rows if row["variant"] == "none"}
    lines = [
        f"{'axis':<8}{'value':>7}{'none, s':>9}{'exact, s':>9} {'(quartiles)':<16}{'ratio':>6} (quartiles)"
    ]
    for row in rows:
        if row["variant"] == "none":
            continue
        none = base.get((row["axis"], row["value"]), rows[0])
        lines.append(
            f"{row['axis']:<8}{row['value']:>7}{none['seconds']:>9.3g}{row['seconds']:>9.3g} "
            f"{_range(row['seconds_quartiles']):<16}{row['time_ratio']:>6.3f} "
            f"{_range(row['time_ratio_quartiles'])}"
        )
    parts = max((row["list"] for row in rows if "list" in row), key=len)
    lines += ["", *wrap(f"order of freezing: {', '.join(parts)}", 100)]
    return "\n".join([*lines, f"Ratios to none at the same value; {rows[0]['rounds']} interleaved rounds."])


def _range(quartiles: Sequence[float]) -> str:
    return f"({quartiles[0]:.3g}-{quartiles[1]:.3g})"


def _mb(size: int) -> str:
    return f"{size / 1e6:.4g} MB"
