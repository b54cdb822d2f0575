"""The messages that host and guest exchange on their channel, which both ends read from here.

Names and numbers: vmm.md section 3, guest-agent.md section 9.  Either end takes the other for hostile: what comes
is loaded through these before it is believed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from core.prpc import Flag, HexBytes, Int64, Message, Repeated, Text, UInt32, UInt64


class GuestInfo(Message):
    """The agent's public view of itself; ids in hex."""

    version = Text(1)
    app_id = HexBytes(2)
    instance_id = HexBytes(3)
    app_cert = Text(4)
    tcb_info = Text(5)
    device_id = HexBytes(6)


class DiskInfo(Message):
    """A mounted disk of a guest; bytes."""

    name = Text(1)
    mount_point = Text(2)
    total_size = UInt64(3)
    free_size = UInt64(5)


class SystemInfo(Message):
    """A guest's system; sizes in bytes, uptime in seconds, load times 100."""

    os_name = Text(1)
    os_version = Text(2)
    kernel_version = Text(3)
    cpu_model = Text(4)
    num_cpus = UInt32(5)
    total_memory = UInt64(6)
    available_memory = UInt64(7)
    used_memory = UInt64(8)
    free_memory = UInt64(9)
    total_swap = UInt64(10)
    used_swap = UInt64(11)
    free_swap = UInt64(12)
    uptime = UInt64(13)
    loadavg_one = UInt32(14)
    loadavg_five = UInt32(15)
    loadavg_fifteen = UInt32(16)
    disks = Repeated(17, DiskInfo)


class IpAddress(Message):
    """An address of a network interface."""

    address = Text(1)
    prefix = UInt32(2)


class Gateway(Message):
    """A default route."""

    address = Text(1)


class Interface(Message):
    """A network interface of a guest."""

    name = Text(1)
    addresses = Repeated(2, IpAddress)
    rx_bytes = UInt64(3)
    tx_bytes = UInt64(4)
    rx_errors = UInt64(5)
    tx_errors = UInt64(6)


class NetworkInformation(Message):
    """A guest's network."""

    dns_servers = Repeated(1, Text(0))
    gateways = Repeated(2, Gateway)
    interfaces = Repeated(3, Interface)
    wg_info = Text(4)


class Container(Message):
    """A container of a guest; `created` in seconds since 1970."""

    id = Text(1)
    names = Repeated(2, Text(0))
    image = Text(3)
    image_id = Text(4)
    created = Int64(6)
    state = Text(7)
    status = Text(8)


class ListContainersResponse(Message):
    """The containers of a guest."""

    containers = Repeated(1, Container)


@dataclass(frozen=True)
class LogsOrder:
    """Which logs of a guest's containers are wanted: of one, or of all, so many lines each.

    `since` and `until` are what guest/containers.py takes for moments: Unix seconds, or a time ago (`10m`).
    """

    service: str = ""
    lines: int = 1000
    since: str = ""
    until: str = ""
    timestamps: bool = False


class LogsRequest(Message):
    """The request of Logs."""

    makes = LogsOrder
    service = Text(1)
    lines = UInt32(2)
    since = Text(3)
    until = Text(4)
    timestamps = Flag(5)


class GuestText(Message):
    """A text of a guest: its containers' logs, or its quote (TDX in hex, SEV-SNP in base64)."""

    text = Text(1)


class HostInfo(Message):
    """What a guest may know of its host."""

    name = Text(1)
    version = Text(2)


@dataclass(frozen=True)
class Note:
    """An event that a guest reports."""

    event: str = ""
    payload: str = ""


class Notification(Message):
    """The request of Notify."""

    makes = Note
    event = Text(1)
    payload = Text(2)


class GetSealingKeyRequest(Message):
    """A guest's SGX-verifiable quote, for the key provider of its host."""

    quote = HexBytes(1)


class GetSealingKeyResponse(Message):
    """A sealing key, encrypted to the quote's key, and the quote of the provider."""

    encrypted_key = HexBytes(1)
    provider_quote = HexBytes(2)


# Jobs of runs: only between a host and a VM whose measured app-compose asks for the runner (guest/runner.py).

# More variables than a job has from anybody; a variable as large as Linux lets it be.
MAX_VARIABLES = 4096
# Of output in one report: with the rest of the line well below what a host reads.
MAX_OUTPUT = 128 * 1024


class Variable(Message):
    """One environment variable."""

    name = Text(1)
    value = Text(2)


@dataclass(frozen=True)
class Order:
    """A job that a host wants done.

    `id` names it in all that is said of it.  Without `image` its command is a process of the guest.  `offset` says how
    much of its output the host has already, after a restart of the host's service.
    """

    id: str
    image: str = ""
    entrypoint: str = ""
    command: Sequence[str] = ()
    env: Sequence[Mapping[str, str]] = field(default=(), repr=False)
    user: str = ""
    working_dir: str = ""
    home_dir: str = ""
    privileged: bool = False
    authorized_keys: Sequence[str] = ()
    registry_username: str = ""
    registry_password: str = field(default="", repr=False)
    offset: int = 0


class JobOrder(Message):
    """The request of SubmitJob."""

    makes = Order
    id = Text(1)
    image = Text(2)
    entrypoint = Text(3)
    command = Repeated(4, Text(0))
    env = Repeated(5, Variable, most=MAX_VARIABLES)
    user = Text(6)
    working_dir = Text(7)
    home_dir = Text(8)
    privileged = Flag(9)
    authorized_keys = Repeated(10, Text(0), most=100)
    registry_username = Text(11)
    registry_password = Text(12)
    offset = UInt64(13)


@dataclass(frozen=True)
class StopOrder:
    """The end of a job: SIGTERM, and SIGKILL after `grace_s` seconds."""

    id: str = ""
    grace_s: int = 0


class JobStop(Message):
    """The request of StopJob."""

    makes = StopOrder
    id = Text(1)
    grace_s = UInt32(2)


class JobName(Message):
    """The request of ReleaseJob."""

    id = Text(1)


@dataclass(frozen=True)
class Report:
    """What a runner tells its host: a step of a job, a piece of its output, or that it is there.

    `stage` is one of runs/executor.py, `note` for a line of the runner's own log, `alive`, or "" for output;
    `inactive_s` says for how long nobody has been connected over SSH.
    """

    id: str = ""
    stage: str = ""
    exit_status: int | None = None
    message: str = ""
    offset: int = 0
    data: bytes = b""
    inactive_s: int = 0


class JobReport(Message):
    """The request of Job, from the guest."""

    makes = Report
    id = Text(1)
    stage = Text(2)
    exit_status = UInt32(3, optional=True)
    message = Text(4)
    offset = UInt64(5)
    data = HexBytes(6)
    inactive_s = UInt32(7)


class JobReceipt(Message):
    """The answer to Job: the host wants the output from `offset` on."""

    offset = UInt64(1)
