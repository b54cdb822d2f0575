"""Whether everything that `make bench` measures is explained."""

from __future__ import annotations

import re
from pathlib import Path

from tests.bench.__main__ import KEYS

DOCUMENT = Path(__file__).parents[3] / "docs" / "performance.md"


def test_every_key_has_its_row_in_the_document_and_every_row_its_key() -> None:
    section = DOCUMENT.read_text().partition("## How it measures")[2].partition("\n## ")[0]

    rows = re.findall(r"^\| (\w+) \|", section, re.MULTILINE)

    assert rows == list(KEYS)
