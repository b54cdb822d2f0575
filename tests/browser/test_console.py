"""The console as people use it: in Chromium, before a real service."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from guest import env
from models.base import Database
from models.vm import Vm
from tests.browser.conftest import Kms
from tests.browser.person import Person
from tests.common import rows
from tests.common.service import RunningService
from tests.common.waiting import free_port

DOCKER = "services:\n  web:\n    image: nginx:1.27\n"
# Every page, by its path; {} stands for a VM's id.
PAGES = (
    *("/", "/?q=none-has-this", "/v0", "/console/deploy", "/console/deploy?from={}"),
    *("/console/images", "/console/processes", "/console/nowhere"),
    *("/console/vm/{}", "/console/vm/{}/update", "/console/vm/{}/guest", "/console/vm/{}/remove"),
    *("/console/vm/{}/log", "/console/vm/{}/log?ch=stderr"),
)


@pytest.fixture
def vm(service: RunningService) -> Callable[..., str]:
    """Makes a VM over the wire."""

    def make(**fields: object) -> str:
        vm_id: str = service.call("prpc/CreateVm", **rows.request(**fields))["id"]
        return vm_id

    return make


def folder(service: RunningService, vm_id: str) -> Path:
    return service.data_dir / "vm" / vm_id


def measured(service: RunningService, vm_id: str) -> str:
    compose: str = service.info(vm_id)["configuration"]["compose_file"]
    return hashlib.sha256(compose.encode()).hexdigest()


def opened(service: RunningService, kms: Kms, vm_id: str) -> object:
    """The variables that the app would read with its key."""
    sealed = bytes.fromhex(service.info(vm_id)["configuration"]["encrypted_env"])
    return json.loads(env.decrypt(kms.key.private_bytes_raw(), sealed))["env"]


def test_a_wrong_token_is_told_in_words_and_a_right_one_opens_the_page_asked_for(
    person: Person,
) -> None:
    person.goes_to("/console/images")
    person.types("#token", "wrong")
    person.clicks("button", "Sign in")
    person.sees("[role=alert]", "not a valid token")

    person.types("#token", person.service.token)
    person.clicks("button", "Sign in")

    person.sees("h1", "Images")
    person.sees(".top", "admin")
    assert person.complaints()[0].count("401"), "the refusal, and nothing else"


def test_a_vm_is_made_from_docker_compose_and_watched_without_a_new_page(person: Person) -> None:
    service = person.service
    told = {"event": "boot.progress", "payload": "setting up docker"}
    said = json.dumps({"id": 1, "method": "Notify", "params": told})
    rows.behave(service.data_dir / "vm", say=[said])
    port = free_port()
    person.signs_in()
    person.clicks("a.button", "Deploy")
    person.types("#name", "shop")
    person.types("#docker_compose_file", DOCKER)
    person.clicks("button", "Add a port")
    person.types("[name=port_host]", str(port))
    person.types("[name=port_vm]", "80")
    shown = person.waits(lambda: said_hash(person, "nginx"), "the hash of what was typed")
    person.clicks("button", "Deploy")

    person.sees("h1", "shop")
    person.sees(".status.running", "running")
    person.sees(".progress", "setting up docker")
    vm_id = person.browser.current_url.rpartition("/")[2]
    assert measured(service, vm_id) == shown
    compose = json.loads(service.info(vm_id)["configuration"]["compose_file"])
    assert compose["docker_compose_file"] == DOCKER
    person.sees("dd", f"127.0.0.1:{port} leads to 80/tcp")
    person.clicks("summary", "The exact QEMU command")
    person.sees("#command", f"hostfwd=tcp:127.0.0.1:{port}-:80")

    person.run("window.stays = true")
    service.call("prpc/StopVm", id=vm_id)
    person.sees(".status.stopped", "stopped")
    person.sees(".events", "vmm.stop")
    assert person.run("return window.stays"), "the page was loaded anew"
    service.call("prpc/RemoveVm", id=vm_id)
    person.sees("#notes", "not there any more")
    rows.behave(service.data_dir / "vm")
    assert [line for line in person.complaints() if "404" not in line] == []


def said_hash(person: Person, text: str) -> str:
    """The previewed hash, once it is that of a document which has a text."""
    found = person.run(
        "const box = document.querySelector('#hash');"
        "return box.querySelector('pre')?.textContent.includes(arguments[0]) &&"
        " box.querySelector('.hash').textContent",
        text,
    )
    return found or ""


def test_a_refusal_stands_beside_its_field_and_loses_nothing(person: Person) -> None:
    person.signs_in()
    person.goes_to("/console/deploy")
    person.types("#name", "a/b")
    person.types("#docker_compose_file", DOCKER)
    person.types("#memory", "much")
    person.clicks("button", "Add a port")
    person.types("[name=port_host]", "80")
    person.types("[name=port_vm]", "8080")
    person.clicks("#env-add")
    person.types(".env-name", "TOKEN")
    person.types(".env-value", "secret")
    person.clicks("button", "Deploy")

    person.sees("#why-memory", "must be a whole number")
    person.types("#memory", "1.5")
    person.chooses("[name=memory_unit]", "GB")
    person.clicks("button", "Deploy")
    person.sees("#why-ports", "row 1 host port 80 is outside the ranges")
    assert not person.finds("#why-memory")
    person.types("[name=port_host]", str(free_port()))
    person.clicks("button", "Deploy")
    person.sees("#why-name", "may contain only letters")
    assert person.run("return document.activeElement.id") == "name"
    assert person.sees("#docker_compose_file").get_attribute("value") == DOCKER
    assert person.sees("[name=port_vm]").get_attribute("value") == "8080"
    assert person.sees(".env-value").get_attribute("value") == "secret"
    person.types("#name", "patience")
    person.clicks("button", "Deploy")
    person.sees("h1", "patience")
    has = person.service.info(person.browser.current_url.rpartition("/")[2])["configuration"]
    assert (has["memory"], has["encrypted_env"] != "") == (1536, True)
    assert [line for line in person.complaints() if "400" not in line] == []


@pytest.mark.parametrize("host", ["127.0.0.1", "casemate.test"])
def test_variables_are_encrypted_in_the_browser_with_and_without_its_own_crypto(
    person: Person, kms: Kms, host: str
) -> None:
    base = person.service.base.replace("127.0.0.1", host)
    person.complaints()
    person.browser.get(f"{base}/sign-in?next=/console/deploy")
    if "sign-in" in person.browser.current_url:
        person.types("#token", person.service.token)
        person.clicks("button", "Sign in")
    assert person.run("return Boolean(crypto.subtle)") == (host == "127.0.0.1")
    person.types("#name", "secretive")
    person.types("#docker_compose_file", DOCKER)
    person.clicks("#env-add")
    person.types(".env-name", "TOKEN")
    person.types(".env-value", "grün and € 'quoted'")
    person.clicks("summary", "Paste a .env file")
    person.types("#env-text", '# a comment\nexport URL="https://a.b/?c=d"\nEMPTY=\n')
    person.clicks("#env-read")
    person.clicks("button", "Deploy")

    person.sees("h1", "secretive")
    vm_id = person.browser.current_url.rpartition("/")[2]
    assert opened(person.service, kms, vm_id) == [
        {"key": "TOKEN", "value": "grün and € 'quoted'"},
        {"key": "URL", "value": "https://a.b/?c=d"},
        {"key": "EMPTY", "value": ""},
    ]
    info = person.service.info(vm_id)
    assert kms.asked[-1] == info["app_id"]
    compose = json.loads(info["configuration"]["compose_file"])
    assert compose["allowed_envs"] == ["TOKEN", "URL", "EMPTY"]
    assert person.complaints() == []


def test_an_update_opens_with_what_there_is_and_is_one_call(
    person: Person, kms: Kms, vm: Callable[..., str]
) -> None:
    service, port = person.service, free_port()
    vm_id = vm(name="old", ports=[rows.port(port)], user_config="as it was")
    person.signs_in()
    person.goes_to(f"/console/vm/{vm_id}/update")

    assert person.sees("#docker_compose_file").get_attribute("value") == "services: {}"
    assert person.sees("[name=port_host]").get_attribute("value") == str(port)
    assert person.sees("#user_config").get_attribute("value") == "as it was"
    assert not person.sees("#vcpu").is_enabled()
    person.sees("#hash", "Compose hash stays")
    person.types("#docker_compose_file", DOCKER)
    person.clicks("#env-add")
    person.types(".env-name", "NEW")
    person.types(".env-value", "value")
    shown = person.waits(lambda: said_hash(person, "NEW"), "the hash of the new document")
    person.sees("#hash", "New compose hash")
    person.types("#user_config", "as it is")
    person.clicks("button", "Update")

    person.sees("#notes", "Changed: old")
    assert measured(service, vm_id) == shown
    info = service.info(vm_id)
    assert info["configuration"]["user_config"] == "as it is"
    assert info["configuration"]["ports"][0]["host_port"] == port
    assert opened(service, kms, vm_id) == [{"key": "NEW", "value": "value"}]
    assert kms.asked[-1] == info["app_id"]
    (update,) = [each for each in info["events"] if each["event"] == "vmm.update"]
    assert update["body"] == "compose_file, encrypted_env, user_config"


def test_resources_change_while_it_is_stopped(person: Person, vm: Callable[..., str]) -> None:
    vm_id = vm(name="grows", stopped=True)
    person.signs_in()
    person.goes_to(f"/console/vm/{vm_id}/update")
    person.types("#disk_size", "0")
    person.clicks("button", "Update")
    person.sees("#why-disk_size", "can only grow")
    person.types("#disk_size", "2")
    person.types("#vcpu", "2")
    person.clicks("button", "Update")

    person.sees("#notes", "Changed: grows")
    has = person.service.info(vm_id)["configuration"]
    assert (has["vcpu"], has["disk_size"], has["memory"]) == (2, 2, 256)


def test_a_clone_has_the_same_settings(person: Person, vm: Callable[..., str]) -> None:
    vm_id = vm(name="first", stopped=True, memory=512, user_config="kept")
    person.signs_in()
    person.goes_to(f"/console/deploy?from={vm_id}")
    person.clicks("button", "Deploy")

    person.sees("h1", "first-copy")
    first, second = (
        person.service.info(each) for each in (vm_id, person.browser.current_url.rpartition("/")[2])
    )
    assert first["app_id"] == second["app_id"]
    for same in ("compose_file", "memory", "user_config", "image", "no_tee"):
        assert first["configuration"][same] == second["configuration"][same]


def test_a_log_follows_and_stays_at_its_newest_line(person: Person, vm: Callable[..., str]) -> None:
    vm_id = vm(name="talks")
    serial = folder(person.service, vm_id) / "serial.log"
    with open(serial, "a") as log:
        log.write("before the firmware\r\n\x1bc\x1b[?7l\x1b[2J\x1b[3J")
        log.writelines(f"\x1b[1;38;2;200;10;10mline {n}\x1b[0m\r\n" for n in range(300))
    person.signs_in()
    person.goes_to(f"/console/vm/{vm_id}/log")

    person.sees(".xterm-rows", "line 299")
    with open(serial, "a") as log:
        log.writelines(f"later {n}\r\n" for n in range(100))
    person.sees(".xterm-rows", "later 99")
    place = "const { baseY, viewportY } = window.terminal.buffer.active; return [baseY, viewportY]"
    base, shown = person.run(place)
    assert base == shown > 100
    person.run("window.terminal.scrollToTop()")
    person.sees(".xterm-rows", "before the firmware")
    color = "return getComputedStyle([...document.querySelectorAll('.xterm-rows span')]"
    person.run("window.terminal.scrollToLine(50)")
    person.sees(".xterm-rows", "line 52")
    assert person.run(f"{color}.find((each) => each.textContent.includes('line'))).color") != ""
    assert person.complaints() == []


def test_what_one_types_and_opens_stays_while_the_list_renews_itself(
    person: Person, vm: Callable[..., str]
) -> None:
    one = vm(name="one-of-two", stopped=True)
    person.signs_in()
    person.goes_to("/")
    search = person.sees("#q")
    search.send_keys("one-of")
    person.sees_none(f"[id^=vm-]:not([id='vm-{one}'])")
    person.clicks(f"#menu-{one} summary")
    search.send_keys("-tw")
    person.run("window.stays = true; document.querySelector('#q').setSelectionRange(2, 4)")
    person.service.call("prpc/StartVm", id=one)

    person.sees(f"#vm-{one} .status.running")
    state = (
        "const q = document.querySelector('#q'); return [q.value, q.selectionStart, q.selectionEnd]"
    )
    assert person.run(state) == ["one-of-tw", 2, 4]
    assert person.run("return document.activeElement.id") == "q"
    assert person.run("return window.stays")
    person.service.call("prpc/StopVm", id=one)
    person.sees(f"#vm-{one} .status.stopped")
    assert person.run("return document.getElementById(arguments[0]).open", f"menu-{one}")
    person.clicks(f"#menu-{one} button", "Start")
    person.sees("#notes", "Start: one-of-two")
    assert person.run("return window.stays")


def test_removal_asks_first(person: Person, vm: Callable[..., str]) -> None:
    vm_id = vm(name="doomed")
    person.signs_in()
    person.goes_to("/?q=doomed")
    person.clicks(f"#menu-{vm_id} summary")
    person.clicks(f"#menu-{vm_id} a", "Remove")
    person.sees("#dialog", "Remove doomed?")
    person.clicks("#dialog a", "Cancel")
    person.sees_none("#dialog")
    assert person.service.info(vm_id)["status"] == "running"

    person.run("window.stays = true")
    person.clicks(f"#menu-{vm_id} summary")
    person.clicks(f"#menu-{vm_id} a", "Remove")
    person.clicks("#dialog button", "Remove")

    person.sees("#notes", "Remove: doomed")
    person.sees_none(f"#vm-{vm_id}")
    assert person.run("return window.stays")
    assert not person.service.call("prpc/GetInfo", id=vm_id)["found"]


def test_the_keyboard_is_enough(person: Person, vm: Callable[..., str]) -> None:
    vm_id = vm(name="keys", stopped=True)
    person.signs_in()
    person.goes_to("/?q=keys")
    person.presses(f"#menu-{vm_id} summary", Keys.ENTER)
    person.presses(f"#menu-{vm_id} button", Keys.ESCAPE, "Start")
    person.sees_none(f"#menu-{vm_id} button")
    assert person.browser.switch_to.active_element.tag_name == "summary"
    person.browser.switch_to.active_element.send_keys(Keys.ENTER)
    person.presses(f"#menu-{vm_id} button", Keys.ENTER, "Start")

    person.sees(f"#vm-{vm_id} .status.running")


def test_the_basic_verbs_work_without_script(person: Person, vm: Callable[..., str]) -> None:
    vm_id = vm(name="plain", stopped=True)
    person.signs_in()
    person.browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        person.goes_to("/console/deploy")
        for selector, text in (("#name", "typed"), ("#docker_compose_file", DOCKER)):
            person.browser.find_element(By.CSS_SELECTOR, selector).send_keys(text)
        person.browser.find_element(By.CSS_SELECTOR, ".submit button").click()
        person.sees("h1", "typed")
        person.goes_to(f"/console/vm/{vm_id}")
        person.sees(".menu summary", "Actions").click()
        person.sees(".menu button", "Start").click()
        person.sees("#notes", "Start: plain")
        person.sees(".head .menu summary").click()
        person.sees(".menu a", "Remove").click()
        person.sees("#confirm button", "Remove").click()
        person.sees("#notes", "Remove: plain")
    finally:
        person.browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_is_wider_than_a_phone_and_every_field_has_a_label(
    person: Person, vm: Callable[..., str], scheme: str
) -> None:
    long = "x" * 64
    guest = {
        "NetworkInfo": {
            "result": {"interfaces": [{"name": long, "addresses": []}], "wg_info": long * 9}
        }
    }
    rows.behave(person.service.data_dir / "vm", guest=guest)
    vm_id = vm(name=long, ports=[rows.port(free_port(), 8090)], user_config=long * 9)
    rows.behave(person.service.data_dir / "vm")
    person.signs_in()
    person.prefers(scheme)
    person.has_window(390)
    seen = set()
    try:
        for path in (*PAGES, "/sign-in"):
            person.goes_to(path.format(vm_id))
            if path.endswith("{}"):
                person.sees("main", long)
            assert person.run("return document.documentElement.scrollWidth") <= 390, path
            person.run("document.querySelectorAll('details').forEach((each) => (each.open = true))")
            assert person.run("return document.documentElement.scrollWidth") <= 390, (
                f"{path}, opened"
            )
            bare = "return [...document.querySelectorAll('input:not([type=hidden]), select, textarea')]"
            unnamed = (
                f"{bare}.filter((e) => !e.labels.length && !e.ariaLabel).map((e) => e.outerHTML)"
            )
            assert person.run(unnamed) == [], path
            seen.add(
                person.run("return getComputedStyle(document.documentElement).backgroundColor")
            )
    finally:
        person.has_window(1280)
        person.prefers("light")

    assert seen == {"rgb(246, 247, 249)" if scheme == "light" else "rgb(17, 21, 26)"}


SCRIPTS = (
    "<script>canary({n})</script>",
    "<img src=x onerror=canary({n})>",
    "\"'><svg/onload=canary({n})>",
    "</textarea></pre></title><script src=//{n}.invalid></script>",
    "' autofocus onfocus=canary({n}) x='",
    "<iframe srcdoc='<script>parent.canary({n})</script>'>",
    "<div hx-get=/v0 hx-trigger=load hx-on::load=canary({n})>",
    "javascript:canary({n})",
    "<style>*{{background:url(//{n}.invalid)}}</style><b style='color:red'>",
    "\x1b]8;;javascript:canary({n})\x07link\x1b]8;;\x07\x1b]0;title\x07\x1b[38;2;1;2;3m",
    "{{{{ canary({n}) }}}}{{% raw %}}${{canary({n})}}",
    "<form id=vm-form hx-post=/console/reload><input name=csrf>",
)


def test_what_guests_and_tenants_write_runs_no_script(
    person: Person, vm: Callable[..., str]
) -> None:
    service = person.service
    hostile = [SCRIPTS[n % len(SCRIPTS)].format(n=n) for n in range(200)]
    containers = [
        {"id": each, "names": [each], "image": each, "state": each, "status": each}
        for each in hostile[100:]
    ]
    guest = {
        "ListContainers": {"result": {"containers": containers}},
        "NetworkInfo": {"result": {"wg_info": hostile[0], "dns_servers": hostile[:40],
                                   "interfaces": [{"name": hostile[1], "addresses": [{"address": hostile[2]}]}]}},
        "SysInfo": {"result": {"os_name": hostile[3], "kernel_version": hostile[4], "total_memory": 1}},
    }  # fmt: skip
    rows.behave(service.data_dir / "vm", guest=guest)
    compose = json.dumps({"docker_compose_file": "\n".join(hostile[:50]), "init_script": hostile[5],
                          "allowed_envs": hostile[6:12], "swap_size": "1G"})  # fmt: skip
    vm_id = vm(
        name="hostile",
        ports=[rows.port(free_port(), 8090)],
        compose_file=compose,
        user_config="\n".join(hostile),
    )
    rows.behave(service.data_dir / "vm")
    with open(folder(service, vm_id) / "serial.log", "a") as log:
        log.write("\r\n".join(hostile) + "\r\n")
    database = Database(service.data_dir / "casemate.db")
    with database.writing() as session:
        row = session.get_one(Vm, vm_id)
        row.boot_progress, row.boot_error, row.shutdown_progress = hostile[20:23]
        row.image_version, row.instance_id = hostile[23], hostile[24][:40]
        for lease, text in zip(row.ports, hostile[25:], strict=False):
            lease.host_address = text
        for each, text in zip(row.events, hostile[30:], strict=False):
            each.event = each.body = text
    person.signs_in()
    person.complaints()
    watch = (
        "window.ran = []; window.canary = (n) => window.ran.push(n); window.alert = window.canary;"
    )
    listen = "window.breaches = []; addEventListener('securitypolicyviolation', (e) => breaches.push(e.blockedURI + e.violatedDirective));"
    added = person.browser.execute_cdp_cmd(
        "Page.addScriptToEvaluateOnNewDocument", {"source": watch + listen}
    )
    try:
        for path in PAGES:
            person.goes_to(path.format(vm_id))
            if path.endswith(("/vm/{}", "/guest")):
                person.sees("#guest", hostile[100])
            elif path.endswith("/log"):
                person.sees(".xterm-rows", "canary(199)" if "199" in hostile[199] else "199")
            person.run("document.querySelectorAll('details').forEach((each) => (each.open = true))")
            assert person.run("return window.ran") == [], path
            assert person.run("return window.breaches") == [], path
        person.goes_to("/console/deploy?from=" + vm_id)
        person.waits(lambda: said_hash(person, "canary"), "the preview of hostile text")
        assert person.run("return [ran, breaches]") == [[], []]
    finally:
        person.browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)

    assert [line for line in person.complaints() if "404" not in line] == []


def test_the_watch_for_scripts_sees_one(person: Person) -> None:
    person.signs_in()
    person.run(
        "window.breaches = []; addEventListener('securitypolicyviolation', (e) => breaches.push(1))"
    )
    person.run("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=canary(1)>')")

    person.waits(lambda: person.run("return breaches.length"), "a breach of the policy")
    assert person.complaints()


def test_when_the_service_is_away_the_page_says_so_and_recovers(person: Person) -> None:
    person.signs_in()
    person.goes_to("/")
    person.service.stop()
    person.sees("#notes", "does not answer")

    person.service.start()

    person.sees_none("#notes .away")


def test_signing_out_ends_it(person: Person) -> None:
    person.signs_in()
    person.clicks("#host-menu summary")
    person.clicks("#host-menu button", "Sign out")

    person.sees("h1", "Sign in")
    person.goes_to("/console/deploy")
    person.sees("h1", "Sign in")
