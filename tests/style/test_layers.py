"""The arrows of the architecture: who may import whom, and where a library may be used."""

from __future__ import annotations

import ast
import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")
PACKAGES = [name for name in SETUP["options"]["packages"].split() if "." not in name]


def sources() -> list[Path]:
    return [
        path
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        # The sample app runs in a container of its own.
        if "hello" not in path.parts
    ] + [ROOT / "app.py", ROOT / "wsgi.py"]


def imports(path: Path) -> set[str]:
    """The modules that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def users(library: str) -> set[str]:
    """The files, by their path from the root, that import a library."""
    return {
        str(path.relative_to(ROOT))
        for path in sources()
        if any(name.split(".")[0] == library for name in imports(path))
    }


def matching(files: set[str], *patterns: str) -> set[str]:
    return {name for name in files if any(re.fullmatch(pattern, name) for pattern in patterns)}


def test_the_import_contracts_hold() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


def test_every_package_is_under_a_contract() -> None:
    guarded = SETUP["importlinter"]["root_packages"].split()

    # migrations holds alembic's files; it is guarded below.
    assert sorted(guarded) == sorted(set(PACKAGES) - {"migrations"})
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"} == set(PACKAGES)


def test_the_application_is_imported_by_the_command_line_alone() -> None:
    # app.py and wsgi.py are no packages: import-linter cannot guard them.
    for name in ("app", "wsgi"):
        assert all(user.startswith("cli/") or user == "wsgi.py" for user in users(name)), name


def test_migrations_know_the_tables_and_what_lies_below() -> None:
    for path in (ROOT / "migrations").rglob("*.py"):
        own = {name.split(".")[0] for name in imports(path)} & set(PACKAGES)
        assert own <= {"core", "models", "migrations"}, path


@pytest.mark.parametrize(
    ("library", "places"),
    [
        ("subprocess", (r"core/proc\.py", r"vmm/process\.py")),
        (
            "flask",
            (
                r"(app|wsgi)\.py",
                r".*/(\w+_)?routes\.py",
                r"vmm/(console|rpc)\.py",
                r"guest/wire\.py",
                r"rest/\w+\.py",
            ),
        ),
        (
            "attest_sim",
            (
                r"attest_sim/\w+\.py",
                r"vmm/simulation\.py",
                r"guest/(tee|simulator)\.py",
                r"kms/attester\.py",
            ),
        ),
        (
            "sqlalchemy",
            (
                r"models/\w+\.py",
                r"migrations/.*\.py",
                r"accounts/\w+\.py",
                r"(\w+)/service\.py",
                r"vmm/(records|reconcile|revisions|listing|background|usage|metrics)\.py",
                r"secretvm/(jobs|vm_records|clusters|cluster_records|cluster_nodes|balancer|traffic|pricing|billing|people)\.py",
                r"apps/records\.py",
                r"runs/(scheduler|desk|instances|orders|reports|rolling)\.py",
                r"runs/(placement|progress|pruning|records|timeline|fleets|people|access)\.py",
            ),
        ),
        ("alembic", (r"migrations/.*\.py",)),
        ("click", (r"cli/\w+\.py",)),
        ("rich", (r"cli/\w+\.py",)),
        (
            "gunicorn",
            (
                r"app\.py",
                r"cli/server\.py",
                r"vmm/worker\.py",
                r"guest/\w+\.py",
                r"kms/routes\.py",
            ),
        ),
        ("qemu", (r"vmm/qmp\.py",)),
        ("pickle", ()),
    ],
)
def test_a_library_is_used_in_its_places_alone(library: str, places: tuple[str, ...]) -> None:
    used = users(library)

    assert used == matching(used, *places)
    assert used or not places


def test_the_gpl_part_of_the_qmp_library_is_not_used() -> None:
    for path in sources():
        assert not any(name.startswith("qemu.qmp.legacy") for name in imports(path)), path


def test_the_core_stands_without_web_and_database() -> None:
    for path in (ROOT / "core").glob("*.py"):
        libraries = {name.split(".")[0] for name in imports(path)}
        assert not libraries & {"flask", "werkzeug", "sqlalchemy", "alembic", "gunicorn"}, path


def test_one_module_of_the_attestation_library_speaks_to_a_network() -> None:
    for path in {*(ROOT / "attest").glob("*.py")} - {ROOT / "attest/collateral.py"}:
        libraries = {name.split(".")[0] for name in imports(path)}
        assert not libraries & {"socket", "ssl", "http", "urllib", "requests", "flask"}, path


def test_no_module_has_a_name_that_says_nothing() -> None:
    for path in sources():
        assert path.stem not in {"utils", "util", "helpers", "common", "manager", "misc", "base_"}
