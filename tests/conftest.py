"""What tests stand on: a data directory, a configuration, a database, a host with a stand-in for QEMU."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import settings

import migrations
from app import create_app
from core import config as configuration
from core.config import Config
from image import build
from image.registry import Image
from models.base import Database
from tests.common import rows
from tests.common.service import end_processes
from vmm.accel import Accelerator
from vmm.host import Host
from vmm.service import Vms

# A busy machine is slow, not wrong; and what is refused once is refused every time.
settings.register_profile("casemate", deadline=None, derandomize=True)
settings.load_profile("casemate")

# A shell gives what it runs in the background a Ctrl-C that is ignored, nohup a SIGHUP, and programs hand that on:
# those to whom tests send one would never notice.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

FAKE_QEMU = Path(__file__).parent / "common/fake_qemu.py"


# Of 1,024 that a process may have open: what polls many files at once, or select(), finds the end of it.
FILES_MOST = 256


@pytest.fixture(autouse=True, scope="module")
def _open_files() -> Iterator[None]:
    """Closes what the applications of earlier tests left to the garbage collector, which counts objects, not files."""
    yield
    if len(os.listdir("/proc/self/fd")) > FILES_MOST:
        gc.collect()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write tests/golden anew")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compares a text with its file below tests/golden, or writes the file (--update-golden)."""

    def compare(name: str, text: str) -> None:
        path = Path(__file__).parent / "golden" / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        assert text == path.read_text()

    return compare


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A data directory with a path short enough for sockets; its VMs and its balancer end with the test."""
    path = Path(tempfile.mkdtemp(prefix="cm-", dir="/tmp"))
    yield path
    end_processes(path)
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def fake_qemu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in for QEMU as a program."""
    program = tmp_path_factory.mktemp("qemu") / "qemu-system-x86_64"
    program.write_text(f"#!{sys.executable} -SI\n{FAKE_QEMU.read_text()}")
    program.chmod(0o755)
    return program


@pytest.fixture
def config(data_dir: Path, fake_qemu: Path) -> Config:
    """Simulated TEE, ports 1024-65535, no automatic restart, no authentication."""
    return rows.config(data_dir, fake_qemu)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database file to copy."""
    path = tmp_path_factory.mktemp("database") / "casemate.db"
    migrations.upgrade(path)
    return path


@pytest.fixture
def database(config: Config, empty_database: Path) -> Iterator[Database]:
    """The database of `config`, migrated and empty."""
    shutil.copy(empty_database, config.database)
    database = Database(config.database)
    yield database
    database.engine.dispose()


@pytest.fixture
def host(fake_qemu: Path) -> Host:
    """A host without a TEE whose QEMU is the stand-in."""
    return Host(str(fake_qemu), (7, 2, 22), Accelerator("tcg", "max,cx16=off", "test"), "")


@pytest.fixture
def image(config: Config) -> Image:
    """An image of a few bytes, as whole as a real one."""
    return rows.image(config.image.path)


@pytest.fixture
def vms(config: Config, database: Database, host: Host, image: Image) -> Vms:
    """The service of `config` with one image."""
    return Vms(config, database, host)


@pytest.fixture
def app(config: Config, database: Database, host: Host, image: Image) -> Iterator[Flask]:
    """The application of `config` with one image."""
    app = create_app(config, host)
    yield app
    app.extensions["vms"].database.engine.dispose()


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    """A caller of `app`."""
    return app.test_client()


@pytest.fixture(scope="session")
def image_dir(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of images with the production image in it, built if need be, and that image's name."""
    cached = build.build(build.Variant.PRODUCTION, configuration.cache_dir(), lambda *_: None)
    installed = build.install(cached, tmp_path_factory.mktemp("images"))
    return installed.parent, installed.name
