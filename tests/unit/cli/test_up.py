"""What `casemate up` writes the first time, on a host with a TEE and on one without."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli import up
from core import config
from kms import settings
from vmm import host


@pytest.mark.parametrize("tee", ["tdx", ""])
def test_service_and_kms_are_made_for_each_other(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, tee: str
) -> None:
    monkeypatch.setattr(host, "tee_platform", lambda pinned: tee)
    monkeypatch.delenv("CASEMATE_DATA_DIR", raising=False)

    file = up.prepare(data_dir, "tcp:127.0.0.1:8080")

    service, kms = config.load(file), settings.load(data_dir / "kms.toml")
    assert service.kms_url.removeprefix("https://") == kms.address.removeprefix("tcp:")
    assert service.cvm.simulate is not bool(tee)
    auth = kms.core.auth_api
    assert (auth.type, service.kms.register_apps) == (("file", True) if tee else ("dev", False))
    assert service.kms.policy_file == auth.file.path


def test_a_configuration_that_is_there_stays(data_dir: Path) -> None:
    file = up.prepare(data_dir, "tcp:127.0.0.1:8080")
    before = file.read_text(), (data_dir / "kms.toml").read_text()

    up.prepare(data_dir, "tcp:127.0.0.1:9999")

    assert (file.read_text(), (data_dir / "kms.toml").read_text()) == before
