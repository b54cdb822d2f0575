"""Port 8090: dashboard, metrics, container logs and the Worker service.

Anyone on the network can reach it, so it offers nothing that hands out or uses a key in the caller's name.
Source: guest-agent.md sections 7 and 8.
"""

from __future__ import annotations

import base64
import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from flask import Flask, Response, render_template, request

from core.errors import NotFound, Unavailable, Upstream
from core.logs import Decoder
from core.prpc import Empty, Service
from guest import containers, routes, schemas, sysinfo
from guest.containers import Frame, LogQuery
from guest.routes import verb
from guest.service import Agent

# Streams hold a thread each; the rest of the threads stay for everybody else.
MAX_STREAMS = 8
_TRUE = ("", "true", "1", "on", "yes")


def create_app(agent: Agent) -> Flask:
    """The application of the public listener."""
    service = Service("Worker")
    verb(service, "Info", Empty, schemas.InfoResponse, agent.public_info)
    verb(service, "Version", Empty, schemas.VersionResponse, agent.version)
    verb(
        service,
        "GetAttestationForAppKey",
        schemas.AppKeyRequest,
        schemas.GetQuoteResponse,
        agent.app_key_attestation,
    )
    app = routes.new_app("public")
    routes.add_service(app, service, "/prpc/<method>")
    streams = threading.BoundedSemaphore(MAX_STREAMS)
    release = agent.release()

    @app.after_request
    def name_version(response: Response) -> Response:
        response.headers["X-App-Version"] = release
        return response

    @app.get("/")
    def dashboard() -> str:
        return render_template("dashboard.html", **_dashboard(agent))

    @app.get("/metrics")
    def metrics() -> Response:
        if not agent.vm().app.compose.public_sysinfo:
            raise NotFound("public_sysinfo is not enabled for this app")
        text = sysinfo.metrics(agent.sys_info())
        return Response(text, content_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/logs/<container>")
    def logs(container: str) -> Response:
        if not agent.vm().app.compose.public_logs:
            raise NotFound("public_logs is not enabled for this app")
        if not streams.acquire(blocking=False):
            raise Unavailable(f"{MAX_STREAMS} logs are being read already")
        try:
            response = _log_response(agent, container)
        except BaseException:
            streams.release()
            raise
        response.call_on_close(streams.release)
        return response

    return app


def _flag(name: str) -> bool:
    return request.args.get(name, "false").lower() in _TRUE


def _log_query() -> LogQuery:
    return LogQuery(
        since=containers.moment("since", request.args.get("since", "0")),
        until=containers.moment("until", request.args.get("until", "0")),
        tail=containers.tail(request.args.get("tail", "1000")),
        follow=_flag("follow"),
        timestamps=_flag("timestamps"),
    )


def _log_response(agent: Agent, container: str) -> Response:
    frames = agent.engine.logs(container, _log_query(), request.environ.get("gunicorn.socket"))
    lines = _shown(frames, text=_flag("text"), bare=_flag("bare"), ansi=_flag("ansi"))
    kind = "text/plain; charset=utf-8" if _flag("bare") else "application/x-ndjson"
    return Response(lines, content_type=kind, headers={"X-Accel-Buffering": "no"})


def _shown(frames: Iterator[Frame], *, text: bool, bare: bool, ansi: bool) -> Iterator[bytes]:
    messages = _texts(frames, keep_ansi=ansi or not bare) if text else _coded(frames)
    for channel, message in messages:
        if bare:
            yield message.encode()
        else:
            yield json.dumps({"channel": channel, "message": message}).encode() + b"\n"


def _coded(frames: Iterator[Frame]) -> Iterator[tuple[str, str]]:
    for frame in frames:
        yield frame.channel, base64.b64encode(frame.data).decode()


def _texts(frames: Iterator[Frame], *, keep_ansi: bool) -> Iterator[tuple[str, str]]:
    # A character or a sequence may begin in one frame and end in the next of the same channel.
    decoders: dict[str, Decoder] = defaultdict(lambda: Decoder(keep_ansi))
    for frame in frames:
        if message := decoders[frame.channel].feed(frame.data):
            yield frame.channel, message
    for channel, decoder in decoders.items():
        if message := decoder.feed(b"", final=True):
            yield channel, message


def _dashboard(agent: Agent) -> dict[str, Any]:
    vm = agent.vm()
    compose = vm.app.compose
    info = agent.public_info()
    try:
        listed = agent.engine.list()
    except Upstream:
        listed = []
    return {
        "info": info,
        "public_logs": compose.public_logs,
        "system": agent.sys_info() if compose.public_sysinfo else None,
        "containers": listed,
    }
