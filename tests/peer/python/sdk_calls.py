"""Makes every documented call of PyPI `dstack-sdk` on one agent and prints what came back as JSON.

Run by tests/peer/test_dstack_sdk.py with the interpreter that has the SDK; the argument is the endpoint.
"""

import asyncio
import json
import sys
import warnings

import eth_account.messages
from dstack_sdk import AsyncDstackClient, DstackClient
from dstack_sdk.ethereum import to_account_secure
from dstack_sdk.solana import to_keypair_secure

warnings.simplefilter("error")


def main(endpoint: str) -> None:
    client = DstackClient(endpoint, timeout=30)
    key = client.get_key("wallet/1", "mainnet")
    solana = client.get_key("wallet/2", "mainnet", algorithm="ed25519")
    tls = client.get_tls_key(
        subject="app.example", alt_names=["app.example", "127.0.0.1"], usage_ra_tls=True
    )
    client.emit_event("peer-python", b"\x00\x01payload")
    quote = client.get_quote(b"peer report data")
    account = to_account_secure(key)
    keypair = to_keypair_secure(solana)
    message = eth_account.messages.encode_defunct(text="hello")
    print(
        json.dumps(
            {
                "reachable": client.is_reachable(),
                "version": client.version().model_dump(),
                "key": key.decode_key().hex(),
                "key_chain": [each.hex() for each in key.decode_signature_chain()],
                "key_again": client.get_key("wallet/1", "mainnet").decode_key().hex(),
                "ed25519_key": solana.decode_key().hex(),
                "tls_key": tls.key,
                "tls_chain": tls.certificate_chain,
                "quote": quote.quote,
                "event_log": json.loads(quote.event_log),
                "replayed": quote.replay_rtmrs(),
                "attestation": client.attest(b"peer report data").attestation,
                "info": client.info().model_dump(),
                "signatures": {name: signed(client, name) for name in ALGORITHMS},
                "ethereum": account.address,
                "ethereum_signature": account.sign_message(message).signature.hex(),
                "solana": str(keypair.pubkey()),
                "many": asyncio.run(many(endpoint)),
            }
        )
    )


ALGORITHMS = ("ed25519", "secp256k1", "secp256k1_prehashed")


def signed(client: DstackClient, algorithm: str) -> dict:
    data = b"\x11" * 32
    made = client.sign(algorithm, data)
    arguments = (made.decode_signature(), made.decode_public_key())
    return {
        "signature": made.decode_signature().hex(),
        "public_key": made.decode_public_key().hex(),
        "chain": [each.hex() for each in made.decode_signature_chain()],
        "valid": client.verify(algorithm, data, *arguments).valid,
        "valid_of_other_data": client.verify(algorithm, b"\x22" * 32, *arguments).valid,
    }


async def many(endpoint: str) -> list:
    """16 callers emit an event each and take a quote: does every quote agree with its own log?"""

    async def one(number: int) -> bool:
        async with AsyncDstackClient(endpoint, timeout=60) as client:
            await client.emit_event(f"peer-{number}", str(number))
            quote = await client.get_quote(str(number).encode())
            return quote.replay_rtmrs()[3] == quote.decode_quote()[520:568].hex()

    return await asyncio.gather(*(one(number) for number in range(16)))


if __name__ == "__main__":
    main(sys.argv[1])
