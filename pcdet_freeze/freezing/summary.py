"""Summary and report of a freeze."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn
from torch.nn.parameter import is_lazy

from pcdet_freeze.freezing import layer_types
from pcdet_freeze.freezing.apply import frozen_parameters, target_modules
from pcdet_freeze.freezing.entries.paths import children, find, is_within, walk
from pcdet_freeze.freezing.entries.resolve import Resolution
from pcdet_freeze.freezing.plan import KEY, FreezePlan
from pcdet_freeze.freezing.state import FreezeRequest


def norm_layers(root: nn.Module, request: FreezeRequest) -> tuple[str, ...]:
    """Paths of the norm layers that ``claim`` holds."""
    return tuple(
        m.path for m in target_modules(root, request) if m.eval_locked and layer_types.is_norm(m.module)
    )


def summary(root: nn.Module, plan: FreezePlan, request: FreezeRequest | None) -> str:
    """ "frozen 4.2 of 4.8 M parameters, 17 norm layers, by vfe, backbone_2d.blocks"."""
    if not plan:
        return f"nothing is frozen: MODEL.{KEY} is absent, null or empty"
    if request is None:
        return f"no longer frozen: {', '.join(plan.entries)} (released)"
    norms = len(norm_layers(root, request))
    layers = f"{norms} norm layer{'' if norms == 1 else 's'}"
    by = ", ".join(dict.fromkeys(plan.entries))
    if not plan.parameters:
        return f"all parameters are trainable; {layers} locked in eval mode, by {by}"
    total = _size(root.parameters())
    part = _size(frozen_parameters(root, request))
    return f"frozen {counts(part, total)} parameters, {layers}, by {by}"


def _size(parameters: Iterable[nn.Parameter]) -> int:
    """Numbers in ``parameters``; those of lazy modules have none yet."""
    return sum(0 if is_lazy(parameter) else parameter.numel() for parameter in parameters)


def counts(part: int, total: int) -> str:
    """ "4.2 of 4.8 M", more digits if the part is nearly all; plain numbers for small models, parts."""
    if total < 100_000 or 0 < part < 50_000:
        return f"{part:,} of {total:,}"
    millions = [[f"{number / 1e6:.{digits}f}" for number in (part, total)] for digits in (1, 2, 3, 6)]
    shown, of = next((pair for pair in millions if pair[0] != pair[1]), millions[0])
    return f"{shown} of {of} M"


def report(
    root: nn.Module, request: FreezeRequest | None, resolution: Resolution, notes: Iterable[str]
) -> str:
    """A table with a line for each child of the detector and each frozen module, and the notes."""
    rows: list[Sequence[str]] = [("module", "parameters", "frozen", "norm locked", "off", "by")]
    paths = [path for path, _ in children("", root)]
    outermost = request.module_set.names(root) if request is not None else ()
    paths += [path for path in outermost if path not in paths]
    targets = list(target_modules(root, request)) if request is not None else []
    ours = {id(parameter) for parameter in (frozen_parameters(root, request) if request is not None else [])}
    order = {path: place for place, (path, _, _) in reversed(list(enumerate(walk(root))))}
    for path in sorted(dict.fromkeys(paths), key=lambda p: order.get(p, 0)):
        found = find(root, path)
        parameters = list(found[0].parameters()) if found is not None else []
        inside = [m for m in targets if m.eval_locked and is_within(m.path, path)]
        norms = sum(layer_types.is_norm(m.module) for m in inside)
        rows.append(
            (
                path,
                f"{_size(parameters):,}",
                f"{_size(p for p in parameters if id(p) in ours):,}",
                str(norms),
                str(len(inside) - norms),
                resolution.entry_of(path)
                if request is not None and request.module_set.contains(path)
                else "",
            )
        )
    return "\n".join([_table(rows), *(f"note: {note}" for note in notes)])


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:-1], widths[1:-1], strict=True))]
        lines.append("  ".join([*cells, row[-1]]).rstrip())
    return "\n".join(lines)
