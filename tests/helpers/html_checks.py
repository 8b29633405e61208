"""Check a page: tags are balanced, and nothing is loaded from elsewhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = {"meta", "img", "br"}
OUTSIDE = re.compile(r"@import|url\(|https?://|//\w+\.\w+/", re.I)


class Page(HTMLParser):
    """Reads a page; ``faults`` is empty for a valid one."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.faults: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        self.faults += [f"<{name}> is not closed" for name in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            loads = name in ("src", "href", "data", "action") and not str(value).startswith(("data:", "#"))
            if loads or (name not in ("src",) and OUTSIDE.search(value or "")) or name.startswith("on"):
                self.faults.append(f"{name}={str(value)[:60]} of <{tag}> refers to the outside")
        if tag in ("script", "link", "iframe", "object", "base"):
            self.faults.append(f"<{tag}> is in the page")

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> at {self.getpos()} closes another tag")

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["style"]:
            if OUTSIDE.search(data):
                self.faults.append("the style loads something")
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        """All text, without that of the style."""
        return " ".join(" ".join(self.words).split())

    def count(self, tag: str, **attributes: str) -> int:
        """How many ``tag`` have these attributes."""
        wanted = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
        return sum(name == tag and wanted.items() <= given.items() for name, given in self.tags)
