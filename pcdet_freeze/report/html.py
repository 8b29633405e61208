"""HTML of reports: escaped tags, tables, a page without any reference to the outside."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

VOID = frozenset({"meta", "img", "br"})

STYLE = """
:root { --ink: #1d2733; --soft: #5b6876; --line: #d7dde4; --paper: #fff; --shade: #f4f6f8;
  --frozen: #1f6fb2; --frozen-back: #e3f0fa; --partly: #7a5b00; --partly-back: #fdf3d0;
  --live: #a63d00; --live-back: #fdebe0; --good: #1a7f37; --bad: #b42318; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 70rem; padding: 1.5rem; color: var(--ink); background: var(--paper);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .2rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .6rem; }
h1, h2, summary, th { overflow-wrap: anywhere; }
.soft { color: var(--soft); } .good { color: var(--good); font-weight: 600; }
.bad { color: var(--bad); font-weight: 600; }
code, pre { font: 13px/1.45 ui-monospace, monospace; } code { overflow-wrap: anywhere; }
td code { overflow-wrap: break-word; }
pre { background: var(--shade); border: 1px solid var(--line); border-radius: 6px; padding: .7rem;
  overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; } td.n, th.n { text-align: right; white-space: nowrap; }
.wide { overflow-x: auto; }
.facts { display: flex; flex-wrap: wrap; gap: .6rem; margin: 1rem 0; }
.fact { background: var(--shade); border-radius: 6px; padding: .5rem .8rem; min-width: 9rem; flex: 1; }
.fact b { display: block; font-size: 1.15rem; }
details { border-left: 2px solid var(--line); padding-left: .8rem; margin: .1rem 0; }
details > summary { cursor: pointer; margin-left: -.8rem; padding-left: .3rem; }
.tree .leaf { padding-left: .3rem; margin: .1rem 0; }
.state { border-radius: 4px; padding: 0 .4rem; font-size: .85em; }
.frozen, .locked { color: var(--frozen); background: var(--frozen-back); }
.partly { color: var(--partly); background: var(--partly-back); }
.trainable { color: var(--live); background: var(--live-back); }
.none { color: var(--soft); background: var(--shade); }
figure { margin: 1rem 0; } figure img, figure svg { max-width: 100%; height: auto; }
.curves { display: flex; flex-wrap: wrap; gap: 1rem; }
.curves figure { margin: 0; flex: 1; min-width: min(24rem, 100%); }
@media print { body { max-width: none; padding: 0; } h2 { break-after: avoid; }
  figure, tr { break-inside: avoid; } }
"""


def tag(name: str, /, *inside: str, **attributes: str) -> str:
    """One element; ``inside`` is HTML, attributes are text. ``class_`` and the like lose their underscore.

    An attribute with an empty value is a mere name (``open``).
    """
    given = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + (f'="{escape(value)}"' if value else "")
        for key, value in attributes.items()
    )
    return f"<{name}{given}>" if name in VOID else f"<{name}{given}>{''.join(inside)}</{name}>"


def text(value: object) -> str:
    """``value`` as text in HTML."""
    return escape(str(value))


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """A table; ``head`` is text, cells are HTML.

    Args:
        numbers: columns that are aligned to the right.
    """

    def line(kind: str, cells: Sequence[str]) -> str:
        made = (tag(kind, c, class_="n") if i in numbers else tag(kind, c) for i, c in enumerate(cells))
        return tag("tr", *made)

    body = [line("td", row) for row in rows]
    whole = tag("table", tag("thead", line("th", [text(cell) for cell in head])), tag("tbody", *body))
    return tag("div", whole, class_="wide")


def fold(title: str, /, *inside: str, is_open: bool = False, **attributes: str) -> str:
    """A part that opens and closes; ``title`` and ``inside`` are HTML."""
    given = {**attributes, "open": ""} if is_open else attributes
    return tag("details", tag("summary", title), *inside, **given)


def section(title: str, *inside: str) -> str:
    """A part with a heading; empty where nothing is inside."""
    return tag("section", tag("h2", text(title)), *inside) if any(inside) else ""


def page(title: str, *inside: str) -> str:
    """A whole document: nothing in it is loaded from elsewhere."""
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", text(title)),
        tag("style", STYLE),
    ]
    body = tag("body", *inside)
    return f"<!DOCTYPE html>\n{tag('html', tag('head', *head), body, lang='en')}\n"
