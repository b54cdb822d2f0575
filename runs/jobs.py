"""What the jobs of a run are: their specs and the argument vectors that they begin with (pure).

Source: runs.md section 5.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from runs.configurations import RESERVED_PORTS
from runs.planner import merged
from runs.specs import Spec

DEFAULT_STOP_S = 300
DEFAULT_RETRY_S = 3600
# Shown where a job has no image: it runs in the guest itself.
GUEST = "casemate-guest"


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
