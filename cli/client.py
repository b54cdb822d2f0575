"""Calls to a running service: its address and token from the environment, else from its discovery file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from core.errors import CasemateError, Invalid, NotFound, Unavailable, Upstream


@dataclass
class Client:
    """One service; `address` is `tcp:IP:PORT`, `IP:PORT`, `unix:PATH` or a URL."""

    address: str
    token: str
    timeout_s: float = 60

    @classmethod
    def found(cls) -> Client:
        """The service that the environment names, else the newest one running here."""
        from vmm import discovery

        address, token = (os.environ.get(f"CASEMATE_{n}", "") for n in ("ADDRESS", "ADMIN_TOKEN"))
        data_dir = os.environ.get("CASEMATE_DATA_DIR", "")
        if not address:
            entry = next(iter(discovery.running()), None)
            if entry is None:
                raise Unavailable(
                    "no running service was found; start one, or set CASEMATE_ADDRESS"
                )
            address, data_dir = entry["address"], entry.get("data_dir", data_dir)
        if not token and data_dir:
            path = Path(data_dir) / "admin-token"
            token = path.read_text().strip() if path.exists() else ""
        return cls(address, token)

    @property
    def url(self) -> str:
        """The address as people and browsers write it."""
        kind, _, rest = self.address.partition(":")
        if kind in ("unix", "http", "https"):
            return self.address
        return f"http://{rest if kind == 'tcp' else self.address}"

    def request(self, verb: str, path: str, **kwargs: Any) -> requests.Response:
        """One HTTP request; Unavailable when nobody listens."""
        import requests_unixsocket

        session = requests.Session()
        session.trust_env = False
        base = self.url.rstrip("/")
        if base.startswith("unix:"):
            session.mount("http+unix://", requests_unixsocket.UnixAdapter())
            path_of_socket = os.path.abspath(base.removeprefix("unix:"))
            base = "http+unix://" + path_of_socket.replace("/", "%2F")
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        try:
            return session.request(
                verb, base + path, headers=headers, **{"timeout": self.timeout_s, **kwargs}
            )
        except requests.Timeout:
            raise Unavailable(f"{self.address} does not answer in time") from None
        except requests.ConnectionError:
            raise Unavailable(f"nobody answers at {self.address}") from None
        except requests.RequestException as error:
            raise Unavailable(f"{self.address}: {error}") from None

    def call(self, path: str, **message: Any) -> Any:
        """One RPC by its path (`prpc/Status`); CasemateError carries the service's refusal."""
        answer = self.request("POST", f"/{path}", json=message)
        if answer.status_code != 200:
            raise CasemateError(_refusal(answer))
        try:
            return answer.json() if answer.content else None
        except ValueError:
            raise Upstream(f"what answers at {self.address} is not Casemate") from None

    def vm(self, given: str) -> dict[str, Any]:
        """The VM of an id, an id's beginning or a name; refuses what fits several, naming them."""
        found: list[dict[str, Any]] = self.call("prpc/Status", keyword=given, brief=True)["vms"]
        fits = [each for each in found if each["id"] == given] or [
            each for each in found if each["name"] == given or each["id"].startswith(given)
        ]
        if not given or not fits:
            raise NotFound(f"there is no VM {given}")
        if len(fits) > 1:
            named = ", ".join(f"{each['id']} ({each['name']})" for each in fits)
            raise Invalid(f"{given} fits {len(fits)} VMs; give the id: {named}")
        return fits[0]

    def info(self, vm_id: str) -> dict[str, Any]:
        """One VM with its configuration, by its whole id."""
        info: dict[str, Any] | None = self.call("prpc/GetInfo", id=vm_id)["info"]
        if info is None:
            raise NotFound(f"there is no VM {vm_id}")
        return info

    def follow(self, path: str) -> Iterator[str]:
        """The pieces of a text stream as they come."""
        with self.request("GET", path, stream=True, timeout=(10, None)) as answer:
            if answer.status_code != 200:
                raise CasemateError(_refusal(answer))
            answer.encoding = "utf-8"
            try:
                yield from answer.iter_content(chunk_size=None, decode_unicode=True)
            except requests.RequestException:
                raise Unavailable(f"{self.address} closed the connection") from None


def _refusal(answer: requests.Response) -> str:
    try:
        return str(answer.json()["message"])
    except (ValueError, KeyError, TypeError):
        return f"status {answer.status_code}: {answer.text[:300]}"
