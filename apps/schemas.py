"""What clients send to the apps interface (apps.md sections 3 and 5); unknown fields are ignored, as they grow."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import marshmallow as ma
from marshmallow import fields
from marshmallow.validate import And, Length, Range, Regexp

from vmm.configuration import DISK_MOST_GB

# SQLite counts to 2^63, and nobody has so many pages.
MOST = 2**31
HEX = Regexp(r"^(0x)?[0-9a-fA-F]*\Z", error="must be hex digits")
HASH = Regexp(r"^(0x)?[0-9a-fA-F]{64}\Z", error="must be 64 hex digits")
NAME = And(
    Length(5, 63, error="must have 5 to 63 characters"),
    Regexp(
        r"^[A-Za-z][A-Za-z0-9]*(-[A-Za-z0-9]+)*\Z",
        error="must begin with a letter and have only letters, digits and single hyphens between them",
    ),
)


class Sent(ma.Schema):
    """Something that a client sends."""

    makes: type | None = None

    class Meta:
        """Clients are newer than this service, or older."""

        unknown = ma.EXCLUDE

    @ma.post_load
    def _make(self, data: dict[str, Any], **_: Any) -> Any:
        return self.makes(**data) if self.makes else data


class Text(fields.String):
    """A text that can be written as UTF-8."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> str:
        text = str(super()._deserialize(value, attr, data, **kwargs))
        if any("\ud800" <= char <= "\udfff" for char in text):
            raise ma.ValidationError("must be valid Unicode")
        return text


class Whole(fields.Integer):
    """A whole number, which PyPI phala-cloud writes as 2.0."""

    def _validated(self, value: Any) -> int:
        is_whole = isinstance(value, float) and value.is_integer()
        return super()._validated(int(value) if is_whole else value)


def _text(**rules: Any) -> Text:
    return Text(allow_none=True, load_default=None, **rules)


def _number(least: int, most: int = MOST) -> Whole:
    return Whole(strict=True, allow_none=True, load_default=None, validate=Range(least, most))


def _flag() -> fields.Boolean:
    return fields.Boolean(allow_none=True, load_default=None)


def _texts(most: int = 1000) -> fields.List[str]:
    return fields.List(Text(), allow_none=True, load_default=None, validate=Length(max=most))


# Queries -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AppsWanted:
    """Which apps to list; a VM of each fits all that is given."""

    page: int = 1
    page_size: int = 20
    search: str = ""
    status: tuple[str, ...] = ()
    listed: bool | None = None
    base_image: str = ""
    instance_type: str = ""
    kms_slug: str = ""
    kms_type: str = ""
    node: str = ""
    region: str = ""


class Page(Sent):
    """A page of a list."""

    page = fields.Integer(load_default=1, validate=Range(1, MOST))
    page_size = fields.Integer(load_default=20, validate=Range(1, 100))


class AppsQuery(Page):
    """The query of the list of apps."""

    makes = AppsWanted
    search = Text(load_default="", validate=Length(max=200))
    status = fields.List(Text(), load_default=())
    listed = fields.Boolean(load_default=None)
    base_image = Text(load_default="")
    instance_type = Text(load_default="")
    kms_slug = Text(load_default="")
    kms_type = Text(load_default="")
    node = Text(load_default="")
    region = Text(load_default="")


class RevisionsQuery(Page):
    """The query of the list of revisions."""

    page_size = fields.Integer(load_default=50, validate=Range(1, 1000))


class RevisionQuery(Sent):
    """How to show one revision."""

    raw_compose_file = fields.Boolean(load_default=False)


class CvmsQuery(Page):
    """The query of the list of CVMs; the names of the filters changed between versions."""

    node_id = fields.Integer(load_default=None)
    teepod_id = fields.Integer(load_default=None)
    user_id = Text(load_default=None)
    family = Text(load_default=None)
    instance_types = fields.List(Text(), load_default=())


class KmsQuery(Page):
    """The query of the list of KMS entries."""

    is_onchain = fields.Boolean(load_default=None)


class ImagesQuery(Page):
    """The query of the list of images."""

    is_dev = fields.Boolean(load_default=None)


class NextIdsQuery(Sent):
    """How many app ids to foretell."""

    counts = fields.Integer(load_default=1, validate=Range(1, 20))


class WorkspacesQuery(Sent):
    """A page of the list of workspaces, which is never long."""

    cursor = Text(load_default=None)
    limit = fields.Integer(load_default=None, validate=Range(1, 1000))


class StateQuery(Sent):
    """How a stream of states is watched; who asks once has no use for it."""

    target = Text(load_default="running")
    interval = fields.Integer(load_default=5, validate=Range(5, 30))
    timeout = fields.Integer(load_default=300, validate=Range(10, 600))


# Allowance ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Allowance:
    """What to ask a contract about."""

    compose_hash: str | None = None
    node_id: int | None = None
    device_id: str | None = None
    chain_id: int | None = None


class AllowanceOfApp(Sent):
    """A check before anything is deployed."""

    makes = Allowance
    compose_hash = Text(required=True, validate=HASH)
    node_id = _number(0)
    device_id = _text(validate=HASH)
    chain_id = _number(1, 2**63 - 1)


class AllowanceOfCvm(Sent):
    """A check of a CVM; what is left out is the CVM's own."""

    makes = Allowance
    compose_hash = _text(validate=HASH)
    node_id = _number(0)
    device_id = _text(validate=HASH)


# Deployment --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ComposeFile:
    """The parts of an app-compose document that a client chooses."""

    docker_compose_file: str | None = None
    allowed_envs: list[str] | None = None
    pre_launch_script: str | None = None
    name: str | None = None
    public_logs: bool | None = None
    public_sysinfo: bool | None = None
    public_tcbinfo: bool | None = None
    gateway_enabled: bool | None = None
    tproxy_enabled: bool | None = None
    kms_enabled: bool | None = None
    secure_time: bool | None = None
    storage_fs: str | None = None


class ComposeFileGiven(Sent):
    """The app of a deployment."""

    makes = ComposeFile
    docker_compose_file = _text()
    allowed_envs = _texts()
    pre_launch_script = _text()
    name = _text(validate=Length(max=64))
    public_logs = _flag()
    public_sysinfo = _flag()
    public_tcbinfo = _flag()
    gateway_enabled = _flag()
    tproxy_enabled = _flag()
    kms_enabled = _flag()
    secure_time = _flag()
    storage_fs = _text(validate=ma.validate.OneOf(("ext4", "zfs")))


@dataclass(frozen=True)
class Deployment:
    """A VM that a client wants."""

    name: str = ""
    compose_file: ComposeFile = field(default_factory=ComposeFile)
    instance_type: str | None = None
    vcpu: int | None = None
    memory: int | None = None
    disk_size: int | None = None
    image: str | None = None
    teepod_id: int | None = None
    node_id: int | None = None
    region: str | None = None
    listed: bool | None = None
    kms: str | None = None
    kms_id: str | None = None
    kms_contract: str | None = None
    env_keys: list[str] | None = None
    nonce: int | None = None
    app_id: str | None = None
    prefer_dev: bool | None = None


class ProvisionRequest(Sent):
    """The first step of a deployment."""

    makes = Deployment
    name = Text(required=True, validate=NAME)
    compose_file = fields.Nested(ComposeFileGiven, load_default=ComposeFile)
    instance_type = _text()
    vcpu = _number(1)
    memory = _number(1)
    disk_size = _number(1, DISK_MOST_GB)
    image = _text()
    teepod_id = _number(0)
    node_id = _number(0)
    region = _text()
    listed = _flag()
    kms = _text()
    kms_id = _text()
    kms_contract = _text()
    env_keys = _texts()
    nonce = _number(0, 2**53)
    app_id = _text()
    prefer_dev = _flag()


@dataclass(frozen=True)
class Commitment:
    """The promised deployment that a client wants made now."""

    app_id: str
    compose_hash: str
    encrypted_env: str | None = None
    env_keys: list[str] | None = None
    kms_id: str | None = None
    contract_address: str | None = None
    deployer_address: str | None = None


class CommitRequest(Sent):
    """The second step of a deployment."""

    makes = Commitment
    app_id = Text(required=True)
    compose_hash = Text(required=True)
    encrypted_env = _text(validate=HEX)
    env_keys = _texts()
    kms_id = _text()
    contract_address = _text()
    deployer_address = _text(validate=Regexp(r"^0x[0-9a-fA-F]{40}\Z", error="must be an address"))


# Changes -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CvmChange:
    """What to change of a VM; None keeps what there is."""

    docker_compose_file: str | None = None
    pre_launch_script: str | None = None
    allowed_envs: list[str] | None = None
    public_logs: bool | None = None
    public_sysinfo: bool | None = None
    public_tcbinfo: bool | None = None
    encrypted_env: str | None = None
    user_config: str | None = None
    vcpu: int | None = None
    memory: int | None = None
    disk_size: int | None = None
    image: str | None = None


class CvmPatch(Sent):
    """Any of what can change of a CVM."""

    makes = CvmChange
    docker_compose_file = _text()
    pre_launch_script = _text()
    allowed_envs = _texts()
    public_logs = _flag()
    public_sysinfo = _flag()
    public_tcbinfo = _flag()
    encrypted_env = _text(validate=HEX)
    user_config = _text()
    vcpu = _number(1)
    memory = _number(1)
    disk_size = _number(1, DISK_MOST_GB)
    image = _text()


class Proof(Sent):
    """The headers of a change that waited for its hash."""

    prepare_only = Text(data_key="X-Prepare-Only", load_default="")
    compose_hash = Text(data_key="X-Compose-Hash", load_default="")
    transaction_hash = Text(data_key="X-Transaction-Hash", load_default="")


class CommitUpdate(Sent):
    """The token of a change that waited for its hash."""

    token = Text(required=True)
    compose_hash = Text(load_default="", allow_none=True)
    transaction_hash = Text(load_default="", allow_none=True)


class Restart(Sent):
    """How to restart."""

    force = fields.Boolean(load_default=False)


class StatusBatch(Sent):
    """The CVMs whose status is asked."""

    vm_uuids = fields.List(Text(), required=True, validate=Length(max=1000))


class InstanceIds(Sent):
    """The CVMs whose instance ids are looked at: all without `cvm_ids`."""

    cvm_ids = fields.List(Text(), load_default=None, allow_none=True, validate=Length(max=500))
    running_only = fields.Boolean(load_default=False)
    missing_only = fields.Boolean(load_default=False)
    limit = fields.Integer(strict=True, load_default=500, validate=Range(1, 500))


class ComposeChange(Sent):
    """Another app-compose document for a VM."""

    makes = CvmChange
    docker_compose_file = _text()
    pre_launch_script = _text()
    allowed_envs = _texts()
    public_logs = _flag()
    public_sysinfo = _flag()
    public_tcbinfo = _flag()


class ComposeCommit(Sent):
    """The document that was kept under a hash."""

    compose_hash = Text(required=True)
    encrypted_env = _text(validate=HEX)
    env_keys = _texts()
    update_env_vars = _flag()


class EnvsPatch(Sent):
    """New sealed variables."""

    encrypted_env = Text(required=True, validate=HEX)
    env_keys = _texts()
    compose_hash = _text()
    transaction_hash = _text()


class VisibilityPatch(Sent):
    """Who may see what of a CVM."""

    public_sysinfo = fields.Boolean(required=True)
    public_logs = fields.Boolean(required=True)
    public_tcbinfo = _flag()


class ResourcesPatch(Sent):
    """Another size."""

    vcpu = _number(1)
    memory = _number(1)
    disk_size = _number(1, DISK_MOST_GB)
    instance_type = _text()
    allow_restart = _flag()


class ImagePatch(Sent):
    """Another OS image."""

    os_image_name = Text(required=True, validate=Length(min=1))


class InstanceRequest(Sent):
    """One more VM of an app."""

    name = _text(validate=NAME)
    node_id = _number(0)
    docker_compose_file = _text()
    pre_launch_script = _text()
    encrypted_env = _text(validate=HEX)
    compose_hash = _text()
    token = _text()
    transaction_hash = _text()


class ReplicaRequest(Sent):
    """One more VM of a CVM's app."""

    node_id = _number(0)


class Refusal(ma.Schema):
    """Every refusal: one that the interface has a code for, or `detail` with what is wrong."""

    error_code = fields.String()
    message = fields.String()
    details = fields.List(fields.Dict())
    suggestions = fields.List(fields.String())
    links = fields.List(fields.String())
    detail = fields.Raw(
        metadata={
            "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}],
        }
    )
