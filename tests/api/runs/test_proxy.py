"""Services below /proxy/services: found, guarded, and silent about what the caller may not know."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from models.port import PortLease
from tests.api.runs.conftest import Api, Host
from tests.common.waiting import until
from vmm.schemas import StatusQuery

URL = "/proxy/services/main/web/"


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """Where the service would listen in its VM."""
    (tmp_path / "index.html").write_text("hi from the service")

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=tmp_path)

        def log_message(self, *args: Any) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def begin(api: Api, host: Host, port: int, **fields: Any) -> None:
    """A running service whose VM has its port on this host."""
    api.fleet()
    api.run("sleep 1000", name="web", type="service", port=8000, **fields)
    api.until("web", "running")
    (vm,) = host.vms.status(StatusQuery())["vms"]
    with host.vms.database.writing() as session:
        session.add(
            PortLease(
                vm_id=vm["id"], position=1, protocol="tcp", host_address="127.0.0.1",
                host_port=port, vm_port=8000, own=True,
            )
        )  # fmt: skip
    ready = "Service replica ready to receive requests"
    until(lambda: ready in api.events(), seconds=20, what="a service that is ready")


def test_a_service_answers_who_may_see_its_project(api: Api, background: Host, port: int) -> None:
    begin(api, background, port)

    told = api.client.get(URL, headers={"Authorization": f"Bearer {api.token}"})

    assert (told.status_code, told.get_data(as_text=True)) == (200, "hi from the service")
    assert api.get("web")["service"]["url"] == URL
    assert api.client.get(URL).status_code == 401
    assert api.client.get(URL, headers={"Authorization": "Bearer wrong"}).status_code == 403


def test_a_service_without_auth_is_for_everybody(api: Api, background: Host, port: int) -> None:
    begin(api, background, port, auth=False)

    assert api.client.get(URL).get_data(as_text=True) == "hi from the service"


def test_a_stranger_learns_nothing_of_what_there_is(api: Api) -> None:
    nobody = {
        api.client.get(f"/proxy/services/{path}/").status_code for path in ("main/web", "no/web")
    }

    assert nobody == {401}


def test_what_is_no_service_is_not_found(api: Api, background: Host) -> None:
    api.fleet()
    api.run("sleep 1000", name="task")
    api.until("task", "running")
    bearer = {"Authorization": f"Bearer {api.token}"}

    for path in ("main/task", "main/nope", "nope/web"):
        assert api.client.get(f"/proxy/services/{path}/", headers=bearer).status_code == 404


def test_a_service_that_does_not_run_says_so(api: Api) -> None:
    api.run("true", name="web", type="service", port=8000)

    told = api.client.get(URL, headers={"Authorization": f"Bearer {api.token}"})

    assert told.status_code == 503
    assert "not running" in told.get_data(as_text=True)
