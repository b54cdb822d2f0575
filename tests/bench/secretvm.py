"""The SecretVM interface with 100 and 1,000 VMs: one of them, and the list, which this interface does not cut into pages."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.bench.apps import Caller
from tests.bench.context import Bench, seconds
from tests.bench.report import Line, Promise

FEW, MANY = 100, 1000
# A sample is the mean of so many requests.
REQUESTS = 20


def measure(bench: Bench) -> Iterator[Line]:
    """Both sizes in turn, `rounds` times."""
    callers = {size: Caller(bench.scratch / f"secretvm-{size}", 1, size) for size in (FEW, MANY)}
    yield _compared(bench, "one VM", callers, _detail)
    yield _compared(bench, "each VM of the list", callers, _list)


def _compared(
    bench: Bench, what: str, callers: dict[int, Caller], taken: Callable[[Caller], float]
) -> Line:
    samples: dict[int, list[float]] = {size: [] for size in callers}
    for number in range(bench.rounds + 1):
        for size, caller in callers.items():
            spent = taken(caller)
            if number:
                samples[size].append(spent * 1000)
    return Line(
        key="P16",
        name=f"SecretVM: {what}, of {MANY:,}",
        unit="ms",
        samples=samples[MANY],
        promise=Promise(factor=1.3),
        peer=f"of {FEW}",
        peer_samples=samples[FEW],
    )


def _detail(caller: Caller) -> float:
    vm_id = caller.get("/api/vm/instances")[0]["id"]
    return seconds(lambda: [caller.get(f"/api/vm/{vm_id}") for _ in range(REQUESTS)]) / REQUESTS


def _list(caller: Caller) -> float:
    found: list[int] = []
    spent = seconds(lambda: found.append(len(caller.get("/api/vm/instances"))))
    return spent / found[0]
