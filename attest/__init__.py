"""The attestation library: bytes in, frozen values out, one error family; no database.

Only collateral.py knows a network.
"""
