"""One page of several stages: their table, their comparison, and the report of each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pcdet_freeze.report.compare import comparison_body, titles_of
from pcdet_freeze.report.html import fold, page, section, tag, text
from pcdet_freeze.report.record import RunRecord
from pcdet_freeze.report.run_page import body_of


def stages_page(title: str, about: str, figures: str, records: Sequence[RunRecord]) -> str:
    """A self-contained page.

    Args:
        about: one paragraph.
        figures: a table as text.
        records: the runs of the stages, in order; their pictures are read from their folders.
    """
    names = titles_of(records)
    stages = [
        fold(tag("b", text(name)), body_of(record, Path(record.folder)), class_="stage")
        for name, record in zip(names, records, strict=True)
    ]
    return page(
        title,
        tag("h1", text(title)),
        tag("p", text(about)),
        section("Result", tag("pre", text(figures))),
        comparison_body(records),
        section("The report of each stage", *stages),
    )
