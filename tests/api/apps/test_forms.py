"""Every answer has the form that the published clients check, in every version."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.api.apps.conftest import VERSIONS, Api

Fits = Callable[[str, Any], None]


def form(name: str, version: str) -> str:
    """The form's name: the newer versions add to the second one alone."""
    return f"{name}-v{'20251028' if version == VERSIONS[0] else '20260121'}"


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_written_by_version(ann: Api, fits: Fits, version: str) -> None:
    vm = ann.deploy(compose_file={"storage_fs": "zfs"})
    asked = ann.speaking(version)

    fits(form("app-list", version), asked.get("/apps"))
    fits(form("app", version), asked.get(f"/apps/{vm['app_id']}"))
    fits(form("app-cvms", version), asked.get(f"/apps/{vm['app_id']}/cvms"))
    fits(form("cvm-list", version), asked.get("/cvms/paginated"))
    fits(form("current-user", version), asked.get("/auth/me"))


@pytest.mark.parametrize("version", VERSIONS)
def test_what_every_version_writes_alike(ann: Api, fits: Fits, version: str) -> None:
    vm = ann.speaking(version).deploy()
    asked, app = ann.speaking(version), f"/apps/{vm['app_id']}"
    revisions = asked.get(f"{app}/revisions")
    key = revisions["revisions"][0]["revision_id"]

    fits("cvm-action", vm)
    fits("provision", asked.provision("other-app", kms="PHALA"))
    fits("app-revisions", revisions)
    fits("app-revision-detail", asked.get(f"{app}/revisions/{key}"))
    fits("app-revision-detail", asked.get(f"{app}/revisions/{key}?raw_compose_file=true"))
    fits("app-filter-options", asked.get("/apps/filter-options"))
    fits("app-attestation", asked.get(f"{app}/attestations"))
    fits("device-allowlist", asked.get(f"{app}/device-allowlist"))
    fits("is-allowed", asked.post(f"{app}/is-allowed", {"compose_hash": "ab" * 32}))
    fits("cvms-is-allowed", asked.post(f"{app}/cvms/is-allowed"))
    fits("status-batch", asked.post("/status/batch", {"vm_uuids": [vm["vm_uuid"]]}))
    fits("available-nodes", asked.get("/teepods/available"))
    fits("instance-types", asked.get("/instance-types"))
    fits("os-images", asked.get("/os-images"))
    fits("cvm-action", asked.post(f"/cvms/{vm['vm_uuid']}/stop"))


@pytest.mark.parametrize("version", VERSIONS[:3])
def test_kms_entries_of_the_older_versions(ann: Api, fits: Fits, version: str) -> None:
    fits("kms-list", ann.speaking(version).get("/kms"))


def test_what_is_on_chain(ann: Api, fits: Fits) -> None:
    vm = ann.deploy(kms="ETHEREUM")

    for version in VERSIONS:
        asked, app = ann.speaking(version), f"/apps/{vm['app_id']}"
        fits(form("app", version), asked.get(app))
        fits("device-allowlist", asked.get(f"{app}/device-allowlist"))
        fits("cvms-is-allowed", asked.post(f"{app}/cvms/is-allowed"))
        fits("is-allowed", asked.post(f"/cvms/{vm['vm_uuid']}/is-allowed"))


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/apps?page=0", "validation-error"),
        ("/apps?page_size=101", "validation-error"),
        ("/apps?listed=perhaps", "validation-error"),
        ("/apps/" + "00" * 20, "error"),
        ("/apps/" + "00" * 20 + "/revisions?page_size=1001", "validation-error"),
        ("/cvms/nobody", "error"),
        ("/kms/none", "error"),
        ("/no/such/path", "error"),
    ],
)
def test_refusals(ann: Api, fits: Fits, path: str, name: str) -> None:
    answer = ann.ask("GET", path)

    assert answer.status_code in (404, 422)
    fits(name, answer.json)
