"""The VMM's calls as an OpenAPI 3.1 document, from the messages that also read and write them.

marshmallow's fields become schemas by apispec; its title, texts and examples are the methods' own.
"""

from __future__ import annotations

from typing import Any

import marshmallow as ma
from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from apispec.ext.marshmallow.openapi import OpenAPIConverter

from core.prpc import Empty, Flag, HexBytes, Int64, Message, Method, Repeated, Service, Text, Whole
from vmm.rpc import Refusal
from vmm.version import VERSION

_VM = "0f8fad5b-d9cb-469f-a165-70867728950e"
_COMPOSE = (
    '{"manifest_version": 1, "runner": "docker-compose", "docker_compose_file": "services: {}"}'
)
_APP = "3c11e58a0f4b8ab0f7d6e6e4aab0c3ad2f6b9d07"

# What one would send.  The rest of the calls take an id or nothing.
EXAMPLES: dict[str, dict[str, Any]] = {
    "CreateVm": {
        "name": "web",
        "image": "casemate-0.5.4",
        "compose_file": _COMPOSE,
        "vcpu": 1,
        "memory": 1024,
        "disk_size": 10,
        "ports": [{"protocol": "tcp", "host_port": 8000, "vm_port": 80}],
    },
    "UpdateVm": {"id": _VM, "compose_file": _COMPOSE},
    "UpgradeApp": {"id": _VM, "user_config": "colour = blue"},
    "ResizeVm": {"id": _VM, "vcpu": 2, "memory": 2048},
    "Status": {"keyword": "web", "brief": True, "page": 0, "page_size": 20},
    "GetComposeHash": {"name": "web", "compose_file": _COMPOSE},
    "GetAppEnvEncryptPubKey": {"app_id": _APP},
    "ReportDhcpLease": {"mac": "02:ab:cd:ef:01:23", "ip": "192.168.122.100"},
    "DeleteImage": {"id": "casemate-0.5.4"},
}
ANSWERS: dict[str, dict[str, Any]] = {
    "CreateVm": {"id": _VM},
    "UpdateVm": {"id": _APP},
    "UpgradeApp": {"id": ""},
    "GetInfo": {"found": False, "info": None},
    "Status": {"vms": [], "port_mapping_enabled": True, "total": 0},
    "ReloadVms": {"loaded": 1, "updated": 4, "removed": 0},
    "Version": {"version": VERSION, "rev": "git:0123456789ab"},
}

_KINDS = {Text: "string", HexBytes: "string", Whole: "integer", Flag: "boolean", Repeated: "array"}

REFUSALS = {
    400: "a body or field breaks a rule, or the VM is in the wrong state",
    401: "no valid credential",
    403: "a valid credential of somebody who may not do this",
    404: "there is no such VM or method",
    413: "the body has more than 10 MiB",
    500: "a fault of the service; its log has it under the reference given",
    502: "the guest or the KMS cannot be reached, or refuses",
    503: "no room, or QEMU did not start",
    504: "the guest or the KMS did not answer in time",
}

_ABOUT = """Every call takes a `POST` with a JSON object, or a `GET` with the fields in the query. Unknown fields are ignored,
`null` means absent, bytes are hex. With `Content-Type: application/octet-stream` body and answer are protobuf."""


def document(*services: tuple[str, Service]) -> dict[str, Any]:
    """The OpenAPI document of some services, each with the path its methods stand below."""
    plugin = MarshmallowPlugin(schema_name_resolver=lambda schema: _class_of(schema).__name__)
    spec = APISpec(
        "Casemate VM manager", VERSION, "3.1.0", plugins=[plugin], info={"description": _ABOUT}
    )
    assert plugin.converter is not None
    _teach(plugin.converter)
    _describe_security(spec)
    spec.components.response("Refusal", _body(Refusal, "a refusal", _refusal()))
    for prefix, service in services:
        for method in service.methods.values():
            spec.path(f"{prefix}/{method.name}", operations={"post": _operation(prefix, method)})
    spec.path("/logs", operations={"get": _logs()})
    return spec.to_dict()


def _teach(converter: Any) -> None:
    for field, kind in _KINDS.items():
        converter.field_mapping[field] = (kind, None)
    converter.add_attribute_function(_limits)


def _limits(_: OpenAPIConverter, field: ma.fields.Field[Any], **kwargs: Any) -> dict[str, Any]:
    match field:
        case Whole():
            kind = "int64" if isinstance(field, Int64) else None
            limits: dict[str, Any] = {"minimum": field.least, "maximum": field.most}
            return limits | ({"format": kind} if kind else {})
        case HexBytes():
            return {"pattern": "^(0[xX])?([0-9A-Fa-f]{2})*$", "default": ""}
        case Repeated():
            return {"maxItems": field.most, "default": []}
    return {}


def _operation(prefix: str, method: Method) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": method.name if prefix == "/prpc" else f"guest{method.name}",
        "tags": ["VMs" if prefix == "/prpc" else "Inside a VM"],
        "summary": (method.handler.__doc__ or method.name).strip().splitlines()[0],
        "responses": {
            "200": _answer(prefix, method),
            **{str(status): _refused(text) for status, text in REFUSALS.items()},
        },
    }
    example = EXAMPLES.get(method.name) if prefix == "/prpc" else None
    if example is None and method.request is not Empty:
        example = {"id": _VM}
    operation["requestBody"] = _body(method.request, "", example or {})
    return operation


def _answer(prefix: str, method: Method) -> dict[str, Any]:
    if method.response is Empty:
        return {"description": "done; the body is empty"}
    text = (method.response.__doc__ or "").strip().splitlines()[0]
    return _body(method.response, text, ANSWERS.get(method.name) if prefix == "/prpc" else None)


def _body(message: type[Message], text: str, example: dict[str, Any] | None) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": message}
    if example is not None:
        content["example"] = example
    body: dict[str, Any] = {"content": {"application/json": content}}
    return body | ({"description": text} if text else {})


def _refused(text: str) -> dict[str, Any]:
    return _body(Refusal, text, _refusal())


def _refusal() -> dict[str, str]:
    return dict.fromkeys(("message", "error"), f"VM {_VM} not found")


def _logs() -> dict[str, Any]:
    def query(name: str, kind: dict[str, Any], text: str, *, required: bool = False) -> Any:
        return {
            "name": name,
            "in": "query",
            "schema": kind,
            "description": text,
            "required": required,
        }

    return {
        "operationId": "logs",
        "tags": ["VMs"],
        "summary": "The last lines of a VM's log, and with `follow` what comes.",
        "parameters": [
            query("id", {"type": "string"}, "the VM", required=True),
            query("ch", {"enum": ["serial", "stdout", "stderr"]}, "which log; serial when absent"),
            query(
                "lines",
                {"type": "integer", "minimum": 0, "maximum": 999_999_999},
                "from the end; 10000 when absent",
            ),
            query("follow", {"type": "boolean"}, "stay and send what is written"),
            query("ansi", {"type": "boolean"}, "keep escape sequences"),
            query(
                "archived",
                {"type": "integer", "minimum": 0, "maximum": 99},
                "an older part of the log: 1 is the newest of them",
            ),
        ],
        "responses": {
            "200": {
                "description": "text, as it was written",
                "content": {"text/plain": {"schema": {"type": "string"}}},
            },
            **{
                str(status): _refused(REFUSALS[status]) for status in (400, 401, 403, 404, 500, 503)
            },
        },
    }


def _describe_security(spec: APISpec) -> None:
    schemes = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "basic": {"type": "http", "scheme": "basic"},
        "admin": {"type": "apiKey", "in": "header", "name": "X-Admin-Token"},
    }
    for name, scheme in schemes.items():
        spec.components.security_scheme(name, scheme)
    spec.options["security"] = [{name: []} for name in schemes]


def _class_of(schema: Any) -> type[Any]:
    return schema if isinstance(schema, type) else type(schema)
