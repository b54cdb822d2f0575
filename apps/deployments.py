"""New VMs in two steps: a deployment is checked and promised under its hash, and later made (apps.md section 5)."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace

from accounts.roles import Caller
from apps import documents, records
from apps.catalog import Kms
from apps.cvms import Cvm
from apps.names import bare_app_id
from apps.refusals import (
    APP_ID_CONFLICT,
    COMPOSE_INVALID,
    COMPOSE_MISSING,
    HASH_UNKNOWN,
    IMAGE_NOT_FIT,
    IMAGE_NOT_FOUND,
    INSTANCE_TYPE_NOT_FOUND,
    INVALID_REQUEST,
    KMS_NOT_FOUND,
    NAME_TAKEN,
    NO_CAPACITY,
    NO_MEMORY,
    NO_SLOT,
    NO_VCPU,
    NODE_NOT_FOUND,
    coded,
)
from apps.schemas import Commitment, Deployment
from apps.service import Apps
from attest import compose
from core.config_apps import InstanceTypeConfig
from core.errors import (
    CasemateError,
    Conflict,
    Invalid,
    NotFound,
    Upstream,
    UpstreamTimeout,
)
from image.registry import Image
from models.app import CvmProfile, Provision
from vmm.records import Owner
from vmm.revisions import Cause
from vmm.schemas import Configuration

DEFAULT_SIZE = "tdx.small"


@dataclass(frozen=True)
class Promise:
    """A deployment that can be made: what the client is told of it."""

    compose_hash: str
    app_id: str | None
    env_key: str | None
    kms: Kms
    image: Image
    instance_type: str | None


@dataclass(frozen=True)
class Deployments:
    """Makes VMs of what clients ask for."""

    apps: Apps

    # The two steps -------------------------------------------------------------------------------

    def provision(self, caller: Caller, wanted: Deployment) -> Promise:
        """Checks a deployment, draws its app id and keeps it; nothing boots."""
        project_id = self.apps.accounts.home(caller)
        self._check_name(project_id, wanted.name)
        self._check_place(wanted)
        kms, size, image = self.choose_kms(wanted), self._size(wanted), self.choose_image(wanted)
        text = self._text(wanted)
        app_id = None if kms.is_onchain else self._draw(project_id, wanted)
        wants_keys = compose.AppCompose.parse(text.encode()).key_provider == "kms"
        env_key = self.env_key(kms, app_id) if app_id and wants_keys else None
        promise = Promise(
            compose.compose_hash(text.encode()).hex(), app_id, env_key, kms, image, size.id or None
        )
        self._keep(project_id, wanted, text, promise, size)
        return promise

    def commit(self, caller: Caller, given: Commitment) -> Cvm:
        """Makes and starts the VM of a promise; on failure the promise stays.

        Who commits it again gets the VM that was made of it.
        """
        project_id = self.apps.accounts.home(caller)
        provision = self._promised(caller, project_id, given)
        if provision is None:
            if made := self._made(caller, given):
                return made
            raise _unknown_hash()
        wanted = provision.wanted
        self._check_name(project_id, wanted["name"])
        app_id = str(bare_app_id(given.app_id))
        self.check_app_id(caller, app_id)
        profile = CvmProfile(
            kms=wanted["kms"],
            instance_type=wanted["instance_type"],
            listed=wanted["listed"],
            deployer=given.deployer_address,
            env_key=wanted["env_key"],
        )
        configuration = self._configuration(provision, app_id, sealed(given.encrypted_env))
        owner = Owner(project_id, caller.user_id)
        vm_id = self.make(owner, configuration, profile, promise=provision)
        with self.apps.database.writing() as session:
            records.drop(session, provision)
        return self.apps.of(vm_id)

    # Making --------------------------------------------------------------------------------------

    def make(
        self,
        owner: Owner,
        configuration: Configuration,
        profile: CvmProfile,
        operation: str = "",
        promise: Provision | None = None,
    ) -> str:
        """Makes a VM with its profile; the refusals of the VM manager get the interface's codes.

        The `promise` that it keeps is taken together with the making of its row.
        """
        try:
            return self.apps.vms.create(
                configuration,
                owner,
                documents.published(configuration.compose_file),
                Cause(owner.user_id, str(uuid.uuid4()), operation),
                lambda session, vm_id: records.note_made(session, vm_id, profile, promise),
            )
        except CasemateError as error:
            raise told_apart(error) from None

    def check_app_id(self, caller: Caller, app_id: str) -> None:
        """Conflict when the app belongs to somebody else: whoever runs it gets its keys."""
        with self.apps.database.reading() as session:
            others = records.projects_with(session, app_id)
        mine = self.apps.projects_of(caller)
        if mine is not None and not others <= mine:
            raise coded(
                Conflict("app_id: this app id is in use by another workspace"), APP_ID_CONFLICT
            )

    def env_key(self, kms: Kms, app_id: str) -> str:
        """The X25519 key (hex) that an app's variables are sealed to, from its KMS."""
        try:
            told = self.apps.vms.env_key(bytes.fromhex(app_id), url=kms.url)
        except (Upstream, UpstreamTimeout) as error:
            raise type(error)(f"KMS {kms.slug}: {error.message}") from None
        return bytes(told["public_key"]).hex()

    def _configuration(self, provision: Provision, app_id: str, env: bytes) -> Configuration:
        wanted = provision.wanted
        kms = self.apps.catalog.kms_of(wanted["kms"], ())
        return Configuration(
            name=wanted["name"],
            image=wanted["image"],
            compose_file=provision.compose_file,
            vcpu=wanted["vcpu"],
            memory=wanted["memory"],
            disk_size=wanted["disk_size"],
            encrypted_env=env,
            app_id=app_id,
            kms_urls=list(kms.guest_urls),
        )

    # Choices -------------------------------------------------------------------------------------

    def choose_kms(self, wanted: Deployment) -> Kms:
        """The KMS entry that a request means; the first where it names none."""
        entries = self.apps.catalog.kms
        if wanted.kms_id:
            entries = tuple(e for e in entries if wanted.kms_id in (e.id, e.slug))
        elif wanted.kms:
            entries = tuple(e for e in entries if e.type == wanted.kms.lower())
        if contract := (wanted.kms_contract or "").lower():
            entries = tuple(e for e in entries if (e.contract_address or "").lower() == contract)
        if not entries:
            known = ", ".join(f"{each.slug} ({each.type})" for each in self.apps.catalog.kms)
            raise coded(
                NotFound("kms: this host has no such KMS"),
                KMS_NOT_FOUND,
                suggestion=f"choose one of {known}",
            )
        return entries[0]

    def choose_image(self, wanted: Deployment) -> Image:
        """The OS image that a request means."""
        catalog = self.apps.catalog
        if wanted.image:
            found = catalog.image_named(wanted.image)
        else:
            found = catalog.image(prefer_dev=bool(wanted.prefer_dev))
        if found is None:
            names = ", ".join(each.name for each in catalog.images()) or "no image at all"
            raise coded(
                NotFound("image: this host has no such image"),
                IMAGE_NOT_FOUND,
                suggestion=f"it has {names}",
            )
        return found

    def size_named(self, name: str) -> InstanceTypeConfig:
        """The instance type of that id, or NotFound with the interface's code."""
        found = self.apps.catalog.size_named(name)
        if found is None:
            known = ", ".join(each.id for each in self.apps.config.apps.instance_types)
            raise coded(
                NotFound(f"instance_type: there is no {name[:64]}"),
                INSTANCE_TYPE_NOT_FOUND,
                suggestion=f"choose one of {known}",
            )
        return found

    def _size(self, wanted: Deployment) -> InstanceTypeConfig:
        """The resources; the id is empty where the request names numbers instead of a type."""
        if not wanted.instance_type and (wanted.vcpu or wanted.memory):
            if not (wanted.vcpu and wanted.memory):
                raise coded(
                    Invalid("vcpu and memory must be given together"),
                    INVALID_REQUEST,
                    suggestion="give an instance_type instead",
                )
            named = InstanceTypeConfig("", wanted.vcpu, wanted.memory)
        else:
            sizes = self.apps.config.apps.instance_types
            default = DEFAULT_SIZE if self.apps.catalog.size_named(DEFAULT_SIZE) else sizes[0].id
            named = self.size_named(wanted.instance_type or default)
        size = replace(named, disk_gb=wanted.disk_size or named.disk_gb)
        check_room(self.apps, size.vcpu, size.memory_mb)
        return size

    def _check_place(self, wanted: Deployment) -> None:
        self.check_node(wanted.teepod_id if wanted.teepod_id is not None else wanted.node_id)
        region = self.apps.config.apps.region
        if wanted.region not in (None, "", region):
            raise coded(
                Conflict(f"region: this host is in {region}"),
                NO_CAPACITY,
                suggestion="leave region out",
            )

    def check_node(self, node_id: int | None) -> None:
        """NotFound when a request names another node than this one."""
        mine = self.apps.config.apps.node_id
        if node_id not in (None, mine):
            raise coded(
                NotFound(f"node {node_id} not found"),
                NODE_NOT_FOUND,
                suggestion=f"this host is node {mine}",
            )

    def _check_name(self, project_id: str, name: str) -> None:
        with self.apps.database.reading() as session:
            taken = records.name_taken(session, project_id, name)
        if taken:
            raise coded(
                Conflict(f"name: there is a CVM {name} already"),
                NAME_TAKEN,
                suggestion="choose another name, or update that CVM",
            )

    # The text ------------------------------------------------------------------------------------

    def _text(self, wanted: Deployment) -> str:
        app = wanted.compose_file
        if not app.docker_compose_file:
            raise coded(Invalid("compose_file.docker_compose_file: is missing"), COMPOSE_MISSING)
        documents.check_compose(app.docker_compose_file, app.pre_launch_script)
        text = compose.canonical(documents.of_deployment(wanted))
        documents.check(self.apps.vms, wanted.name, text)
        return text

    # Promises ------------------------------------------------------------------------------------

    def _draw(self, project_id: str, wanted: Deployment) -> str:
        """The app id of an off-chain app: the next one, or the one that the client pinned."""
        if wanted.app_id is None and wanted.nonce is None:
            return self.apps.vms.draw_app_id(project_id)
        if wanted.app_id is None or wanted.nonce is None:
            raise coded(Invalid("nonce and app_id must be given together"), INVALID_REQUEST)
        drawn = self.apps.vms.app_id_of(project_id, wanted.nonce)
        if bare_app_id(wanted.app_id) != drawn:
            raise coded(
                Conflict(f"app_id: nonce {wanted.nonce} of this workspace gives {drawn}"),
                APP_ID_CONFLICT,
                suggestion="ask for the next app ids and use one of them with its nonce",
            )
        return self.apps.vms.draw_app_id(project_id, wanted.nonce)

    def _keep(
        self,
        project_id: str,
        wanted: Deployment,
        text: str,
        promise: Promise,
        size: InstanceTypeConfig,
    ) -> None:
        kept = {
            "name": wanted.name,
            "image": promise.image.name,
            "vcpu": size.vcpu,
            "memory": size.memory_mb,
            "disk_size": size.disk_gb,
            "instance_type": promise.instance_type,
            "listed": bool(wanted.listed),
            "kms": promise.kms.slug,
            "env_key": promise.env_key,
        }
        provision = Provision(
            project_id=project_id,
            app_id=promise.app_id,
            compose_hash=promise.compose_hash,
            compose_file=text,
            wanted=kept,
            created_ms=records.now_ms(),
        )
        with self.apps.database.writing() as session:
            records.add_provision(session, provision)

    def _made(self, caller: Caller, given: Commitment) -> Cvm | None:
        """The VM that a former commit made, if it was the same."""
        ids = [row.id for row in self.apps.rows(caller, bare_app_id(given.app_id) or "")]
        cvms = self.apps.cvms(ids)
        compose_hash = _digits(given.compose_hash)
        return next((each for each in cvms if each.compose_hash == compose_hash), None)

    def _promised(self, caller: Caller, project_id: str, given: Commitment) -> Provision | None:
        """The promise that is meant, or None when it was kept already or nothing was promised."""
        with self.apps.database.reading() as session:
            waiting = records.promised(session, [project_id], _digits(given.compose_hash))
        if not waiting:
            return None
        app_id = bare_app_id(given.app_id)
        if app_id is None:
            raise Invalid.field("app_id", "must be 40 hex digits")
        fits = [each for each in waiting if each.app_id in (None, app_id)]
        if not fits:
            if self._made(caller, given):
                return None
            raise coded(
                Conflict("app_id: another one was promised for this compose hash"),
                APP_ID_CONFLICT,
                suggestion="commit the app_id that provision answered",
            )
        # One that is for this very app goes before one for a contract yet to be named.
        return next((each for each in fits if each.app_id), fits[0])


def check_room(apps: Apps, vcpu: int, memory_mb: int) -> None:
    """Conflict with the interface's code when a VM could never run here, however few others do."""
    most_vcpu = apps.config.cvm.max_allocable_vcpu
    most_memory = apps.config.cvm.max_allocable_memory_in_mb
    if vcpu > most_vcpu:
        raise coded(Conflict(f"vcpu: this host gives at most {most_vcpu}"), NO_VCPU)
    if memory_mb > most_memory:
        raise coded(Conflict(f"memory: this host gives at most {most_memory} MB"), NO_MEMORY)


def sealed(encrypted_env: str | None) -> bytes:
    """Sealed variables from their hex text."""
    digits = (encrypted_env or "").lower().removeprefix("0x")
    if len(digits) % 2:
        raise Invalid.field("encrypted_env", "must have an even number of hex digits")
    return bytes.fromhex(digits)


def told_apart(error: CasemateError) -> CasemateError:
    """A refusal of the VM manager with the interface's code for it."""
    if isinstance(error, Conflict):
        field = error.message.partition(":")[0]
        return coded(error, {"vcpu": NO_VCPU, "memory": NO_MEMORY}.get(field, NO_CAPACITY))
    if isinstance(error, Invalid):
        names = error.fields or {"": ()}
        known = {"image": IMAGE_NOT_FIT, "compose_file": COMPOSE_INVALID}
        if "cid_pool_size" in error.message:
            return coded(Conflict(error.message), NO_SLOT)
        code = next((known[name] for name in names if name in known), None)
        if code or not error.fields:
            return coded(error, code or IMAGE_NOT_FIT)
    return error


def _digits(text: str) -> str:
    return text.lower().removeprefix("0x")


def _unknown_hash() -> NotFound:
    return coded(
        NotFound("compose_hash: nothing was provisioned under this hash, or too long ago"),
        HASH_UNKNOWN,
        suggestion="provision again and commit what it answers",
    )
