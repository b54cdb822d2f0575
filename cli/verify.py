"""`casemate verify`: checks evidence by hand, with the verifier that `POST /verify` has."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import click

FILE = click.Path(path_type=Path, dir_okay=False, exists=True)


@click.command()
@click.argument("request", type=FILE)
@click.option("--collateral", type=FILE, help="QuoteCollateralV3 JSON, or SEV-SNP's chain in PEM.")
@click.option("--root-ca", type=FILE, help="Trust this root (PEM) instead of the vendor's.")
@click.option("--at", type=click.IntRange(min=0), help="Judge as of this Unix time; else now.")
def verify(request: Path, collateral: Path | None, root_ca: Path | None, at: int | None) -> None:
    """Verify the evidence in a JSON file and print the answer of POST /verify.

    REQUEST holds an object with `attestation`, or with `quote`, `event_log` and `vm_config`, as GetQuote answers.
    Exits with 0 when the evidence is valid, 1 when it is not, 2 when it cannot be read.
    """
    from attest import collateral as sources
    from core.errors import CasemateError
    from core.files import read_capped
    from verify import schemas
    from verify.service import NONE, Verifier

    source = sources.file(collateral) if collateral else sources.nowhere
    try:
        asked = schemas.read(read_capped(request.resolve(), schemas.MAX_BODY))
        verifier = Verifier(root_ca or NONE, source)
        outcome = verifier.verify(asked, int(time.time()) if at is None else at)
    except (CasemateError, OSError) as error:
        click.echo(f"casemate verify: {error}", err=True)
        sys.exit(2)
    click.echo(json.dumps(schemas.answer(outcome), indent=2))
    sys.exit(0 if outcome.is_valid else 1)
