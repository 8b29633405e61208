"""Hook of mkdocs: README, CONTRIBUTING and CHANGELOG are pages of the site, and links to them work there.

The quick start is one text: README.md is the first page of the site.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""file in the root folder -> page of the site"""
ROLE = re.compile(r":(?:class|func|meth|mod|attr):<code>~?(?:[\w.]+\.)?(\w+)</code>")
"""reference of Sphinx in a docstring"""


def on_files(files: Any, config: Any) -> Any:
    """Add the files of the root folder; links in them are relative to it."""
    for name, page in PAGES.items():
        text = (ROOT / name).read_text()
        for other, target in PAGES.items():
            text = re.sub(rf"\]\({other}(?=[)#])", f"]({target}", text)
        files.append(File.generated(config, page, content=text.replace("](docs/", "](")))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links of the pages of docs/ to files of the root folder."""
    for name, page in PAGES.items():
        markdown = re.sub(rf"\]\(((?:\.\./)*)\.\./{name}(?=[)#])", rf"](\1{page}", markdown)
    return markdown


def on_page_content(html: str, **_: Any) -> str:
    """Write the roles of docstrings, ``:func:`train```, as code."""
    return ROLE.sub(r"<code>\1</code>", html)
