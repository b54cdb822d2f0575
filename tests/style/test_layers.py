"""Who may import whom: the contracts of setup.cfg, and what import-linter cannot be told."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from core.proc import run

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    *("core", "models", "migrations", "attest", "attest_sim", "image", "accounts"),
    *("vmm", "guest", "cli"),
)


def sources() -> Iterator[Path]:
    for package in PACKAGES:
        yield from (ROOT / package).rglob("*.py")


def imports(path: Path) -> set[str]:
    """The first parts of what a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


def importers(name: str) -> set[str]:
    return {str(path.relative_to(ROOT)) for path in sources() if name in imports(path)}


def test_the_contracts_hold() -> None:
    lint = ROOT / ".venv/bin/lint-imports"

    run([lint, "--no-cache"], cwd=ROOT, timeout_s=120)


def test_only_the_command_line_imports_the_application() -> None:
    assert importers("app") == {"cli/serve.py"}


def test_flask_stays_at_the_edge() -> None:
    allowed = {"vmm/console.py", "vmm/rpc.py"}

    assert {path for path in importers("flask") if not path.endswith("routes.py")} <= allowed | {
        "guest/wire.py"
    }


def test_only_records_and_services_speak_sql() -> None:
    homes = ("models/", "migrations/", "accounts/")
    allowed = {"vmm/service.py", "vmm/records.py", "vmm/reconcile.py", "vmm/background.py"}

    assert {path for path in importers("sqlalchemy") if not path.startswith(homes)} <= allowed


def test_only_two_modules_start_processes() -> None:
    assert importers("subprocess") <= {"core/proc.py", "vmm/process.py"}


def test_the_simulated_tee_is_imported_only_where_it_is_asked_for() -> None:
    outside = {path for path in importers("attest_sim") if not path.startswith("attest_sim/")}

    assert outside <= {"vmm/simulation.py", "guest/tee.py", "guest/simulator.py"}
