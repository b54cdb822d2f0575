"""The attestation library: bytes in, frozen values out, one error family; no network, no database."""
