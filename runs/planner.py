"""What a run or fleet may have on this host, and what its jobs are: offers, effective specs, job specs (pure).

Source: runs.md section 5.  Everything works on the canonical specs of runs/specs.py.
"""

from __future__ import annotations

import copy
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from core.config_runs import OffersConfig
from runs.configurations import RESERVED_PORTS

Spec = dict[str, Any]

# What clients fill in where a user wished nothing.
DEFAULT_CPUS = 2
DEFAULT_MEMORY_GB = 8.0
DISK_GB = 100
DEFAULT_STOP_S = 300
RUN_IDLE_S = 5 * 60
FLEET_IDLE_S = 3 * 24 * 3600
DEFAULT_RETRY_S = 3600
# The image that stands for none: only offers are wanted, no registry is asked.
SCRATCH = "scratch"
# Shown where a job has no image: it runs in the guest itself.
GUEST = "casemate-guest"
BACKEND = "remote"
REGION = "local"


@dataclass(frozen=True)
class Size:
    """One size of VM."""

    name: str
    cpu: int
    memory_mib: int
    disk_gb: int
    price: float

    def as_json(self) -> Spec:
        """What is kept of it with an instance."""
        return asdict(self)


@dataclass(frozen=True)
class Room:
    """What one VM, or all together, can have of this host."""

    cpus: int
    memory_mib: int


def sizes(config: OffersConfig, room: Room) -> list[Size]:
    """The sizes that the host can give, the smallest first."""
    given = [
        Size(each.name, each.cpu, int(each.memory_gb * 1024), each.disk_gb, each.price)
        for each in config.sizes
    ]
    found = given or list(_usual_sizes(room))
    fitting = [
        each for each in found if each.cpu <= room.cpus and each.memory_mib <= room.memory_mib
    ]
    return sorted(fitting, key=lambda size: (size.price, size.cpu, size.memory_mib, size.name))


def _usual_sizes(room: Room) -> Iterator[Size]:
    cpus = 1
    while cpus <= room.cpus:
        for each in (1, 2, 4, 8):
            memory_gb = cpus * each
            yield Size(f"cpu{cpus}-mem{memory_gb}", cpus, memory_gb * 1024, DISK_GB, 0.0)
        cpus *= 2


def clip(resources: Spec, known: Sequence[Size], *, vendor: str | None = None) -> Spec:
    """Resources whose untouched default minima are no more than the sizes that the host gives.

    A client fills them in before it sends, so that they cannot be told from a wish.  GPUs of no vendor are `vendor`'s.
    """
    found = copy.deepcopy(resources)
    cpus, memory, disk = found["cpu"]["count"], found["memory"], found["disk"]
    if cpus == {"min": DEFAULT_CPUS, "max": None}:
        cpus["min"] = min(DEFAULT_CPUS, max((size.cpu for size in known), default=DEFAULT_CPUS))
    if memory == {"min": DEFAULT_MEMORY_GB, "max": None}:
        most = [size.memory_mib / 1024 for size in known if _within(size.cpu, cpus)]
        memory["min"] = min(DEFAULT_MEMORY_GB, max(most, default=DEFAULT_MEMORY_GB))
    if disk is not None and disk["size"] == {"min": float(DISK_GB), "max": None}:
        disk["size"]["min"] = float(min(DISK_GB, max((s.disk_gb for s in known), default=DISK_GB)))
    gpu = found["gpu"]
    if gpu is not None and gpu["vendor"] is None and gpu["count"]["max"] != 0:
        gpu["vendor"] = vendor
    return found


def fits(size: Size, resources: Spec, *, max_price: float | None = None) -> bool:
    """Whether a VM of a size meets requirements; a GPU is never there."""
    gpu, disk = resources["gpu"], resources["disk"]
    return (
        _within(size.cpu, resources["cpu"]["count"])
        and resources["cpu"]["arch"] in (None, "x86")
        and _within(size.memory_mib / 1024, resources["memory"])
        and (disk is None or _within(size.disk_gb, disk["size"]))
        and (gpu is None or not gpu["count"]["min"])
        and (max_price is None or size.price <= max_price)
    )


def _within(value: float, bounds: Spec) -> bool:
    least, most = bounds["min"], bounds["max"]
    return (least is None or value >= least) and (most is None or value <= most)


def merged(spec: Spec) -> Spec:
    """The configuration of a run or fleet with its profile's values where it has none."""
    configuration, profile = spec["configuration"], spec["profile"] or {}
    return {
        **configuration,
        **{
            name: value
            for name, value in profile.items()
            if name in configuration and configuration[name] is None
        },
    }


def serves(configuration: Spec) -> bool:
    """Whether the placement that a run or fleet asks for can be on this host at all."""
    wanted = (
        (configuration.get("backends"), BACKEND),
        (configuration.get("regions"), REGION),
    )
    return (
        all(listed is None or ours in listed for listed, ours in wanted)
        and not configuration.get("availability_zones")
        and not configuration.get("reservation")
        and configuration.get("spot_policy") != "spot"
    )


def candidates(configuration: Spec, resources: Spec, known: Sequence[Size]) -> list[Size]:
    """The sizes that a run or fleet may have, the best first."""
    if not serves(configuration):
        return []
    types, most = configuration.get("instance_types"), configuration.get("max_price")
    return [
        size
        for size in known
        if fits(size, resources, max_price=most) and (types is None or size.name in types)
    ]


def holds(room: Room, size: Size, nodes: int) -> bool:
    """Whether the host could run so many VMs of a size at once."""
    return size.cpu * nodes <= room.cpus and size.memory_mib * nodes <= room.memory_mib


def effective(
    spec: Spec, known: Sequence[Size], *, name: str | None, public_key: str | None
) -> Spec:
    """A run's spec with every default filled in, as it is stored and compared."""
    found = copy.deepcopy(spec)
    configuration = found["configuration"]
    found["run_name"] = name
    found["repo_id"] = found["repo_id"] or "none"
    found["repo_data"] = found["repo_data"] or {"repo_type": "virtual"}
    found["ssh_key_pub"] = found["ssh_key_pub"] or public_key
    # What runs without an image of its own knows the one kind of GPU alone.
    vendor = None if configuration["image"] else "nvidia"
    configuration["resources"] = clip(configuration["resources"], known, vendor=vendor)
    if configuration["priority"] is None:
        configuration["priority"] = 0
    return found


def effective_fleet(spec: Spec, known: Sequence[Size], *, name: str | None) -> Spec:
    """A fleet's spec as it is stored and compared; a default minimum stays one, for hosts and times change."""
    found = copy.deepcopy(spec)
    found["configuration"]["name"] = name
    resources = found["configuration"]["resources"]
    if resources is not None:
        found["configuration"]["resources"] = clip(resources, known, vendor="nvidia")
    return found


# Jobs ------------------------------------------------------------------------------------------


def counts(spec: Spec) -> tuple[int, int]:
    """How many replicas a run has at first, and how many jobs each of them has."""
    configuration = spec["configuration"]
    replicas = configuration.get("replicas")
    return (replicas["min"] or 1) if replicas else 1, configuration.get("nodes") or 1


def job_specs(spec: Spec, replica_num: int) -> list[Spec]:
    """The specs of the jobs of one replica."""
    _, nodes = counts(spec)
    return [_job_spec(spec, replica_num, job_num, nodes) for job_num in range(nodes)]


def _job_spec(spec: Spec, replica_num: int, job_num: int, nodes: int) -> Spec:
    configuration, wanted = spec["configuration"], merged(spec)
    port = configuration.get("port")
    return {
        "replica_num": replica_num,
        "job_num": job_num,
        "job_name": f"{spec['run_name'] or 'dry-run'}-{job_num}-{replica_num}",
        "jobs_per_replica": nodes,
        "replica_group": "0",
        "app_specs": _app_specs(configuration.get("ports") or []),
        "user": _user(configuration["user"]),
        "commands": commands(spec),
        "env": {
            name: value for name, value in configuration["env"].items() if isinstance(value, str)
        },
        "home_dir": configuration["home_dir"],
        "image_name": configuration["image"] or GUEST,
        "privileged": configuration["privileged"],
        "single_branch": _first(
            configuration["single_branch"], configuration["type"] != "dev-environment"
        ),
        "max_duration": _on(wanted["max_duration"]),
        "stop_duration": _on(_first(wanted["stop_duration"], DEFAULT_STOP_S)),
        "utilization_policy": wanted["utilization_policy"],
        "registry_auth": configuration["registry_auth"],
        "requirements": {
            "resources": _for_this_machine(configuration),
            "max_price": wanted["max_price"],
            "spot": {None: False, "on-demand": False, "spot": True}.get(wanted["spot_policy"]),
            "reservation": wanted["reservation"],
            "multinode": nodes > 1,
            "backend_options": wanted["backend_options"],
        },
        "retry": retry_of(wanted["retry"]),
        "volumes": [],
        "ssh_key": None,
        "working_dir": configuration["working_dir"],
        "repo_data": spec["repo_data"] or {"repo_type": "virtual"},
        "repo_code_hash": spec["repo_code_hash"],
        "repo_dir": spec["repo_dir"] or "/workflow",
        "repo_exists_action": None,
        "file_archives": spec["file_archives"],
        "service_port": port["container_port"] if port else None,
        "probes": [_probe(each) for each in configuration.get("probes") or []],
        "node_group_index": 0,
        "node_group_name": "0",
        "node_group_job_index": job_num,
    }


def _for_this_machine(configuration: Spec) -> Spec:
    resources: Spec = configuration["resources"]
    if configuration["image"] or resources["cpu"]["arch"]:
        return resources
    return {**resources, "cpu": {**resources["cpu"], "arch": "x86"}}


def _first(value: Any, otherwise: Any) -> Any:
    return otherwise if value is None else value


def _on(duration: Any) -> int | None:
    """The seconds of a duration; None when it is off."""
    return None if duration == "off" else duration


def retry_of(rule: Any) -> Spec | None:
    """A retry policy as what it covers and for how many seconds; None for none."""
    if not rule:
        return None
    given = rule if isinstance(rule, Mapping) else {}
    return {
        "on_events": given.get("on_events") or ["no-capacity", "interruption", "error"],
        "duration": _first(given.get("duration"), DEFAULT_RETRY_S),
    }


def _probe(probe: Spec) -> Spec:
    return {
        "type": "http",
        "url": probe["url"] or "/",
        "method": probe["method"] or "get",
        "headers": probe["headers"],
        "body": probe["body"],
        "timeout": _first(probe["timeout"], 10),
        "interval": _first(probe["interval"], 15),
        "ready_after": probe["ready_after"] or 1,
        "until_ready": bool(probe["until_ready"]),
    }


def _app_specs(ports: Iterable[Spec]) -> list[Spec]:
    return [
        {
            "port": port["container_port"],
            "map_to_port": port["local_port"],
            "app_name": f"app_{index}",
            "url_path": None,
            "url_query_params": None,
        }
        for index, port in enumerate(ports)
        if port["container_port"] not in RESERVED_PORTS
    ]


def _user(user: str | None) -> Spec | None:
    """`user[:group]`, each a name or a number."""
    if not user:
        return None
    name, _, group = user.partition(":")
    uid, gid = _number(name), _number(group)
    return {
        "uid": uid,
        "gid": gid,
        "username": name if uid is None else None,
        "groupname": group or None if gid is None else None,
    }


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


def commands(spec: Spec) -> list[str]:
    """The argument vector of a job; empty where the image's own is meant."""
    configuration = spec["configuration"]
    if configuration["type"] == "dev-environment":
        lines = _lines_of_environment(spec)
    else:
        lines = list(configuration["commands"])
        if configuration["entrypoint"] is not None:
            return shlex.split(configuration["entrypoint"]) + lines
    if not lines:
        return []
    return [_shell(configuration), "-i", "-c", " && ".join(configuration["setup"] + lines)]


def _shell(configuration: Spec) -> str:
    shell = configuration["shell"] or ("sh" if configuration["image"] else "bash")
    return str(shell) if shell.startswith("/") else f"/bin/{shell}"


def _lines_of_environment(spec: Spec) -> list[str]:
    configuration, name = spec["configuration"], spec["run_name"] or "dry-run"
    link = ide_url(spec)
    told = [f"echo 'To open it in the editor: {link}'", "echo"] if link else []
    return [
        *configuration["init"],
        *told,
        f"echo 'To connect: ssh {name}'",
        # Until it is stopped; the signal must end it.
        "exec tail -f /dev/null",
    ]


_SCHEMES = {"vscode": "vscode", "cursor": "cursor", "windsurf": "windsurf", "zed": "zed"}


def ide_url(spec: Spec) -> str | None:
    """The link that opens a dev environment in its editor."""
    configuration = spec["configuration"]
    ide = configuration.get("ide")
    if ide is None:
        return None
    folder = configuration["working_dir"] or configuration["home_dir"]
    if ide == "zed":
        return f"zed://ssh/{spec['run_name']}{folder}"
    return f"{_SCHEMES[ide]}://vscode-remote/ssh-remote+{spec['run_name']}{folder}"


# Offers ----------------------------------------------------------------------------------------


def resources_of(size: Spec) -> Spec:
    """What an offer or an instance says of a size."""
    return {
        "name": size["name"],
        "resources": {
            "cpus": size["cpu"],
            "memory_mib": size["memory_mib"],
            "gpus": [],
            "spot": False,
            "disk": {"size_mib": size["disk_gb"] * 1024},
            "cpu_arch": "x86",
            "description": "",
        },
    }


def offer(size: Spec, availability: str = "available") -> Spec:
    """A size as an offer."""
    return {
        "backend": BACKEND,
        "instance": resources_of(size),
        "region": REGION,
        "price": size["price"],
        "backend_data": {},
        "availability": availability,
        "availability_zones": None,
        "instance_runtime": "shim",
        "blocks": 1,
        "total_blocks": 1,
    }


# Changes ---------------------------------------------------------------------------------------

# What a run takes over while it goes on; of a service, what runs/rolling.py brings about.
_UPDATABLE: Mapping[str, frozenset[str]] = {
    "task": frozenset({"priority"}),
    "dev-environment": frozenset({"priority", "inactivity_duration"}),
    "service": frozenset({
        "priority", "replicas", "scaling",
        "commands", "entrypoint", "env", "image", "nvcc", "port", "privileged", "probes", "python", "resources", "shell",
        "single_branch", "user", "working_dir",
    }),
}  # fmt: skip
_UPDATABLE_OF_FLEETS = frozenset(
    [
        "nodes",
        "reservation",
        "tags",
        "resources",
        "backends",
        "regions",
        "availability_zones",
        "instance_types",
        "spot_policy",
        "max_price",
    ]
)


def changed(before: Spec, after: Spec) -> set[str]:
    """The fields in which two objects differ."""
    return {name for name in {*before, *after} if before.get(name) != after.get(name)}


def changes(before: Spec, after: Spec) -> list[str]:
    """The fields in which two specs of runs differ, those of the configuration by their own names."""
    outside = changed(before, after) - {"configuration"}
    return sorted(outside | changed(before["configuration"], after["configuration"]))


def is_updatable(before: Spec, after: Spec) -> bool:
    """Whether a run may become what is wished while it is active."""
    old, new = before["configuration"], after["configuration"]
    return (
        old["type"] == new["type"]
        and changed(before, after) <= {"configuration", "configuration_path"}
        and changed(old, new) <= _UPDATABLE[old["type"]]
    )


def is_updatable_fleet(before: Spec, after: Spec) -> bool:
    """Whether a fleet may become what is wished without being made anew."""
    return (
        changed(before, after) <= {"configuration", "configuration_path"}
        and changed(before["configuration"], after["configuration"]) <= _UPDATABLE_OF_FLEETS
    )
