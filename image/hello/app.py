"""The sample app: shows who it is, a fingerprint of its key, and a quote over a nonce of the caller's.

Runs in the bundled container image with Python's standard library alone and asks the guest agent on its
Unix socket (seed 000: Info, GetKey, GetQuote).  GET /json?nonce=TEXT answers the same as JSON: the quote's
report data is the SHA-256 of the nonce's UTF-8 bytes, zero-padded to 64.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import html
import http.client
import http.server
import json
import os
import re
import signal
import socket
import sys
from types import FrameType
from typing import Any
from urllib.parse import parse_qs, urlsplit

AGENT_SOCKET = os.environ.get("DSTACK_SOCKET", "/var/run/dstack.sock")
AGENT_TIMEOUT_S = 10
KEY_PATH = "casemate-hello"
MAX_NONCE = 256
# A caller that sends nothing holds a thread no longer than this.
CALLER_TIMEOUT_S = 20

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----(.+?)-----END CERTIFICATE-----", re.DOTALL)


class AgentFailed(Exception):
    """The guest agent did not answer, or refused."""


class BadRequest(Exception):
    """The caller's request breaks a rule."""


class _UnixConnection(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(AGENT_SOCKET)


def ask_agent(method: str, **params: object) -> dict[str, Any]:
    """Calls a method of the guest agent and returns its answer."""
    connection = _UnixConnection("agent", timeout=AGENT_TIMEOUT_S)
    try:
        connection.request(
            "POST", f"/{method}", json.dumps(params), {"Content-Type": "application/json"}
        )
        response = connection.getresponse()
        answer = json.loads(response.read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise AgentFailed(f"{method}: {error}") from None
    finally:
        connection.close()
    if response.status != 200 or not isinstance(answer, dict):
        raise AgentFailed(f"{method}: the agent answered {response.status}: {str(answer)[:200]}")
    return answer


def evidence(nonce: str) -> dict[str, Any]:
    """Who this app is and its quote over the nonce; the key itself never leaves."""
    info = ask_agent("Info")
    key = ask_agent("GetKey", path=KEY_PATH)["key"]
    report_data = hashlib.sha256(nonce.encode()).hexdigest()
    quote = ask_agent("GetQuote", report_data=report_data)
    return {
        "app_id": info["app_id"],
        "instance_id": info["instance_id"],
        "app_name": info.get("app_name", ""),
        "compose_hash": info.get("compose_hash", ""),
        "key_fingerprint": hashlib.sha256(bytes.fromhex(key)).hexdigest()[:16],
        "nonce": nonce,
        "report_data": quote["report_data"],
        "quote": quote["quote"],
        "event_log": quote["event_log"],
        "vm_config": quote["vm_config"],
        "simulated": is_simulated(quote["quote"]),
    }


def is_simulated(quote: str) -> bool:
    """Whether the certificates inside a quote (hex) say that a simulated TEE signed it.

    A courtesy to who looks at the page: only a verifier that checks the signatures can be believed.
    """
    for match in _CERTIFICATE.finditer(bytes.fromhex(quote)):
        try:
            if b"simulated" in base64.b64decode(match[1]).lower():
                return True
        except binascii.Error:
            continue
    return False


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{name}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem;
  color: #1c1e21; background: #fff }}
dt {{ font-weight: 600; margin-top: 1rem }}
dd {{ margin: 0; font-family: ui-monospace, monospace; overflow-wrap: anywhere }}
.note {{ padding: .6rem 1rem; border-left: 4px solid #b45309; background: #fef3c7; color: #1c1e21 }}
.fold {{ max-height: 12rem; overflow: auto }}
@media (prefers-color-scheme: dark) {{ body {{ color: #e4e6eb; background: #18191a }} }}
</style>
<h1>{name}</h1>
<p>This page comes from a container inside a virtual machine that can prove what it runs.</p>
{note}
<dl>
<dt>App id</dt><dd>{app_id}</dd>
<dt>Instance id</dt><dd>{instance_id}</dd>
<dt>Compose hash</dt><dd>{compose_hash}</dd>
<dt>Fingerprint of the app's key</dt><dd>{key_fingerprint}</dd>
<dt>Report data</dt><dd>{report_data}</dd>
<dt>Quote</dt><dd class="fold">{quote}</dd>
</dl>
<p>As JSON, with a nonce of yours in the quote: <code>/json?nonce=TEXT</code></p>
</html>
"""
_SIMULATED = '<p class="note">The quote comes from a <b>simulated</b> TEE: it proves nothing about the host.</p>'


def page(shown: dict[str, Any]) -> str:
    """The HTML page of an answer of evidence()."""
    fields = {key: html.escape(str(value)) for key, value in shown.items()}
    note = _SIMULATED if shown["simulated"] else ""
    return _PAGE.format(**{**fields, "name": fields["app_name"] or "casemate-hello", "note": note})


def answer(target: str) -> tuple[int, str, str]:
    """Status, content type and body for a request target; nothing of the file system is ever read."""
    parts = urlsplit(target)
    try:
        if parts.path == "/":
            return 200, "text/html; charset=utf-8", page(evidence(_nonce(parts.query)))
        if parts.path == "/json":
            return 200, "application/json", json.dumps(evidence(_nonce(parts.query)))
    except BadRequest as error:
        return 400, "application/json", json.dumps({"error": str(error)})
    except AgentFailed as error:
        return 502, "application/json", json.dumps({"error": str(error)})
    return 404, "application/json", json.dumps({"error": "not found"})


def _nonce(query: str) -> str:
    try:
        values = parse_qs(query, max_num_fields=8, errors="strict").get("nonce", [""])
    except ValueError:
        raise BadRequest("the query string is not valid") from None
    if len(values[-1]) > MAX_NONCE:
        raise BadRequest(f"nonce: at most {MAX_NONCE} characters")
    return values[-1]


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers GET and HEAD."""

    server_version = "casemate-hello"
    sys_version = ""
    protocol_version = "HTTP/1.1"
    timeout = CALLER_TIMEOUT_S

    def do_GET(self) -> None:
        """The answer with its body."""
        self._send(with_body=True)

    def do_HEAD(self) -> None:
        """The same headers."""
        self._send(with_body=False)

    def _send(self, *, with_body: bool) -> None:
        try:
            status, content_type, text = answer(self.path)
        except ValueError:
            # urlsplit refuses targets such as http://[.
            status, content_type, text = (
                400,
                "application/json",
                '{"error": "the path is not valid"}',
            )
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if with_body:
            self.wfile.write(body)


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(0)


def main() -> None:
    """Serves until it is stopped."""
    # PID 1 of a container is not ended by a signal that it does not handle.
    signal.signal(signal.SIGTERM, _end)
    http.server.ThreadingHTTPServer(
        ("", int(os.environ.get("PORT", "80"))), Handler
    ).serve_forever()


if __name__ == "__main__":
    main()
