"""P1, P2 and P13: starting and stopping VMs beside bare QEMUs with the same argument vector, and libvirt."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil

from tests.bench.context import Bench, seconds
from tests.bench.peers import BareQemu, Libvirt
from tests.bench.report import Line, Promise
from tests.common.service import RunningService
from tests.common.waiting import free_port, until

CROWD = 20
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
    libvirt = Libvirt.installed(bench.scratch / "libvirt")
    if libvirt is None:
        bench.say("libvirt is not installed: CreateVm is not compared with virsh")
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
        if libvirt is not None:
            libvirt.start_daemon()
        starts, stops, bare_starts, bare_stops = [], [], [], []
        virsh_starts, virsh_stops = [], []
        for number in range(bench.rounds):
            bare_starts.append(bare.start() * 1000)
            bare_stops.append(bare.quit() * 1000)
            starts.append(seconds(maker.create) * 1000)
            stops.append(seconds(maker.stop) * 1000)
            maker.check_stopped()
            maker.remove()
            if libvirt is not None:
                virsh_starts.append(libvirt.create() * 1000)
                virsh_stops.append(libvirt.destroy() * 1000)
            bench.say(
                f"round {number + 1}: start {bare_starts[-1]:.0f} / {starts[-1]:.0f} ms, "
                f"stop {bare_stops[-1]:.0f} / {stops[-1]:.0f} ms (bare / ours)"
            )
    finally:
        service.end()
        if bare is not None:
            bare.end()
        if libvirt is not None:
            libvirt.end()
    if libvirt is not None:
        yield Line(
            key="P1",
            name="CreateVm beside libvirt",
            unit="ms",
            samples=starts,
            promise=Promise(factor=1.0),
            peer="virsh define + start",
            peer_samples=virsh_starts,
        )
        yield Line(
            key="P2",
            name="StopVm beside libvirt",
            unit="ms",
            samples=stops,
            peer="virsh destroy",
            peer_samples=virsh_stops,
        )
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


def crowd(bench: Bench) -> Iterator[Line]:
    """20 QEMUs at once, then 20 CreateVm at once, `rounds` times; their kernels halt at once."""
    images, image = bench.idle_image
    service = RunningService(bench.scratch / "crowd", images)
    makers = [_Maker(service, image, port=None) for _ in range(CROWD)]
    bares: list[BareQemu] = []
    ours, peers = [], []
    try:
        service.start()
        makers[0].create()
        makers[0].stop()
        workdir = service.data_dir / "vm" / makers[0].vm_id
        bares = [BareQemu(workdir, bench.scratch / f"bare-{index}") for index in range(CROWD)]
        makers[0].remove()
        with ThreadPoolExecutor(CROWD) as pool:
            for number in range(bench.rounds + 1):
                bare = seconds(lambda: list(pool.map(BareQemu.start, bares)))
                list(pool.map(BareQemu.quit, bares))
                own = seconds(lambda: list(pool.map(_Maker.create, makers)))
                for step in (_Maker.stop, _Maker.remove):
                    list(pool.map(step, makers))
                if number:  # the first round warms both workers up
                    peers.append(bare * 1000)
                    ours.append(own * 1000)
                    bench.say(f"round {number}: {peers[-1]:.0f} / {ours[-1]:.0f} ms (bare / ours)")
    finally:
        service.end()
        for each in bares:
            each.end()
    yield Line(
        key="P13",
        name=f"{CROWD} CreateVm at once, until the last one runs",
        unit="ms",
        samples=ours,
        promise=Promise(factor=1.5),
        peer=f"{CROWD} bare QEMUs at once",
        peer_samples=peers,
    )


class _Maker:
    """Makes and ends one VM at a time, with one host port unless `port` is None."""

    def __init__(self, service: RunningService, image: str, port: int | None = 0) -> None:
        self.service = service
        self.image = image
        self.port = free_port() if port == 0 else port
        self.vm_id = ""

    def create(self) -> None:
        """CreateVm; it answers when QEMU has answered query-status."""
        mapping = {"protocol": "tcp", "host_port": self.port, "vm_port": 80}
        made = self.service.call(
            "prpc/CreateVm",
            name="bench",
            image=self.image,
            compose_file=COMPOSE,
            vcpu=1,
            memory=256,
            disk_size=1,
            ports=[mapping] if self.port else [],
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
            seconds=20,
            what="the removal",
        )
