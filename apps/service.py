"""The questions of the apps interface: apps, CVMs and revisions as a caller may see them (apps.md section 3)."""

from __future__ import annotations

import hmac
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

from accounts import directory
from accounts.roles import Caller
from accounts.service import Accounts
from accounts.tokens import session_key
from apps import records
from apps.catalog import Catalog
from apps.cvms import Cvm, Me, Ref, status_word
from apps.names import bare_app_id, named
from apps.refusals import CVM_NOT_FOUND, NAME_AMBIGUOUS, coded
from apps.schemas import AppsWanted
from core.config import Config
from core.errors import Conflict, NotFound
from image.registry import Image
from models.account import User
from models.app import Revision
from models.base import Database
from models.port import PortLease
from vmm.schemas import StatusQuery
from vmm.service import Vms

Item = TypeVar("Item")
WORKSPACE_ROLES = {"admin": "owner", "manager": "admin", "user": "member"}


@dataclass(frozen=True)
class App:
    """All VMs with one app id that a caller may see, the oldest first; `rows` without their long texts."""

    id: str
    rows: Sequence[Any]

    @property
    def projects(self) -> set[str]:
        """The projects they belong to."""
        return {row.project_id for row in self.rows}


@dataclass(frozen=True)
class Page(Generic[Item]):
    """Some of a list, and how long the whole of it is."""

    items: Sequence[Item]
    total: int
    page: int
    page_size: int

    @property
    def pages(self) -> int:
        """How many pages there are."""
        return -(-self.total // self.page_size)


def page_of(items: Sequence[Item], page: int, page_size: int) -> Page[Item]:
    """One page of a list."""
    first = (page - 1) * page_size
    return Page(items[first : first + page_size], len(items), page, page_size)


@dataclass(frozen=True)
class Apps:
    """The apps of one host."""

    vms: Vms
    accounts: Accounts

    @property
    def config(self) -> Config:
        """The configuration of the service."""
        return self.vms.config

    @property
    def database(self) -> Database:
        """The database of the service."""
        return self.vms.database

    @cached_property
    def catalog(self) -> Catalog:
        """What this host offers."""
        return Catalog(self.config, self.vms.measured_device())

    @cached_property
    def link_key(self) -> bytes:
        """What links to logs are signed with."""
        kept = session_key(self.config.data_dir).encode()
        return hmac.digest(kept, b"links to logs", "sha256")

    # Who -----------------------------------------------------------------------------------------

    def projects_of(self, caller: Caller) -> set[str] | None:
        """The projects whose VMs a caller sees; None: all of them."""
        return None if caller.is_operator else set(self.accounts.roles(caller))

    def me(self, caller: Caller) -> Me:
        """The caller, and where their new things go."""
        home = self.accounts.home(caller)
        role = self.accounts.roles(caller)[home]
        with self.database.reading() as session:
            user = session.get(User, caller.user_id)
            name = records.projects_named(session, [home])[home]
        email = (user.email if user else None) or ""
        return Me(caller.name, email, caller.is_operator, WORKSPACE_ROLES[role], Ref(home, name))

    def workspaces(self, caller: Caller) -> list[tuple[Ref, str, int]]:
        """The caller's projects with their role in each and when it was made, the first project first."""
        roles = self.accounts.roles(caller)
        with self.database.reading() as session:
            found = {project.id: project for project in directory.projects(session)}
        return [
            (Ref(each, found[each].name), WORKSPACE_ROLES[role], found[each].created_ms)
            for each, role in roles.items()
            if each in found
        ]

    # Apps ----------------------------------------------------------------------------------------

    def apps(self, caller: Caller) -> list[App]:
        """Every app of a caller, the newest first."""
        return grouped(self.rows(caller))

    def rows(self, caller: Caller, app_id: str | None = None) -> Sequence[Any]:
        """The rows of all VMs that a caller sees, or of those of one app, the oldest first."""
        with self.database.reading() as session:
            return records.visible(session, self.projects_of(caller), app_id)

    def matching(self, caller: Caller, wanted: AppsWanted) -> Page[App]:
        """A page of the apps that fit a query."""
        found = [app for app in self.apps(caller) if any(self._fits(wanted, r) for r in app.rows)]
        return page_of(found, wanted.page, wanted.page_size)

    def app(self, caller: Caller, name: str) -> App:
        """One app by its id in any spelling, or NotFound."""
        app_id = bare_app_id(name)
        rows = self.rows(caller, app_id) if app_id else ()
        if not app_id or not rows:
            raise NotFound("App not found")
        return App(app_id, rows)

    def filter_options(self, caller: Caller) -> dict[str, list[str]]:
        """The values that the filters of the list can have among a caller's apps."""
        rows = self.rows(caller)
        entries = [self._kms(row) for row in rows]
        has_any = [""] if rows else []
        return {
            "statuses": _distinct(self.status(row) for row in rows),
            "image_versions": _distinct(row.image for row in rows),
            "instance_types": _distinct(self._size(row) for row in rows),
            "kms_slugs": _distinct(kms.slug for kms in entries),
            "kms_types": _distinct(kms.type for kms in entries),
            "regions": _distinct(self.config.apps.region for _ in has_any),
            "nodes": _distinct(self.catalog.node_name for _ in has_any),
        }

    def status(self, row: Any) -> str:
        """The status word of a VM's row."""
        return status_word(self.vms.word(row))

    def _kms(self, row: Any) -> Any:
        return self.catalog.kms_of(row.kms, row.options.get("kms_urls") or [])

    def _size(self, row: Any) -> str | None:
        return row.instance_type or self.catalog.size_of(row.vcpu, row.memory_mb)

    def _fits(self, wanted: AppsWanted, row: Any) -> bool:
        search = bare_app_id(wanted.search) or wanted.search.lower()
        texts = (row.name, row.app_id, row.id, row.instance_id or "")
        return (
            (not search or any(search in text.lower() for text in texts))
            and (not wanted.status or self.status(row) in wanted.status)
            and wanted.listed in (None, bool(row.listed))
            and wanted.base_image in ("", row.image)
            and (not wanted.instance_type or self._size(row) == wanted.instance_type)
            and (not wanted.kms_slug or self._kms(row).slug == wanted.kms_slug)
            and (not wanted.kms_type or self._kms(row).type == wanted.kms_type)
            and wanted.node in ("", self.catalog.node_name)
            and wanted.region in ("", self.config.apps.region)
        )

    # CVMs ----------------------------------------------------------------------------------------

    def find(self, caller: Caller, name: str) -> Any:
        """The row of the one VM that a name means; NotFound or Conflict with the interface's codes."""
        found = named(name, self.rows(caller))
        if not found:
            raise coded(NotFound(f"CVM {name[:64]} not found"), CVM_NOT_FOUND)
        if len(found) > 1:
            raise coded(
                Conflict(f"{name[:64]} means {len(found)} CVMs"),
                NAME_AMBIGUOUS,
                details={"cvm_ids": [row.id for row in found]},
                suggestion="name the CVM by its uuid",
            )
        return found[0]

    def cvm(self, caller: Caller, name: str) -> Cvm:
        """The one VM that a name means, with everything."""
        return self.of(self.find(caller, name).id)

    def of(self, vm_id: str) -> Cvm:
        """The VM of an id, with everything; NotFound when it went meanwhile."""
        found = self.cvms([vm_id])
        if not found:
            raise coded(NotFound(f"CVM {vm_id} not found"), CVM_NOT_FOUND)
        return found[0]

    def cvms(self, ids: Sequence[str]) -> list[Cvm]:
        """VMs with everything, in the order of their ids; those that are gone are left out."""
        with self.database.reading() as session:
            rows = records.whole(session, ids)
            projects = records.projects_named(session, {row.project_id for row in rows.values()})
            users = records.users_named(session, {row.user_id for row in rows.values()})
            changed = records.changed(session, ids)
            ports = records.ports(session, ids)
        images = {image.name: image for image in self.catalog.images()}
        told = {vm["id"]: vm for vm in self._told(list(rows))}
        return [
            self._cvm(
                rows[each],
                told[each],
                projects,
                users,
                changed.get(each, 0),
                images,
                ports.get(each, ()),
            )
            for each in ids
            if each in told
        ]

    def _told(self, ids: list[str]) -> list[dict[str, Any]]:
        if not ids:  # no ids would mean all
            return []
        return list(self.vms.status(StatusQuery(ids=ids, brief=True))["vms"])

    def is_wanted(self, row: Any, wanted: dict[str, Any]) -> bool:
        """Whether a VM's row fits the filters of the list of CVMs."""
        sizes = wanted["instance_types"]
        nodes = {wanted["node_id"], wanted["teepod_id"]} - {None}
        return (
            nodes <= {self.config.apps.node_id}
            and wanted["family"] in (None, "", "all", self._family(row))
            and (not sizes or self._size(row) in sizes)
        )

    def _family(self, row: Any) -> str | None:
        size = self.catalog.size_named(self._size(row) or "")
        return size.family if size else None

    def _cvm(
        self,
        row: Any,
        told: dict[str, Any],
        projects: dict[str, str],
        users: dict[str, str],
        changed_ms: int,
        images: dict[str, Image],
        ports: Sequence[PortLease],
    ) -> Cvm:
        maker = users.get(row.user_id)
        moments = (row.created_ms, row.started_ms or 0, row.stopped_ms or 0)
        return Cvm(
            row=row,
            told=told,
            project=Ref(row.project_id, projects[row.project_id]),
            creator=None if maker is None else Ref(row.user_id, maker),
            catalog=self.catalog,
            image=images.get(row.image),
            ports=ports,
            changed_ms=max(*moments, changed_ms),
        )

    # What is free --------------------------------------------------------------------------------

    def used(self) -> dict[str, int]:
        """What the VMs of all projects take of this host."""
        with self.database.reading() as session:
            return records.used(session)

    def free_disk_gb(self) -> int:
        """What the disk under the VMs' folders has left, in GB."""
        return shutil.disk_usage(self.config.data_dir).free // 1024**3

    # Revisions -----------------------------------------------------------------------------------

    def revisions(self, app: App, page: int, page_size: int) -> Page[Revision]:
        """A page of an app's revisions, the newest first."""
        with self.database.reading() as session:
            first = (page - 1) * page_size
            total, found = records.revisions(session, app.id, app.projects, first, page_size)
        return Page(found, total, page, page_size)

    def revision(self, app: App, key: str) -> Revision:
        """One revision of an app with its texts, or NotFound."""
        with self.database.reading() as session:
            found = records.revision(session, app.id, app.projects, key)
        if found is None:
            raise NotFound("Revision not found")
        return found

    def refs(self, revisions: Iterable[Revision]) -> tuple[dict[str, str], dict[str, str]]:
        """The names of the projects and of the users that revisions speak of, by id."""
        told = list(revisions)
        with self.database.reading() as session:
            return (
                records.projects_named(session, {each.project_id for each in told}),
                records.users_named(session, {each.user_id for each in told}),
            )


def grouped(rows: Iterable[Any]) -> list[App]:
    """VMs, the oldest first, as apps, the newest first; an app is as old as its oldest VM."""
    found: dict[str, list[Any]] = {}
    for row in rows:
        found.setdefault(row.app_id, []).append(row)
    return [App(app_id, of_app) for app_id, of_app in reversed(found.items())]


def _distinct(values: Iterable[str | None]) -> list[str]:
    return sorted({value for value in values if value})
