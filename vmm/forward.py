"""The relay of one VM: leads host ports to the address that a bridge's DHCP server gave the guest.

Run as a program by vmm/companion.py with the standard library alone (`python -I -S forward.py FOLDER`), so
that it is small and outlives the service.  It reads rules.json, binds every port, makes the file `ready`, and
relays until it is ended.  Clients and guest are both strangers: connections, flows and buffers are capped.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from vmm.network import Port

RULES = "rules.json"
READY = "ready"

# Of all ports together.  A client over the number is turned away, a UDP flow takes the place of the idlest.
CONNECTIONS_MOST = 512
FLOWS_MOST = 512
CONNECT_S = 10.0
UDP_IDLE_S = 60.0
CHUNK = 64 * 1024


def rules(ports: Iterable[Port], target: str) -> dict[str, Any]:
    """What rules.json holds: where the ports lead, as plain values."""
    return {
        "target": target,
        "ports": [[p.protocol, p.host_address, p.host_port, p.vm_port] for p in ports],
    }


def read_rules(folder: str | os.PathLike[str]) -> Any:
    """The rules of a folder, or None."""
    try:
        with open(os.path.join(folder, RULES)) as file:
            return json.load(file)
    except (OSError, ValueError):
        return None


def write_rules(folder: str | os.PathLike[str], wanted: dict[str, Any]) -> None:
    """Writes the rules of a folder as one step."""
    path = os.path.join(folder, RULES)
    with open(path + ".new", "w") as file:
        json.dump(wanted, file)
    os.rename(path + ".new", path)


class Relay:
    """All ports of one VM."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.connections: set[asyncio.StreamWriter] = set()
        self.flows: dict[tuple[UdpPort, Any], Flow] = {}  # the longest idle first
        self.tasks: set[asyncio.Future[None]] = set()

    async def listen(self, protocol: str, address: str, port: int, vm_port: int) -> None:
        """Binds one port and serves it from then on."""
        loop = asyncio.get_running_loop()
        if protocol == "udp":
            await loop.create_datagram_endpoint(
                lambda: UdpPort(self, vm_port), local_addr=(address, port)
            )
            return
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        await asyncio.start_server(
            lambda reader, writer: self.serve(reader, writer, vm_port),
            *(address, port),
            family=family,
            limit=CHUNK,
            backlog=128,
        )

    async def serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, vm_port: int
    ) -> None:
        """Relays one TCP connection until both sides have said all."""
        if len(self.connections) >= CONNECTIONS_MOST:
            writer.transport.abort()
            return
        self.connections.add(writer)
        other: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(CONNECT_S):
                back, other = await asyncio.open_connection(self.target, vm_port, limit=CHUNK)
            for each in (writer, other):
                keep_alive(each.get_extra_info("socket"))
            async with asyncio.TaskGroup() as both:
                both.create_task(copy(reader, other))
                both.create_task(copy(back, writer))
        except* OSError:
            pass  # a side that is gone or never was there; TimeoutError is one too
        finally:
            self.connections.discard(writer)
            for each in filter(None, (writer, other)):
                each.close()

    def to_guest(self, port: UdpPort, client: Any, data: bytes) -> None:
        """Takes a datagram of a client to the guest, over a socket of that client's own."""
        key = (port, client)
        flow = self.flows.pop(key, None)
        if flow is None:
            if len(self.flows) >= FLOWS_MOST:
                self.drop(next(iter(self.flows)))
            flow = Flow(port, client)
            task = asyncio.ensure_future(self.open(flow))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        self.flows[key] = flow  # now the newest
        flow.send(data)

    async def open(self, flow: Flow) -> None:
        """Gives a flow its socket."""
        try:
            await asyncio.get_running_loop().create_datagram_endpoint(
                lambda: flow, remote_addr=(self.target, flow.port.vm_port)
            )
        except OSError:
            self.flows.pop((flow.port, flow.client), None)
        if flow.ended and flow.transport is not None:
            flow.transport.close()

    def drop(self, key: tuple[UdpPort, Any]) -> None:
        """Ends a flow."""
        self.flows.pop(key).end()

    async def forget_idle(self) -> None:
        """Ends flows that were silent for a minute, for ever."""
        while True:
            await asyncio.sleep(UDP_IDLE_S / 4)
            late = time.monotonic() - UDP_IDLE_S
            for key in [key for key, flow in self.flows.items() if flow.used < late]:
                self.drop(key)


class UdpPort(asyncio.DatagramProtocol):
    """A bound UDP port of the host."""

    def __init__(self, relay: Relay, vm_port: int) -> None:
        self.relay = relay
        self.vm_port = vm_port

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.relay.to_guest(self, addr, data)


class Flow(asyncio.DatagramProtocol):
    """The socket that stands for one client towards the guest; a few datagrams wait until it is open."""

    WAITING_MOST = 16

    def __init__(self, port: UdpPort, client: Any) -> None:
        self.port = port
        self.client = client
        self.transport: asyncio.DatagramTransport | None = None
        self.waiting: list[bytes] = []
        self.used = time.monotonic()
        self.ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)
        for data in self.waiting:
            self.transport.sendto(data)
        self.waiting.clear()

    def send(self, data: bytes) -> None:
        """Sends to the guest."""
        self.used = time.monotonic()
        if self.transport is not None:
            send(self.transport, data)
        elif len(self.waiting) < self.WAITING_MOST:
            self.waiting.append(data)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.used = time.monotonic()
        send(self.port.transport, data, self.client)

    def end(self) -> None:
        """Gives the socket up."""
        self.ended = True
        if self.transport is not None:
            self.transport.close()


def send(transport: asyncio.DatagramTransport, data: bytes, to: Any = None) -> None:
    """Sends a datagram, or drops it when many wait already, as a network does."""
    waiting: int = cast(Any, transport).get_write_buffer_size()
    if waiting < CHUNK:
        transport.sendto(data, to)


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One direction of a connection; its end is told, the other direction goes on."""
    while data := await reader.read(CHUNK):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


def keep_alive(connection: socket.socket) -> None:
    """Has the kernel notice a peer that vanished: after two minutes, then four tries."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 120)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)


def say_ready(folder: str) -> None:
    """Makes the file that says that every port is bound."""
    with open(os.path.join(folder, READY), "w"):
        pass


async def main(folder: str) -> None:
    """Serves the rules of a folder until SIGTERM."""
    # A connection has two descriptors; the usual soft limit is 1,024.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    wanted = read_rules(folder)
    relay = Relay(wanted["target"])
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    for protocol, address, port, vm_port in wanted["ports"]:
        try:
            await relay.listen(protocol, address, port, vm_port)
        except OSError as error:
            sys.exit(f"host port {protocol} {address}:{port}: {error.strerror}")
    say_ready(folder)
    idle = asyncio.ensure_future(relay.forget_idle())
    await ended.wait()
    idle.cancel()
    # What is under way is cut: the guest behind it is gone, or has another address.
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
