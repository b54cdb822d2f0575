"""What a WSGI server of the owner's choice loads: the application alone, `gunicorn wsgi:application`.

The background process belongs to `casemate serve`, which is the way to run Casemate.
"""

import os
from pathlib import Path

from flask import Flask

import migrations
from app import create_app
from core import config as configuration
from vmm.host import Host


def _application() -> Flask:
    path = os.environ.get("CASEMATE_CONFIG")
    config = configuration.load(Path(path) if path else None)
    migrations.upgrade(config.database)
    return create_app(config, Host.discover(config))


application = _application()
