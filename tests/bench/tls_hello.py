"""The peer of P14: Flask hello behind the TLS, the worker class and the settings of `casemate kms`.

python -m tests.bench.tls_hello KMS_CONFIG ADDRESS:PORT
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from cli.kms_serve import kms_settings
from cli.server import Server
from kms import settings
from tests.bench.hello import application


def main(config: str, bind: str) -> None:
    """Serves with the certificates of a KMS that has been started once, until a signal says otherwise."""
    given = kms_settings(settings.load(Path(config)))
    Server({**given, "bind": bind}, lambda: application, os.getppid()).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
