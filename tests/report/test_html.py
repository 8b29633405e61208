"""Pages: balanced tags, escaped text, nothing from outside."""

from __future__ import annotations

import pytest
from html_checks import Page

from pcdet_freeze.report.html import fold, page, section, table, tag, text


def test_a_page_is_valid_and_refers_to_nothing_outside() -> None:
    found = Page(
        page("a & b", section("One", table(["x", "y"], [["1", "2"]], numbers=(1,)), fold("more", "x")))
    )
    assert found.faults == [] and found.open == []
    assert "a & b" in found.text and found.count("td", class_="n") == 1 and found.count("details") == 1


@pytest.mark.parametrize("words", ["<script>alert(1)</script>", "</pre></body>", '" onload="x', "a & <b"])
def test_text_from_a_config_or_log_stays_text(words: str) -> None:
    found = Page(page(words, tag("p", text(words), title=words), fold(text(words))))
    assert found.faults == [] and words in found.text
    assert found.count("script") == 0 and found.count("p", title=words) == 1


def test_a_fold_is_closed_unless_it_is_said() -> None:
    assert "<details>" in fold("a", "b") and "<details open>" in fold("a", "b", is_open=True)


def test_a_section_without_content_is_left_out() -> None:
    assert section("Nothing", "", "") == ""


def test_the_check_of_pages_finds_what_it_must_find() -> None:
    bad = ["<p>", "<b><i></b></i>", '<img src="http://a.b/c.png">', "<script></script>",
           "<style>@import 'x'</style>", '<a href="other.html"></a>', '<p onclick="x"></p>']  # fmt: skip
    assert all(Page(one).faults for one in bad)
