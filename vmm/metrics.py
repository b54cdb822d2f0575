"""The service's own figures for Prometheus: what rows say is read when it is asked for, requests are tallied."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from sqlalchemy import func, select

from models.port import PortLease
from models.vm import Vm
from vmm.lifecycle import Observed, status
from vmm.service import Vms
from vmm.tally import SWEEPS
from vmm.version import VERSION, revision

MIB = 1024**2
STATUSES = ("running", "starting", "exited", "stopping", "stopped", "removing")


@dataclass(frozen=True, eq=False)
class Figures(Collector):
    """All figures of one service; `requests` has counts by `surface status`."""

    vms: Vms
    requests: Mapping[str, int]

    def collect(self) -> Iterator[Metric]:
        """Reads the database once."""
        release = {"version": VERSION, "revision": revision()}
        yield InfoMetricFamily("casemate_build", "The release.", value=release)
        yield from self._of_rows()
        yield from self._of_the_host()
        asked = CounterMetricFamily(
            "casemate_http_requests", "Requests answered.", labels=("surface", "status")
        )
        for name, count in self.requests.items():
            if count:
                asked.add_metric(name.split(), count)
        yield asked
        yield CounterMetricFamily(
            "casemate_background_sweeps",
            "Looks of the background process at all VMs.",
            value=SWEEPS.counts()["sweeps"],
        )

    def _of_rows(self) -> Iterator[Metric]:
        sums = (func.count(), func.sum(Vm.vcpu), func.sum(Vm.memory_mb))
        with self.vms.database.reading() as session:
            rows = session.execute(
                select(Vm.wished, Vm.observed, *sums).group_by(Vm.wished, Vm.observed)
            ).all()
            leases = session.scalar(select(func.count()).select_from(PortLease)) or 0
        counts = dict.fromkeys(STATUSES, 0)
        for wished, observed, count, _, _ in rows:
            counts[status(wished, observed)] += count
        vms = GaugeMetricFamily("casemate_vms", "VMs by status.", labels=("status",))
        for word, count in counts.items():
            vms.add_metric((word,), count)
        yield vms
        held = [row for row in rows if row[1] != Observed.ABSENT]
        vcpus, memory_mb = (sum(int(row[place]) for row in held) for place in (3, 4))
        yield GaugeMetricFamily("casemate_vm_vcpus", "vCPUs of VMs that run.", value=vcpus)
        yield GaugeMetricFamily(
            "casemate_vm_memory_bytes", "Memory of VMs that run.", value=memory_mb * MIB
        )
        yield GaugeMetricFamily("casemate_port_leases", "Host ports that VMs hold.", value=leases)

    def _of_the_host(self) -> Iterator[Metric]:
        cvm = self.vms.config.cvm
        yield GaugeMetricFamily(
            "casemate_vm_vcpus_limit", "cvm.max_allocable_vcpu.", value=cvm.max_allocable_vcpu
        )
        yield GaugeMetricFamily(
            "casemate_vm_memory_limit_bytes",
            "cvm.max_allocable_memory_in_mb.",
            value=cvm.max_allocable_memory_in_mb * MIB,
        )
        yield GaugeMetricFamily(
            "casemate_disk_free_bytes",
            "Free space where the data directory is.",
            value=shutil.disk_usage(self.vms.config.data_dir).free,
        )
