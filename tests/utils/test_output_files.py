"""Files that are written as a whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pcdet_freeze
from pcdet_freeze.utils.output_files import write_text


def test_a_text_is_utf_8_whatever_the_locale_is(tmp_path: Path) -> None:
    code = "import sys, pathlib; from pcdet_freeze.utils.output_files import write_text;"
    code += "write_text(pathlib.Path(sys.argv[1]), 'a \\u00b7 b')"
    words = [sys.executable, "-X", "utf8=0", "-c", code, str(tmp_path / "page")]
    package = str(Path(pcdet_freeze.__file__).parents[1])
    locale = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run(words, check=True, env={**os.environ, **locale, "PYTHONPATH": package})
    assert (tmp_path / "page").read_bytes() == "a \u00b7 b".encode()


def test_a_name_that_is_not_utf_8_can_be_written(tmp_path: Path) -> None:
    write_text(tmp_path / "page", b"run \xff".decode(errors="surrogateescape"))
    assert (tmp_path / "page").read_text(encoding="utf-8") == "run \\udcff"
