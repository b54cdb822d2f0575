"""`make bench`: measures what performance.md promises and prints one table.

The last line printed is `promises kept n/m`; all samples go to build/bench.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.bench import (
    agent,
    apps,
    boot,
    http,
    kms,
    lists,
    logs,
    report,
    runs,
    secretvm,
    startup,
    verify,
    vms,
)
from tests.bench.context import Bench, load

Measure = Callable[[Bench], Iterator[report.Line]]
# The keys of performance.md section 3, and what measures them together.
GROUPS: dict[tuple[str, ...], Measure] = {
    ("P1", "P2"): vms.measure,
    ("P3", "P4"): lists.measure,
    ("P5",): http.measure,
    ("P6", "P7", "P8"): agent.speed,
    ("P9",): verify.measure,
    ("P10", "P11"): logs.measure,
    ("P12",): startup.restart,
    ("P13",): vms.crowd,
    ("P14",): kms.measure,
    ("P15",): runs.measure,
    ("P16",): secretvm.measure,
    ("P17",): startup.idle,
    ("P18",): agent.idle,
    ("boot",): boot.measure,
    ("apps",): apps.measure,
}
KEYS = tuple(key for keys in GROUPS for key in keys)


def main() -> int:
    """Runs the chosen groups; 1 when one of them could not be measured."""
    given = _arguments()
    # The services measured are our own: the caller's settings are not theirs.
    for name in ("CASEMATE_ADDRESS", "CASEMATE_DATA_DIR", "CASEMATE_ADMIN_TOKEN"):
        os.environ.pop(name, None)
    began = time.monotonic()
    # Short: the path of a VM's socket has room for little.
    scratch = Path(tempfile.mkdtemp(prefix="cmb-", dir="/tmp"))
    bench = Bench(scratch, given.images, given.rounds, given.boots)
    lines: list[report.Line] = []
    complete = True
    try:
        for keys, measure in GROUPS.items():
            if given.only.isdisjoint(keys):
                continue
            done, found = _measured(keys, measure, bench)
            complete = complete and done
            lines += [line for line in found if line.key in given.only]
    finally:
        shutil.rmtree(scratch)
    report.write(given.json, lines, time.monotonic() - began)
    report.show(lines)
    return 0 if complete else 1


def _measured(
    keys: tuple[str, ...], measure: Measure, bench: Bench
) -> tuple[bool, list[report.Line]]:
    """A group's lines with the load they were taken under; one that breaks leaves the others their turn."""
    print(", ".join(keys), file=sys.stderr, flush=True)
    lines: list[report.Line] = []
    before = load()
    try:
        for line in measure(bench):
            lines.append(dataclasses.replace(line, load=(before, load())))
    except Exception as error:  # noqa: BLE001 - shown in full, and the other groups go on
        traceback.print_exc()
        name = f"not measured: {type(error).__name__}"
        missing = [key for key in keys if key not in {line.key for line in lines}]
        broken = [report.Line(key, name, "", [], report.Promise()) for key in missing]
        return False, lines + broken
    return True, lines


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument(
        "--only",
        type=lambda text: frozenset(text.split(",")),
        default=frozenset(KEYS),
        metavar="KEYS",
        help=f"comma-separated, of {', '.join(KEYS)}",
    )
    parser.add_argument("--rounds", type=int, default=7, help="rounds of a comparison (7)")
    parser.add_argument("--boots", type=int, default=1, help="boots of the real image (1)")
    parser.add_argument("--images", type=Path, help="folder of ready images (default: built)")
    parser.add_argument("--json", type=Path, default=Path("build/bench.json"))
    given = parser.parse_args()
    if unknown := given.only - set(KEYS):
        parser.error(f"--only: unknown {', '.join(sorted(unknown))}; choose of {', '.join(KEYS)}")
    if min(given.rounds, given.boots) < 1:
        parser.error("--rounds and --boots must be at least 1")
    return given


if __name__ == "__main__":
    sys.exit(main())
