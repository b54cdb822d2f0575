"""Other people's files are what they say they are, and nothing else lies beside them."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

VENDOR = Path(__file__).parents[2] / "static/vendor"
TABLE = re.findall(
    r"^\| ([\w./-]+) \| (\S+ [\d.]+) \| \S+ \| \[[\w-]+\]\((\S+)\) \| ([0-9a-f]{64}) \|$",
    (VENDOR / "VENDORED.md").read_text(),
    re.MULTILINE,
)


def test_every_file_is_named_with_its_hash_and_licence() -> None:
    present = {
        str(path.relative_to(VENDOR))
        for path in VENDOR.rglob("*")
        if path.is_file() and path.parent.name != "licences"
    }

    assert {name for name, *_ in TABLE} == present - {"VENDORED.md"}
    for name, _, licence, expected in TABLE:
        assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == expected, name
        assert (VENDOR / licence).read_text().strip(), licence
