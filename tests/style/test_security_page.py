"""docs/security.md names a test for each finding; here each of them must exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/security.md").read_text()


def section(title: str) -> list[list[str]]:
    """The rows of the tables under a heading, without their heads."""
    text = PAGE.split(f"## {title}\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [row for row in rows if row[-1].strip() != "tests"]


def existing() -> set[str]:
    """The names of all tests."""
    texts = (path.read_text() for path in ROOT.glob("tests/**/test_*.py"))
    return {name for text in texts for name in re.findall(r"^def (test_\w+)\(", text, re.MULTILINE)}


def test_every_test_that_the_page_names_exists() -> None:
    missing = set(re.findall(r"`(test_\w+)`", PAGE)) - existing()

    assert not missing


def test_every_finding_names_a_test() -> None:
    rows = section("The audit findings")

    assert len(rows) >= 18
    for row in rows:
        assert len(row) == 3 and "`test_" in row[2], row[0]


def test_every_finding_of_the_audit_is_there() -> None:
    findings = " ".join(row[0] for row in section("The audit findings"))

    for number in ("01", "02", "03", "04", "05", "06", "07", "08", "09", "0b"):
        assert f"#{number}" in findings
    for report in (554, 556, 558, 566, 567, 605, 606):
        assert f"#{report}" in findings
