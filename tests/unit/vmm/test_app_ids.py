from __future__ import annotations

from vmm import app_ids

# The addresses of the first contracts that anvil's first account makes: public, the same on every machine.
DEPLOYER = bytes.fromhex("f39fd6e51aad88f6f4ce6ab8827279cfffb92266")
FIRST = [
    "5fbdb2315678afecb367f032d93f642f64180aa3",
    "e7f1725e7734ce288f8367e1bb143e90bb3f0512",
    "9fe46736679d2d9a65f0992f2272de9f3c7fa6e0",
]


def test_ids_are_those_of_ethereums_contracts() -> None:
    assert [app_ids.drawn(DEPLOYER, nonce) for nonce in range(3)] == FIRST


def test_every_size_of_nonce_gives_another_id() -> None:
    nonces = [0, 1, 0x7F, 0x80, 0xFF, 0x100, 0xFFFF, 2**32, 2**62]

    assert len({app_ids.drawn(DEPLOYER, nonce) for nonce in nonces}) == len(nonces)
