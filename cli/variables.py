"""The encrypted variables of an app, and `casemate vm env`, which replaces them.

Only the guest can read them, so nothing can change one and keep the rest: whoever sets variables sets all.
Source: kms.md section 7 (layout), section 3 (the KMS's signature over the key).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli import compose
from cli.completion import vms
from cli.terminal import print_json, print_table, say
from core.errors import Invalid, Upstream
from core.sealed_env import seal

if TYPE_CHECKING:
    from cli.client import Client

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}", re.ASCII)
_SIGNED = b"dstack-env-encrypt-pubkey:"

ENV = click.option(
    "-e", "--env", "given", multiple=True, metavar="NAME[=VALUE]",
    help="An encrypted variable; repeatable. Without a value it is taken from the environment, "
    "which other users of this host cannot see.",
)  # fmt: skip
ENV_FILE = click.option(
    "--env-file", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    help="A file of NAME=VALUE lines, - for standard input.",
)  # fmt: skip
KMS_SIGNER = click.option(
    "--kms-signer", metavar="HEX", help="Refuse a key that another KMS has signed (its k256 key)."
)


def read(given: Iterable[str], file: Path | None) -> dict[str, str]:
    """The variables of NAME=VALUE words and of a file, whose lines come first; Invalid names a bad one."""
    words = [*_lines(file), *given]
    return dict(_variable(word) for word in words)


def _lines(file: Path | None) -> list[str]:
    if file is None:
        return []
    text = sys.stdin.read() if str(file) == "-" else file.read_text()
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _variable(word: str) -> tuple[str, str]:
    name, has_value, value = word.partition("=")
    if not _NAME.fullmatch(name):
        # Not the whole word: it may hold a secret.
        raise Invalid.field("env", f"{name[:20]!r} is not the name of a variable (NAME=VALUE)")
    if not has_value:
        if name not in os.environ:
            raise Invalid.field("env", f"{name} has no value, and the environment has none either")
        value = os.environ[name]
    return name, value


def sealed_for(
    client: Client, app_id: str, variables: Mapping[str, str], signer: str | None
) -> str:
    """The encrypted variables of an app in hex, for the key that the service's KMS gives it.

    Invalid when the KMS's signature over that key does not hold, or is not `signer`'s.
    """
    answer = client.call("prpc/GetAppEnvEncryptPubKey", app_id=app_id)
    try:
        public_key = bytes.fromhex(answer["public_key"])
        signed_by = signer_of(bytes.fromhex(app_id), answer)
        sealed = seal(public_key, variables)
    except (KeyError, TypeError, ValueError):
        raise Upstream("the KMS's key for this app, or its signature, is malformed") from None
    if signer is None:
        say(f"encrypted for the KMS {signed_by} (--kms-signer refuses any other)")
    elif signed_by != signer.lower().removeprefix("0x"):
        raise Invalid.field("kms-signer", f"the key was signed by {signed_by}")
    return sealed.hex()


def signer_of(app_id: bytes, answer: Mapping[str, Any]) -> str:
    """The k256 key (33 bytes in hex) that signed a key for an app; ValueError when none can be found."""
    from core.k256 import recover

    public_key, when = bytes.fromhex(answer["public_key"]), b""
    signature = answer.get("signature_v1") or ""
    if signature:
        when = int(answer["timestamp"]).to_bytes(8, "big")
    message = _SIGNED + app_id + when + public_key
    return recover(bytes.fromhex(signature or answer["signature"]), message).hex()


@click.command()
@click.argument("vm_id", metavar="VM", shell_complete=vms)
@click.argument("given", nargs=-1, metavar="[NAME[=VALUE]]...")
@ENV_FILE
@click.option("--clear", is_flag=True, help="Leave the app without variables.")
@KMS_SIGNER
@click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")
def env(
    vm_id: str,
    given: tuple[str, ...],
    env_file: Path | None,
    clear: bool,
    kms_signer: str | None,
    as_json: bool,
) -> None:
    """Replace a VM's encrypted variables at its next start, or name those that it has.

    All of them are replaced: nobody but the app can read the old ones.  A NAME without a value is taken
    from the environment.
    """
    from cli.client import Client

    variables = read(given, env_file)
    if clear and variables:
        raise click.UsageError("--clear takes no variables")
    client = Client.found()
    info = client.info(client.vm(vm_id)["id"])
    if variables or clear:
        text = info["configuration"]["compose_file"]
        change = {
            "compose_file": compose.allowing(text, variables),
            "encrypted_env": sealed_for(client, info["app_id"], variables, kms_signer),
        }
        client.call("prpc/UpdateVm", id=info["id"], **change)
        compose.say_hash_change(text, change["compose_file"])
        info = client.info(info["id"])
    names = compose.allowed(info["configuration"]["compose_file"])
    if as_json:
        is_set = bool(info["configuration"]["encrypted_env"])
        print_json({"id": info["id"], "allowed_envs": names, "encrypted_env": is_set})
    else:
        print_table(("NAME",), [(name,) for name in names])
