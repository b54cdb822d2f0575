"""What the documents point at is there, and what they tell people to type exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cli.main import COMMANDS
from kms import onboard_routes, routes
from vmm.guest_routes import service as guest_service
from vmm.routes import service as vmm_service

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
# The makers of these services need nothing of what they serve to name its calls.
KMS_CALLS = {*routes.rpc_service(None).methods, *onboard_routes.rpc_service(None).methods}  # type: ignore[arg-type] # as said
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def test_there_are_documents() -> None:
    names = {path.name for path in DOCUMENTS}

    assert {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "architecture.md"} <= names
    assert (ROOT / "LICENSE").read_text().lstrip().startswith("Apache License")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(document: Path) -> None:
    for target in LINK.findall(document.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        assert path.exists(), f"{document.name}: {target}"
        assert path.is_relative_to(ROOT), f"{document.name}: {target}"
        if anchor:
            assert anchor in anchors(path), f"{document.name}: {target}"


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ +(.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_nothing_is_left_to_fill_in(document: Path) -> None:
    text = document.read_text()

    assert not re.findall(r"@@\w+@@|\bTODO\b|\bFIXME\b|\bTBD\b", text)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_call_that_is_shown_exists(document: Path) -> None:
    # Its page speaks of the KMS's calls, which stand below /prpc as well.
    prpc = KMS_CALLS if document.name == "kms.md" else set(vmm_service.methods)
    for known, surface in ((prpc, "prpc"), (set(guest_service.methods), "guest")):
        for method in re.findall(rf"/{surface}/(\w+)", document.read_text()):
            assert method in known, f"{document.name}: /{surface}/{method}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_that_is_shown_exists(document: Path) -> None:
    text = document.read_text()
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)

    for name in re.findall(r"(?:\.venv/bin/|`|^\$ )casemate ([a-z][a-z-]*)", text, re.MULTILINE):
        assert name in COMMANDS, f"{document.name}: casemate {name}"
    for name in re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE):
        assert name in targets, f"{document.name}: make {name}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_of_the_project_that_is_named_exists(document: Path) -> None:
    named = re.findall(
        r"`((?:core|models|accounts|vmm|guest|attest|attest_sim|image|cli|migrations|tests|docs)/[\w./-]+)`",
        document.read_text(),
    )
    for name in named:
        assert (ROOT / name).exists(), f"{document.name}: {name}"
