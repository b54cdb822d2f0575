"""Apps, revisions and lists as the interface writes them, whatever the version of what is in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from accounts.roles import Caller
from apps import inside
from apps.cvms import Cvm, Ref
from apps.links import Links
from apps.names import moment, named
from apps.service import App, Apps, Page, page_of
from apps.versions import Json, Version, cvm_ref, user_ref, workspace_ref
from attest import compose
from core.errors import NotFound
from models.app import Revision


def apps_of(service: Apps, apps: Sequence[App], version: Version, links: Links) -> list[Json]:
    """Apps with their VMs; one whose last VM went meanwhile is left out."""
    cvms = {cvm.uuid: cvm for cvm in service.cvms([row.id for app in apps for row in app.rows])}
    of_apps = [(app, [cvms[row.id] for row in app.rows if row.id in cvms]) for app in apps]
    return [app_of(app, found, version, links) for app, found in of_apps if found]


def one_app(service: Apps, app: App, version: Version, links: Links) -> Json:
    """One app with its VMs; NotFound when the last one went meanwhile."""
    found = apps_of(service, [app], version, links)
    if not found:
        raise NotFound("App not found")
    return found[0]


def cvms_page(service: Apps, caller: Caller, wanted: dict[str, Any]) -> Page[Cvm]:
    """A page of a caller's VMs, the newest first."""
    rows = [row for row in reversed(service.rows(caller)) if service.is_wanted(row, wanted)]
    page = page_of(rows, wanted["page"], wanted["page_size"])
    return replace(page, items=service.cvms([row.id for row in page.items]))


def statuses(service: Apps, caller: Caller, uuids: Sequence[str]) -> dict[str, Json]:
    """How some VMs are, by uuid; those that a caller does not see are left out."""
    wanted = {uuid.lower().replace("-", ""): uuid for uuid in uuids}
    rows = [row for row in service.rows(caller) if row.id.replace("-", "") in wanted]
    cvms = service.cvms([row.id for row in rows])
    return {wanted[cvm.uuid.replace("-", "")]: inside.status(cvm) for cvm in cvms}


def instance_id(row: Any, version: Version) -> Json:
    """The instance id of a VM: what its guest told at its boot, which there is nothing to refresh from."""
    known = row.instance_id
    return {
        "cvm_id": version.id(row),
        "identifier": row.id,
        "status": "unchanged" if known else "skipped",
        "old_instance_id": known,
        "new_instance_id": known,
        "source": "teepod_info" if known else "none",
        "verified_with_gateway": False,
        "reason": None if known else "its guest has told none yet; it does when it boots",
    }


def instance_ids(service: Apps, caller: Caller, wanted: dict[str, Any], version: Version) -> Json:
    """The instance ids of a caller's VMs, counted by what became of each; none changes."""
    rows = service.rows(caller)
    if wanted["cvm_ids"] is not None:
        meant = {row.id for name in wanted["cvm_ids"] for row in named(name, rows)}
        rows = [row for row in rows if row.id in meant]
    fits = [
        row
        for row in rows
        if (not wanted["running_only"] or service.status(row) == "running")
        and not (wanted["missing_only"] and row.instance_id)
    ]
    items = [instance_id(row, version) for row in fits[: wanted["limit"]]]
    counts = {
        word: sum(each["status"] == word for each in items) for word in ("unchanged", "skipped")
    }
    return {
        "total": len(fits),
        "scanned": len(items),
        "updated": 0,
        **counts,
        "conflicts": 0,
        "errors": 0,
        "items": items,
    }


def app_of(app: App, cvms: Sequence[Cvm], version: Version, links: Links) -> Json:
    """An app with its VMs, of which the oldest stands for it."""
    rows = [version.of_app(cvm, links) for cvm in cvms]
    first = app.rows[0]
    return {
        "id": app.id,
        "name": first.name,
        "app_id": app.id,
        "app_provision_type": None,
        "app_icon_url": None,
        "created_at": moment(first.created_ms),
        "kms_type": cvms[0].kms.type,
        "profile": None,
        "current_cvm": rows[0],
        "cvms": rows,
        "cvm_count": len(rows),
    }


def listing(page: Page[Any], write: Callable[[Any], Any]) -> Json:
    """A page as most lists are written."""
    return {
        "items": [write(each) for each in page.items],
        "total": page.total,
        "page": page.page,
        "page_size": page.page_size,
        "pages": page.pages,
    }


def own_listing(name: str, page: Page[Any], rows: Sequence[Json]) -> Json:
    """A page as apps and revisions are listed."""
    return {
        name: list(rows),
        "total": page.total,
        "page": page.page,
        "page_size": page.page_size,
        "total_pages": page.pages,
    }


def revision_of(revision: Revision, projects: dict[str, str], users: dict[str, str]) -> Json:
    """A revision without its texts."""
    maker = users.get(revision.user_id or "")
    project = Ref(revision.project_id, projects[revision.project_id])
    return {
        "revision_id": revision.key,
        "app_id": revision.app_id,
        "vm_uuid": revision.vm_id,
        "compose_hash": revision.compose_hash,
        "created_at": moment(revision.created_ms),
        "operation_type": revision.operation,
        "trace_id": revision.trace_id,
        "triggered_by": user_ref(
            Ref(revision.user_id, maker) if maker and revision.user_id else None
        ),
        "cvm": cvm_ref(revision.vm_id, revision.vm_name, revision.app_id),
        "workspace": workspace_ref(project),
    }


def texts_of(revision: Revision, *, raw: bool) -> Json:
    """The texts of a revision; `raw`: the compose text exactly as it was."""
    document = compose.document_of(revision.compose_file)
    return {
        "compose_file": revision.compose_file if raw else document or None,
        "encrypted_env": revision.encrypted_env.hex(),
        "user_config": revision.user_config,
    }
