"""The parts of a boot that need no VM."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
from cryptography import x509

from attest import ratls
from core.certs import spki_der
from core.errors import CasemateError, Invalid
from guest import boot, certs, channel, disk, init, keys, simulator
from guest.channel import Notifier
from guest.identity import App
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
        ({"key_provider": "kms"}, "key_provider kms"),
        ({"kms_enabled": True}, "key_provider kms"),
        ({"key_provider": "local"}, "key_provider local"),
        ({"runner": "pod"}, "runner pod"),
        ({"storage_fs": "zfs"}, "storage_fs zfs"),
    ],
)
def test_what_this_image_cannot_do_is_refused_by_name(
    tmp_path: Path, fields: dict[str, object], names: str
) -> None:
    with pytest.raises(Invalid, match=names):
        boot.check(app(tmp_path, **fields))


def test_a_root_certificate_attests_its_own_key(agent: Agent) -> None:
    vm = agent.vm()
    made = boot.app_keys_of(keys.from_seed(bytes(32)), vm.evidence)

    found = ratls.read(x509.load_pem_x509_certificate(made.ca_cert.encode()))

    evidence = found.evidence()
    assert evidence is not None
    assert evidence.report_data == ratls.report_data_for_key(
        spki_der(keys.from_seed(bytes(32)).ca_key.public_key())
    )


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
    assert channel.host(tmp_path, tmp_path) is None
