"""The messages of the SecretVM interface about accounts, VMs, jobs and prices (secretvm.md sections 1 to 7)."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

from marshmallow import EXCLUDE, Schema, ValidationError, fields, post_load, validate

from secretvm import registration
from secretvm.secrets import Given
from secretvm.wanted import Wanted

ON, OFF = ("1", "true", "yes"), ("0", "false", "no")
KMS_PROVIDERS = ("secret-network", "google", "dstack", "gramine")
TEXT_LIMIT = 2000
BATCH_MOST = 1000

NAME = validate.Regexp(
    re.compile(r"[A-Za-z0-9 _.-]{1,60}\Z", re.ASCII),
    error="must be 1 to 60 letters, digits, spaces and _ . -",
)
_DOMAIN = validate.Regexp(
    re.compile(
        r"(?=.{4,253}\Z)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z0-9-]{2,63}\Z", re.IGNORECASE
    ),
    error="must be a host name",
)


class Text(fields.String):
    """A text that a log, a file and a database can hold."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        text: str = super()._deserialize(value, attr, data, **kwargs)
        if "\0" in text:
            raise ValidationError("must not contain a NUL character")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValidationError("must be valid Unicode") from None
        return text


class Optional(Text):
    """A text of which none and an empty one are the same; rules are for one that is there."""

    def _validate(self, value: Any) -> None:
        if value:
            super()._validate(value)

    def deserialize(
        self, value: Any, attr: str | None = None, data: Any = None, **kwargs: Any
    ) -> Any:
        """As any text, and null is none."""
        return super().deserialize("" if value is None else value, attr, data, **kwargs)


class Switch(fields.Field[bool | None]):
    """On or off in the words that clients use; empty is not given."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> bool | None:
        if isinstance(value, bool):
            return value
        word = str(value).lower() if isinstance(value, (str, int)) else "?"
        if word not in (*ON, *OFF, ""):
            raise ValidationError("must be 1, true or yes, or 0, false or no")
        return word in ON if word else None


class Upload(fields.Field[bytes]):
    """The bytes of an uploaded file, whatever its content type."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(metadata={"type": "string", "format": "binary"}, **kwargs)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> bytes:
        if not hasattr(value, "stream"):
            raise ValidationError("must be a file")
        content: bytes = value.stream.read()
        return content


class Base64File(Optional):
    """A file inside a JSON message."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:
        text = super()._deserialize(value, attr, data, **kwargs)
        try:
            return base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise ValidationError("must be base64") from None


class Request(Schema):
    """What any request of this interface is: fields unknown here are ignored."""

    class Meta:
        """marshmallow's own settings."""

        unknown = EXCLUDE


class Secrets(Request):
    """The fields that carry secrets and registry credentials, in one of three schemes."""

    secrets_plaintext = Optional()
    secrets_encrypted = Optional()
    secrets_key = Optional()
    docker_credentials_encrypted = Optional()
    docker_credentials_key = Optional()
    secrets_cipher = Optional()
    kms_docker_username = Optional()
    kms_docker_cipher = Optional()
    kms_docker_repository = Optional()


SECRETS = tuple(Given.__dataclass_fields__)
# What a request calls otherwise than Wanted does.
_NAMES = {
    "vmTypeId": "vm_type",
    "fs_persistence": "persistent",
    "upgradeability": "upgradeable",
    "enable_ita_jwt": "ita",
    "enable_poc_jwt": "poc",
    "eip8004_registration": "registration",
    "dockercompose": "compose",
    "dockerComposeBase64": "compose",
    "dockerfiles": "docker_files",
    "dockerfilesBase64": "docker_files",
}


def wanted(given: dict[str, Any]) -> Wanted:
    """What a checked request asks of a VM; fields that Wanted does not know are left out."""
    secrets = Given(**{name: given[name] for name in SECRETS if given.get(name)})
    named = {_NAMES.get(name, name): value for name, value in given.items()}
    known = {name: value for name, value in named.items() if name in Wanted.__dataclass_fields__}
    if text := known.pop("registration", ""):
        known["registration"] = registration.read(text)
    return Wanted(**known, secrets=secrets)


class Flags(Secrets):
    """The flags that create, launch and update share."""

    fs_persistence = Switch()
    description = Optional(validate=validate.Length(max=TEXT_LIMIT))
    dev_token = Optional(validate=validate.Length(max=TEXT_LIMIT))
    kms_provider = Optional(validate=validate.OneOf(KMS_PROVIDERS))
    enable_ita_jwt = Switch()
    enable_poc_jwt = Switch()


class NewVm(Flags):
    """What POST /api/vm/create takes; cluster creation takes it too, but for the name."""

    name: Text = Optional(validate=NAME)
    vmTypeId = Text(required=True)
    dockercompose = Upload(required=True)
    dockerfiles = Upload()
    inviteCode = Optional()
    environment = Optional(validate=validate.OneOf(("prod", "dev")))
    private = Switch()
    upgradeability = Switch()
    skip_launch = Switch()
    skip_attest = Switch()
    platform = Optional(validate=validate.OneOf(("tdx", "sev")))
    custom_domain = Optional(validate=_DOMAIN)
    cloudflareApiKey = Optional(
        validate=validate.Equal(
            "", error="is not supported: make the DNS record of custom_domain yourself, then launch"
        )
    )
    cloud = Optional(validate=validate.Equal("", error="is not available on a single host"))
    eip8004_registration = Optional()


class CreateVm(NewVm):
    """The fields of POST /api/vm/create."""

    name = Text(required=True, validate=NAME)

    @post_load
    def _made(self, given: dict[str, Any], **kwargs: Any) -> Wanted:
        return wanted(given)


class LaunchVm(Flags):
    """The fields of POST /api/vm/:id/launch."""

    dockercompose = Upload()
    dockerfiles = Upload()

    @post_load
    def _made(self, given: dict[str, Any], **kwargs: Any) -> Wanted:
        return wanted(given)


class UpdateVm(Flags):
    """The body of POST /api/vm/:id/update-background."""

    name = Optional(validate=NAME)
    dockerComposeBase64 = Base64File()
    dockerfilesBase64 = Base64File()

    @post_load
    def _made(self, given: dict[str, Any], **kwargs: Any) -> Wanted:
        return wanted(given)


class Ids(Request):
    """The body of the batch calls."""

    ids = fields.List(Text(), required=True, validate=validate.Length(min=1, max=BATCH_MOST))


class LogQuery(Request):
    """The query of docker_logs."""

    service = Optional(validate=validate.Length(max=255))
    lines = fields.Integer(load_default=1000, validate=validate.Range(1, 10_000))


class NewKey(Request):
    """The body of POST /api/keys."""

    user = Text(required=True)
    name = Optional(validate=validate.Length(max=200))
    project = Optional()


class Price(Request):
    """The body of PUT /api/coin-price."""

    price_usd = fields.Float(required=True)


class NewBalance(Request):
    """The body of PUT /api/balance."""

    project = Text(required=True)
    balance = fields.Integer(required=True, strict=False, validate=validate.Range(-(2**53), 2**53))


class Hours(Request):
    """The query of the price's history; what is wrong with it is said in the answer."""

    hours = Optional(load_default="24")


# Answers -------------------------------------------------------------------------------------


class Refusal(Schema):
    """Every error."""

    statusCode = fields.Integer(required=True)
    message = fields.String(required=True)


class Dated(Schema):
    """Whatever has an id and was made at some time."""

    id = fields.String(required=True)
    createdAt = fields.String(required=True)
    updatedAt = fields.String(required=True)


class VmType(Dated):
    """A size."""

    type = fields.String(required=True)
    cpu = fields.Integer(required=True)
    ram = fields.Integer(required=True, metadata={"description": "GB"})
    disk = fields.Integer(required=True, metadata={"description": "GB"})
    traffic = fields.String(required=True)
    pricePerHour = fields.Float(required=True)
    platforms = fields.List(fields.String())
    available = fields.Boolean()


class VmObject(Dated):
    """A VM; further keys are flat copies and cluster membership."""

    vmId = fields.String(required=True)
    name = fields.String(required=True)
    nameFromUser = fields.String(required=True)
    vm_uid = fields.String(required=True)
    vmDomain = fields.String(required=True)
    vmTypeId = fields.String(required=True)
    vmType = fields.Nested(VmType, required=True)
    memory = fields.Float(required=True, metadata={"description": "GB"})
    vcpus = fields.Integer(required=True)
    disk_size = fields.Integer(required=True, metadata={"description": "GB"})
    status = fields.String(required=True)
    state = fields.String(required=True)
    error_message = fields.String(required=True, allow_none=True)
    network_ports = fields.List(fields.Dict(), required=True)
    docker_file = fields.String(required=True)
    environment = fields.String(required=True)
    private = fields.Boolean(required=True)
    upgradeability = fields.Boolean(required=True)
    secret_fs_persistent = fields.Boolean(required=True)
    description = fields.String(required=True)
    artifacts_version = fields.String(required=True)


class Template(Dated):
    """A compose text to begin with."""

    name = fields.String(required=True)
    description = fields.String(required=True)
    instructions = fields.String(required=True)
    tags = fields.List(fields.String(), required=True)
    submittedBy = fields.String(required=True)
    link = fields.String(required=True)
    docker = fields.String(required=True)
    defaultVmSize = fields.String(required=True)


class Templates(Schema):
    """All templates."""

    count = fields.Integer(required=True)
    status = fields.String(required=True)
    templates = fields.List(fields.Nested(Template), required=True)
    timestamp = fields.String(required=True)


class Artifacts(Schema):
    """The newest image version among the caller's VMs."""

    artifacts_version = fields.String(required=True)
    status = fields.String(required=True)


class Done(Schema):
    """What was done to a VM: `vm` holds id, vm_status, vm_name."""

    status = fields.String(required=True)
    vm = fields.Dict(required=True)


class Stopped(Schema):
    """What POST /api/vm/:id/stop answers."""

    status = fields.String(required=True)
    message = fields.String(required=True)
    details = fields.Dict(required=True)


class Queued(Schema):
    """A job that was begun."""

    jobId = fields.String(required=True)
    status = fields.String(required=True)


class Batch(Schema):
    """The jobs of a batch."""

    success = fields.Boolean(required=True)
    jobs = fields.List(fields.Dict(), required=True)


class JobObject(Dated):
    """A background job."""

    type = fields.String(required=True)
    status = fields.String(required=True)
    progress = fields.Integer(required=True)
    error = fields.String(required=True, allow_none=True)
    result = fields.Dict(required=True, allow_none=True)


class Registration(Schema):
    """EIP-8004 metadata of a VM."""

    metadata = fields.Dict(required=True, allow_none=True)
    agentUri = fields.String(required=True)
    error = fields.String()


class EncryptionKeys(Schema):
    """What secrets are encrypted to."""

    rsa_public_key = fields.String(required=True)
    kms_contract_public_key = fields.String(required=True)


class Key(Schema):
    """A key of a user; `key` itself is there in the answer that makes it and never again."""

    id = fields.String(required=True)
    key = fields.String()
    name = fields.String()
    user = fields.String(required=True)
    project = fields.String(required=True, allow_none=True)
    createdAt = fields.String()
    lastUsedAt = fields.String(allow_none=True)


class Anything(Schema):
    """An object that the description of the call explains."""

    class Meta:
        """marshmallow's own settings."""

        unknown = EXCLUDE
