"""Encrypts an environment and checks a KMS's signatures with PyPI dstack-sdk; JSON in, JSON out."""

import json
import sys
import warnings

from dstack_sdk import (
    EnvVar,
    encrypt_env_vars_sync,
    verify_env_encrypt_public_key,
    verify_env_encrypt_public_key_legacy,
)

warnings.simplefilter("ignore")
given = json.load(sys.stdin)
public, v1, legacy = (
    bytes.fromhex(given[name]) for name in ("public_key", "signature_v1", "signature")
)
app_id, timestamp = given["app_id"], given["timestamp"]
variables = [EnvVar(key=name, value=value) for name, value in given["variables"].items()]
print(
    json.dumps(
        {
            "sealed": encrypt_env_vars_sync(variables, given["public_key"]),
            "signer": verify_env_encrypt_public_key(public, v1, app_id, timestamp),
            "legacy_signer": verify_env_encrypt_public_key_legacy(public, legacy, app_id),
        }
    )
)
