"""Where the agent finds its files: one value for a real guest, one for a simulated agent's folder.

Source: guest-agent.md sections 1 and 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """Every path the agent reads or writes; nothing else differs between a guest and a simulator.

    `sockets` is where the Unix sockets are made, `state` holds locks and registers and is gone after a
    reboot, `root` is where /proc, /sys and /etc are looked for, `disks` are the mounts that SysInfo shows.
    """

    app_compose: Path
    app_keys: Path
    sys_config: Path
    instance_info: Path
    tee_seed: Path
    runtime_log: Path
    state: Path
    sockets: Path
    docker_host: str
    root: Path = Path("/")
    disks: tuple[Path, ...] = (Path("/"),)
    simulated: bool = False

    @property
    def boot_error(self) -> Path:
        """The text of a failed boot; absent when there was none."""
        return self.state / "boot-error"

    @property
    def gpu_attestation(self) -> Path:
        """What the boot-time GPU attestation printed; absent when there is no GPU."""
        return self.state / "gpu-attestation"


GUEST_SOCKET = "guest.sock"
# Where the runner of a run's VM listens (guest/runner.py); no other VM has it.
RUNNER_SOCKET = "runner.sock"
# The tmpfs copy of the host's share (guest-agent.md section 3).
HOST_SHARED = Path("/dstack/.host-shared")
DATA_MOUNT = Path("/data")

GUEST = Settings(
    app_compose=HOST_SHARED / "app-compose.json",
    app_keys=HOST_SHARED / ".appkeys.json",
    sys_config=HOST_SHARED / ".sys-config.json",
    instance_info=HOST_SHARED / ".instance_info",
    tee_seed=HOST_SHARED / ".tee-simulator.json",
    runtime_log=Path("/run/log/dstack/runtime_events.log"),
    state=Path("/run/casemate"),
    sockets=Path("/var/run"),
    docker_host="unix:///run/podman/podman.sock",
    disks=(DATA_MOUNT,),
)


def simulated(folder: Path, docker_host: str) -> Settings:
    """The settings of `casemate agent --simulate --dir FOLDER` (guest-agent.md section 1)."""
    folder = folder.resolve()
    return Settings(
        app_compose=folder / "app-compose.json",
        app_keys=folder / "appkeys.json",
        sys_config=folder / "sys-config.json",
        instance_info=folder / ".instance_info",
        tee_seed=folder / "tee-seed",
        runtime_log=folder / ".run" / "runtime_events.log",
        state=folder / ".run",
        sockets=folder,
        docker_host=docker_host,
        simulated=True,
    )
