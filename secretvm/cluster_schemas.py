"""The messages of the cluster calls (secretvm.md section 6)."""

from __future__ import annotations

import re
from typing import Any

from marshmallow import Schema, ValidationError, fields, missing, post_load, validate

from secretvm import schemas
from secretvm.cluster_shape import Shape
from secretvm.front import NODES_MOST, Strategy
from secretvm.schemas import Base64File, Dated, Flags, NewVm, Optional, Switch, Text, VmObject
from secretvm.wanted import Wanted

_SCHEMES = validate.OneOf(("http", "https"))
_PORT = validate.Range(1, 65535)
_PATH = validate.Regexp(
    re.compile(r"/[A-Za-z0-9._~/%?=&+-]{0,199}\Z", re.ASCII),
    error="must begin with / and have at most 200 letters, digits and . _ ~ / % ? = & + -",
)
# What Shape calls otherwise than a request does.
_NAMES = {
    "vmCount": "count",
    "stickySession": "sticky",
    "backendScheme": "backend_scheme",
    "backendPort": "backend_port",
    "healthCheckScheme": "health_scheme",
    "healthCheckPath": "health_path",
    "healthCheckPort": "health_port",
    "healthCheckInterval": "health_interval_s",
    "healthCheckTimeout": "health_timeout_s",
    "maxConnections": "max_connections",
    "custom_domain": "domain",
    "password_plaintext": "password",
}


class Number(fields.Integer):
    """A whole number of which none and an empty one are the same."""

    def deserialize(
        self, value: Any, attr: str | None = None, data: Any = None, **kwargs: Any
    ) -> Any:
        """As any number, and what is empty was not given."""
        return super().deserialize(missing if value in ("", None) else value, attr, data, **kwargs)


class Weights(fields.List[Any]):
    """Weights in node order: `[3,1]`, `3,1`, or the field several times."""

    def __init__(self) -> None:
        super().__init__(
            fields.Integer(validate=validate.Range(1, 10)),
            validate=validate.Length(max=NODES_MOST),
            metadata={"description": "1 to 10 each, as [3,1], as 3,1 or repeated"},
        )

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> list[Any]:
        words = value if isinstance(value, list) else [value]
        if len(words) == 1 and isinstance(words[0], str):
            words = words[0].strip().removeprefix("[").removesuffix("]").split(",")
        given = [word.strip() if isinstance(word, str) else word for word in words]
        found: list[Any] = super()._deserialize(
            [each for each in given if each != ""], attr, data, **kwargs
        )
        return found


class NoAppCert(Switch):
    """One certificate key for all nodes: not offered, so it may only be off."""

    def _validate(self, value: Any) -> None:
        if value:
            raise ValidationError("is not supported: every node has a certificate of its own")


class NewCluster(NewVm):
    """The fields of POST /api/cluster/create-background."""

    class Meta(NewVm.Meta):
        """marshmallow's own settings."""

        exclude = ("name",)

    clusterName = Text(required=True, validate=schemas.NAME)
    vmCount = Number(validate=validate.Range(1, NODES_MOST))
    strategy = Optional(validate=validate.OneOf([*Strategy]))
    stickySession = Switch()
    weights = Weights()
    backendScheme = Optional(validate=_SCHEMES)
    backendPort = Number(validate=_PORT)
    healthCheckScheme = Optional(validate=_SCHEMES)
    healthCheckPath = Optional(validate=_PATH)
    healthCheckPort = Number(validate=_PORT)
    healthCheckInterval = Number(validate=validate.Range(1, 300))
    healthCheckTimeout = Number(validate=validate.Range(1, 60))
    maxConnections = Number(validate=validate.Range(1, 10_000))
    password_plaintext = Optional(validate=validate.Length(max=128))
    enable_app_cert = NoAppCert()

    @post_load
    def _made(self, given: dict[str, Any], **kwargs: Any) -> tuple[Shape, Wanted]:
        given["name"] = given.pop("clusterName")
        named = {_NAMES.get(name, name): value for name, value in given.items()}
        known = {
            name: value
            for name, value in named.items()
            if name in Shape.__dataclass_fields__ and value not in ("", None)
        }
        if "strategy" in known:
            known["strategy"] = Strategy(known["strategy"])
        known["weights"] = tuple(known.get("weights", ()))
        return Shape(**known), schemas.wanted(given)


class NodeFlags(Flags):
    """What adding and updating share: what is left out is as the cluster was made."""

    dockerComposeBase64 = Base64File(required=True, validate=validate.Length(min=1))
    dockerfilesBase64 = Base64File()
    skip_attest = Switch()
    enable_app_cert = NoAppCert()


class AddNode(NodeFlags):
    """The body of POST /api/cluster/:id/vms/add-background."""

    vmName = Optional(validate=schemas.NAME)
    private = Switch()
    platform = Optional(validate=validate.OneOf(("tdx", "sev")))

    @post_load
    def _made(self, given: dict[str, Any], **kwargs: Any) -> Wanted:
        given["name"] = given.pop("vmName", "")
        return schemas.wanted(given)


class UpdateNodes(NodeFlags):
    """The body of POST /api/cluster/:id/update-vms-background."""

    @post_load
    def _made(self, given: dict[str, Any], **kwargs: Any) -> Wanted:
        return schemas.wanted(given)


class Compose(schemas.Request):
    """The body of PUT /api/cluster/:id/docker-compose."""

    dockerCompose = Text(required=True, validate=validate.Length(min=1))


# Answers -------------------------------------------------------------------------------------


class LoadBalancer(Schema):
    """The front of a cluster."""

    engine = fields.String(required=True)
    listen = fields.String(required=True)
    url = fields.String(required=True)
    healthy = fields.Integer(required=True)
    total = fields.Integer(required=True)


class ListedCluster(Dated):
    """A cluster as the list has it; further keys say how its front is set up."""

    clusterName = fields.String(required=True)
    name = fields.String(required=True)
    status = fields.String(required=True)
    strategy = fields.String(required=True)
    stickySession = fields.Boolean(required=True)
    weights = fields.List(fields.Integer(), required=True)
    hostname = fields.String(required=True)
    url = fields.String(required=True)
    vmTypeId = fields.String(required=True)
    vmCount = fields.Integer(required=True)
    maxVms = fields.Integer(required=True)
    backendScheme = fields.String(required=True)
    backendPort = fields.Integer(required=True)
    healthCheck = fields.Dict(required=True)
    maxConnections = fields.Integer(required=True)
    sslExpiry = fields.String(required=True, allow_none=True)
    docker_file = fields.String(required=True)
    upgradeability = fields.Boolean(required=True)
    loadBalancer = fields.Nested(LoadBalancer, required=True, allow_none=True)
    loadBalancerError = fields.String(required=True, allow_none=True)


class Member(VmObject):
    """A VM of a cluster."""

    weight = fields.Integer(required=True)
    lbHealth = fields.String(required=True)


class ClusterObject(ListedCluster):
    """A cluster with its VMs."""

    vms = fields.List(fields.Nested(Member), required=True)


class Backends(Schema):
    """The servers of a cluster's front."""

    backends = fields.List(fields.Dict(), required=True)


class Traffic(Schema):
    """What went through a cluster's front since it was made."""

    clusterId = fields.String(required=True)
    total_requests = fields.Integer(required=True)
    avg_latency_ms = fields.Float(required=True, allow_none=True)
    p95_latency_ms = fields.Float(required=True, allow_none=True)
    bandwidth_in_bytes = fields.Integer(required=True)
    bandwidth_out_bytes = fields.Integer(required=True)
    status_codes = fields.Dict(keys=fields.String(), values=fields.Integer(), required=True)
    since = fields.String(required=True)


class Stats(Backends):
    """What the balancer counts itself."""

    clusterId = fields.String(required=True)
    uptime_s = fields.Integer(required=True)
    current_sessions = fields.Integer(required=True)
    max_sessions = fields.Integer(required=True)
    request_rate = fields.Integer(required=True)


class QueuedHere(schemas.Queued):
    """A job on a cluster that was begun."""

    success = fields.Boolean(required=True)
    message = fields.String(required=True)
    vmName = fields.String()
