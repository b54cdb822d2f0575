"""The parts of a boot that need no VM."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from cryptography import x509

from attest import ratls
from core import proc
from core.certs import spki_der
from core.errors import CasemateError, Invalid
from guest import boot, channel, disk, init, keys, simulator, tee
from guest.channel import Notifier
from guest.events import event_log
from guest.evidence import Evidence
from guest.identity import App, SysConfig
from guest.provision import Provisioned
from guest.service import Agent
from guest.settings import GUEST, Settings
from tests.unit.guest.test_env import document, seal


def app(tmp_path: Path, **fields: object) -> App:
    path = tmp_path / "app-compose.json"
    path.write_text(json.dumps({"name": "a", **fields}))
    return App.read(path)


def test_the_environment_is_opened_filtered_and_closed_to_others(
    tmp_path: Path, agent: Agent
) -> None:
    app_keys = dataclasses.replace(agent.vm().keys, env_crypt_key=os.urandom(32))
    sealed = seal(app_keys.env_crypt_key, document(("A", "1"), ("EVIL", "2")))

    values = boot.open_environment(sealed, app_keys, app(tmp_path, allowed_envs=["A"]), tmp_path)

    assert values == {"A": "1"}
    assert (tmp_path / ".decrypted-env").read_text() == "A='1'\n"
    assert json.loads((tmp_path / ".decrypted-env.json").read_text()) == {"A": "1"}
    for name in (".decrypted-env", ".decrypted-env.json"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600


def test_an_environment_nobody_can_open_stops_the_boot(tmp_path: Path, agent: Agent) -> None:
    without_key = dataclasses.replace(agent.vm().keys, env_crypt_key=b"")
    other_key = dataclasses.replace(without_key, env_crypt_key=os.urandom(32))
    sealed = seal(os.urandom(32), document(("A", "1")))

    for app_keys in (without_key, other_key):
        with pytest.raises(Invalid):
            boot.open_environment(sealed, app_keys, app(tmp_path, allowed_envs=["A"]), tmp_path)
    assert not (tmp_path / ".decrypted-env").exists()
    assert boot.open_environment(b"", without_key, app(tmp_path), tmp_path) == {}


def test_an_environment_of_somebody_else_stops_the_boot(tmp_path: Path, agent: Agent) -> None:
    app_keys = dataclasses.replace(agent.vm().keys, env_crypt_key=os.urandom(32))
    given = app(
        tmp_path,
        allowed_envs=["APP_LAUNCH_TOKEN", "A"],
        requirements={"launch_token_hash": hashlib.sha256(b"mine").hexdigest()},
    )

    for replaced in (document(("A", "1")), document(("APP_LAUNCH_TOKEN", "theirs"))):
        with pytest.raises(Invalid, match="APP_LAUNCH_TOKEN"):
            boot.open_environment(seal(app_keys.env_crypt_key, replaced), app_keys, given, tmp_path)
    with pytest.raises(Invalid, match="APP_LAUNCH_TOKEN"):
        boot.open_environment(b"", app_keys, given, tmp_path)
    assert not (tmp_path / ".decrypted-env").exists()
    ours = seal(app_keys.env_crypt_key, document(("APP_LAUNCH_TOKEN", "mine"), ("A", "1")))
    assert boot.open_environment(ours, app_keys, given, tmp_path)["A"] == "1"


@pytest.fixture
def compose_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A docker-compose that says which images it would start."""
    monkeypatch.setattr(boot, "WORK", tmp_path)
    program = tmp_path / "docker-compose"
    monkeypatch.setattr(proc, "CLEAN_ENV", {**proc.CLEAN_ENV, "PATH": f"{tmp_path}:/usr/bin:/bin"})

    def lists(images: str) -> None:
        program.write_text(f'#!/bin/sh\ncase "$*" in *" config --images") echo "{images}";; esac\n')
        program.chmod(0o755)

    return lists


def test_an_app_that_requires_digests_starts_nothing_that_can_change(
    compose_lists: Callable[[str], None],
) -> None:
    pinned = "nginx@sha256:" + "ab" * 32
    compose_lists(f"{pinned}\nlocalhost/casemate-hello:1")
    boot.check_images({})

    compose_lists(f"{pinned}\nredis:7")
    with pytest.raises(Invalid, match="redis:7 can change"):
        boot.check_images({})


def test_the_work_folder_has_what_an_app_looks_for(tmp_path: Path) -> None:
    text = "services:\n  a: {image: 'b'}\n# ünï\n"
    shared, work = tmp_path / "shared", tmp_path / "work"
    shared.mkdir()
    (shared / ".user-config").write_text("for the user")
    given = app(tmp_path, docker_compose_file=text)

    boot.write_work_files(given, work, shared)

    assert (work / "docker-compose.yaml").read_text() == text
    assert (work / "app-compose.json").read_text() == given.text
    assert (work / "user_config").read_text() == "for the user"
    assert (work / "user_config").is_symlink()


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"key_provider": "local"}, "key_provider local"),
        ({"local_key_provider_enabled": True}, "key_provider local"),
        ({"runner": "pod"}, "runner pod"),
        ({"runner": "bash", "require_digest": True}, "require_digest"),
        ({"storage_fs": "zfs"}, "storage_fs zfs"),
    ],
)
def test_what_this_image_cannot_do_is_refused_by_name(
    tmp_path: Path, fields: dict[str, object], names: str
) -> None:
    with pytest.raises(Invalid, match=names):
        boot.check(app(tmp_path, **fields))


class Recorded(boot.Boot):
    """A boot without disk, KMS and engine that notes what RTMR3 held at each step."""

    def __init__(self, settings: Settings, log: list[str]) -> None:
        told = Told()
        super().__init__(settings, boot.Progress(told), told, lambda: None)
        self.steps = log
        self.measured: list[list[str]] = []

    def note(self, step: str) -> None:
        events = event_log(self._settings, tee.detect(self._settings)).runtime_events()
        self.steps.append(step)
        self.measured.append([f"{event.event} {event.event_payload.hex()}" for event in events])

    def _given(self, app: App, sys_config: SysConfig, proof: Evidence) -> Provisioned:
        self.note("keys asked for")
        given = boot.app_keys_of(keys.from_seed(os.urandom(32)), proof)
        return Provisioned(given, b"")

    def _data_disk(self, key: bytes, *, is_lasting: bool) -> None:
        pass

    def _watch_engine(self) -> None:
        pass


@pytest.fixture
def booted(
    guest: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Recorded]:
    """Boots an app-compose with the given fields up to its scripts."""
    shared = tmp_path / "shared"
    settings = dataclasses.replace(
        guest,
        app_compose=shared / "app-compose.json",
        app_keys=shared / ".appkeys.json",
        sys_config=shared / ".sys-config.json",
        instance_info=shared / ".instance_info",
        tee_seed=shared / ".tee-simulator.json",
        runtime_log=tmp_path / "log/events.log",
    )
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("flags : fpu\n")
    monkeypatch.setattr(boot, "WORK", tmp_path / "work")
    monkeypatch.setattr(boot, "HOST_SHARED", shared)

    def start(host: Mapping[str, object] | None = None, **fields: object) -> Recorded:
        made = Recorded(settings, [])

        def copy_in(mount_point: Path, target: Path) -> None:
            target.mkdir()
            (target / "app-compose.json").write_text(json.dumps(fields))
            seed = json.dumps({"platform": "dstack-tdx", "seed": "11" * 32})
            (target / ".tee-simulator.json").write_text(seed)
            (target / ".sys-config.json").write_text(json.dumps(host or {}))

        monkeypatch.setattr(boot.share, "copy_in", copy_in)
        monkeypatch.setattr(boot, "run_script", lambda name, text, _: made.note(f"{name}: {text}"))
        monkeypatch.setattr(boot, "compose_up", lambda _: made.note("compose"))
        made.run()
        return made

    return start


@pytest.mark.parametrize("key_provider", ["kms", "none"])
def test_keys_are_given_and_scripts_run_only_after_the_app_was_measured(
    booted: Callable[..., Recorded], key_provider: str
) -> None:
    fields = {"key_provider": key_provider, "init_script": "one", "pre_launch_script": "two"}

    made = booted(**fields)

    asked = ["keys asked for"] if key_provider == "kms" else []
    assert made.steps == [*asked, "init-script: one", "pre-launch: two", "compose"]
    compose_hash = hashlib.sha256(json.dumps(fields).encode()).hexdigest()
    script_hash = hashlib.sha256(b"one").hexdigest()
    for measured in made.measured:
        assert measured[1] == f"app-id {compose_hash[:40]}"
        assert measured[2:4] == [f"compose-hash {compose_hash}", f"init-script-hash {script_hash}"]
        assert "boot-mr-done " in measured
    if key_provider == "kms":
        assert made.measured[0][-1] == "boot-mr-done "
    # By the time a script of the app runs, no event of it can pass for one of the platform.
    assert all(measured[-1] == "system-ready " for measured in made.measured[len(asked) :])


@pytest.mark.parametrize(
    "host",
    [
        {},
        {"vm_config": json.dumps({"os_image_hash": "ab" * 32, "memory_size": 2**40})},
        {"mr_config": '{"compose_hash": "00"}', "kms_urls": ["https://evil.example"]},
        {"docker_registry": "evil.example", "host_api_url": "vsock://2:1/api", "unknown": [1]},
    ],
)
def test_what_the_host_configures_changes_nothing_of_what_is_measured(
    booted: Callable[..., Recorded], host: dict[str, object]
) -> None:
    fields = {"key_provider": "none", "no_instance_id": True, "docker_compose_file": "services: {}"}

    made = booted(host, **fields)

    compose_hash = hashlib.sha256(json.dumps(fields).encode()).hexdigest()
    provider = json.dumps({"name": "none", "id": ""}, separators=(",", ":")).encode().hex()
    assert made.measured[-1] == [
        "system-preparing ",
        f"app-id {compose_hash[:40]}",
        f"compose-hash {compose_hash}",
        "instance-id ",
        "boot-mr-done ",
        f"key-provider {provider}",
        f"storage-fs {b'ext4'.hex()}",
        "system-ready ",
    ]


def test_a_root_certificate_attests_its_own_key(agent: Agent) -> None:
    vm = agent.vm()
    made = boot.app_keys_of(keys.from_seed(bytes(32)), vm.evidence)

    found = ratls.read(x509.load_pem_x509_certificate(made.ca_cert.encode()))

    evidence = found.evidence()
    assert evidence is not None
    assert evidence.report_data == ratls.report_data_for_key(
        spki_der(keys.from_seed(bytes(32)).ca_key.public_key())
    )


def test_keys_of_a_tpm_name_their_origin(agent: Agent) -> None:
    made = keys.from_seed(bytes(32))

    given = boot.app_keys_of(made, agent.vm().evidence, "Tpm")

    assert json.loads(given.key_provider.info) == {
        "name": "tpm",
        "id": spki_der(made.ca_key.public_key()).hex(),
    }
    assert (given.env_crypt_key, given.k256_signature) == (b"", b"")


def test_a_script_that_fails_shows_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boot, "WORK", tmp_path)
    monkeypatch.setattr(boot, "LOGS", tmp_path / "log")

    boot.run_script("pre-launch", 'echo "$A" >out; pwd', {"A": "b c"})

    assert (tmp_path / "out").read_text() == "b c\n"
    assert (tmp_path / "log/pre-launch.log").read_text().strip() == str(tmp_path)
    assert (tmp_path / ".pre-launch.sh").stat().st_mode & 0o777 == 0o700
    with pytest.raises(CasemateError, match=r"(?s)pre-launch script exited with 3.*no such luck"):
        boot.run_script("pre-launch", "seq 100000; echo no such luck >&2; exit 3", {})


class Told(Notifier):
    """Keeps what the host would be told."""

    def __init__(self) -> None:
        super().__init__(None)
        self.events: list[tuple[str, str]] = []

    def close(self, timeout_s: float = 0) -> None:
        pass

    def notify(self, event: str, payload: str) -> None:
        self.events.append((event, payload))


@pytest.fixture
def guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A guest whose host gives it nothing."""
    monkeypatch.setattr(boot.share, "WAIT_S", 0.0)
    (tmp_path / "state").mkdir()
    return dataclasses.replace(GUEST, root=tmp_path, state=tmp_path / "state")


def test_a_failed_boot_is_told_on_the_console_to_the_host_and_by_the_agent(
    guest: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = Told()
    monkeypatch.setattr(boot, "Notifier", lambda host: told)

    boot.main(guest, lambda: None)

    assert "casemate: boot failed: there is no disk labelled DSTACKSHR" in capsys.readouterr().out
    assert [event for event, _ in told.events] == ["boot.error"]
    assert "DSTACKSHR" in guest.boot_error.read_text()
    waiting = Agent(dataclasses.replace(guest, app_keys=guest.state / "none"), lambda: None)
    with pytest.raises(CasemateError, match="the boot failed: .*DSTACKSHR"):
        waiting.vm()


def test_a_long_reason_is_cut_to_what_the_host_takes(capsys: pytest.CaptureFixture[str]) -> None:
    told = Told()

    boot.Progress(told).failed("é" * 4096)

    assert len(told.events[0][1].encode()) == 4096


def test_the_data_disk_is_the_first_that_can_be_written_and_is_not_the_share(
    tmp_path: Path,
) -> None:
    for name, read_only in (("vda", 1), ("vdb", 0), ("vdc", 0)):
        folder = tmp_path / "sys/block" / name
        folder.mkdir(parents=True)
        (folder / "ro").write_text(f"{read_only}\n")
    (tmp_path / "dev").mkdir()
    label = bytes(43) + b"DSTACKSHR  "
    (tmp_path / "dev/vdb").write_bytes(label.ljust(510, b"\0") + b"\x55\xaa")
    (tmp_path / "dev/vdc").write_bytes(bytes(512))

    assert disk.find(tmp_path) == tmp_path / "dev/vdc"
    (tmp_path / "sys/block/vdc/ro").write_text("1\n")
    with pytest.raises(Invalid):
        disk.find(tmp_path)


def test_only_a_press_of_the_power_key_ends_the_machine() -> None:
    reading, writing = os.pipe()

    def press(*event: int) -> bool:
        os.write(writing, init._INPUT_EVENT.pack(0, 0, *event))
        return init.is_pressed(reading)

    assert press(1, 116, 1)
    assert not press(1, 116, 0)
    assert not press(1, 30, 1)
    assert not press(0, 0, 0)
    os.close(reading)
    os.close(writing)


def test_sockets_are_handed_over_in_order_wherever_they_were() -> None:
    reading, writing = os.pipe()

    def child() -> None:
        import socket

        names = [f"\0casemate-test-{os.getpid()}-{i}" for i in range(3)]
        made = [socket.socket(socket.AF_UNIX) for _ in names]
        for sock, name in zip(made, names, strict=True):
            sock.bind(name)
        told = init.hand_over([made[2].fileno(), made[0].fileno(), made[1].fileno()])
        found = [socket.socket(fileno=fd).getsockname().decode()[-1] for fd in (3, 4, 5)]
        os.write(writing, json.dumps([told["LISTEN_FDS"], found]).encode())

    # Far above the places that the child fills.
    writing, low = os.dup2(writing, 200), writing
    os.close(low)
    pid = init.fork(child)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        said = json.loads(file.read())
    os.waitpid(pid, 0)
    assert said == ["3", ["2", "0", "1"]]


def test_two_agents_never_share_a_folder(folder: Path, agent: Agent) -> None:
    with pytest.raises(CasemateError, match="another agent"):
        simulator.prepared(folder, None, "").__enter__()


def test_a_folder_too_deep_for_a_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="too long"):
        simulator.prepared(tmp_path / ("x" * 100), None, "").__enter__()


def test_a_guest_without_a_serial_port_has_no_host(tmp_path: Path) -> None:
    assert channel.host(dataclasses.replace(GUEST, state=tmp_path, root=tmp_path)) is None
