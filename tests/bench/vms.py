"""P1 and P2: starting and stopping a VM beside a bare QEMU with the same argument vector."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import psutil

from tests.bench.context import Bench, seconds
from tests.bench.peers import BareQemu
from tests.bench.report import Line, Promise
from tests.common.service import RunningService, free_port, until

COMPOSE = json.dumps(
    {
        "manifest_version": 2,
        "name": "bench",
        "runner": "docker-compose",
        "docker_compose_file": "services: {}\n",
    }
)


def measure(bench: Bench) -> Iterator[Line]:
    """A peer's start and end, then ours, `rounds` times; each VM is ended as soon as it runs."""
    images, image = bench.real_image
    service = RunningService(bench.scratch / "vms", images)
    service.start()
    maker = _Maker(service, image)
    bare = None
    try:
        # Each worker looks at the image's bytes once; the samples are of an image that was looked at.
        cold = seconds(maker.create) * 1000
        maker.stop()
        bare = BareQemu(service.data_dir / "vm" / maker.vm_id, bench.scratch / "bare")
        maker.remove()
        for _ in range(3):
            maker.create()
            maker.stop()
            maker.remove()
            bare.start()
            bare.quit()
        starts, stops, bare_starts, bare_stops = [], [], [], []
        for number in range(bench.rounds):
            bare_starts.append(bare.start() * 1000)
            bare_stops.append(bare.quit() * 1000)
            starts.append(seconds(maker.create) * 1000)
            stops.append(seconds(maker.stop) * 1000)
            maker.check_stopped()
            maker.remove()
            bench.say(
                f"round {number + 1}: start {bare_starts[-1]:.0f} / {starts[-1]:.0f} ms, "
                f"stop {bare_stops[-1]:.0f} / {stops[-1]:.0f} ms (bare / ours)"
            )
    finally:
        service.end()
        if bare is not None:
            bare.end()
    yield Line(
        key="P1",
        name="CreateVm request -> QEMU runs",
        unit="ms",
        samples=starts,
        promise=Promise(factor=1.5, plus=60),
        peer="bare QEMU, same arguments",
        peer_samples=bare_starts,
        note=f"first of a service {cold:.0f} ms",
    )
    yield Line(
        key="P2",
        name="StopVm request -> process gone",
        unit="ms",
        samples=stops,
        promise=Promise(factor=1.0, plus=150),
        peer="bare QEMU, QMP quit",
        peer_samples=bare_stops,
    )


class _Maker:
    """Makes and ends one VM at a time, with one host port."""

    def __init__(self, service: RunningService, image: str) -> None:
        self.service = service
        self.image = image
        self.port = free_port()
        self.vm_id = ""

    def create(self) -> None:
        """CreateVm; it answers when QEMU has answered query-status."""
        made = self.service.call(
            "prpc/CreateVm",
            name="bench",
            image=self.image,
            compose_file=COMPOSE,
            vcpu=1,
            memory=256,
            disk_size=1,
            ports=[{"protocol": "tcp", "host_port": self.port, "vm_port": 80}],
        )
        self.vm_id = made["id"]

    def stop(self) -> None:
        """StopVm; it answers when the process is gone."""
        self.service.call("prpc/StopVm", id=self.vm_id)

    def check_stopped(self) -> None:
        """The process is gone, the record says so, and the port is free on the host but still the VM's."""
        folder = self.service.data_dir / "vm" / self.vm_id
        ended = json.loads((folder / "exit.json").read_text())
        assert not psutil.pid_exists(ended["pid"])
        info = self.service.info(self.vm_id)
        assert info["status"] == "stopped"
        assert [each["host_port"] for each in info["configuration"]["ports"]] == [self.port]
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", self.port))

    def remove(self) -> None:
        """RemoveVm, and waits until nothing is left."""
        self.service.call("prpc/RemoveVm", id=self.vm_id)
        until(
            lambda: not self.service.call("prpc/GetInfo", id=self.vm_id)["found"],
            within_s=20,
            what="the removal",
        )
