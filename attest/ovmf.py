"""The table at the end of OVMF firmware, by which TDX and SEV find what is theirs.

Source: attestation.md section 3; OvmfPkg/ResetVector in EDK II.
"""

from __future__ import annotations

import uuid

from attest.cursor import Cursor
from attest.errors import Malformed

_FOOTER = uuid.UUID("96b582de-1fb2-45f7-baea-a366c55a082d")
_END = 32
# Every entry ends in its length and its name.
_TAIL = 18


def footer_entry(firmware: bytes, guid: uuid.UUID) -> bytes:
    """The data of one entry, empty when there is none; Malformed when the firmware has no such table."""
    end = len(firmware) - _END
    head = firmware[end - _TAIL : end] if end >= _TAIL else b""
    if head[2:] != _FOOTER.bytes_le:
        raise Malformed("firmware: it is not OVMF (no table of GUIDs at its end)")
    total = int.from_bytes(head[:2], "little")
    if not _TAIL <= total <= end:
        raise Malformed("firmware: its table of GUIDs is longer than the file")
    return _find(firmware[end - total : end - _TAIL], guid)


def section_table(
    firmware: bytes, offset: int, mark: bytes, kind: str, most: int
) -> tuple[Cursor, int]:
    """The table of sections `offset` bytes before the end: a cursor at the first of them, and how many there are.

    Malformed unless it begins with its mark, is of version 1 and has no more than so many.
    """
    cursor = Cursor(firmware[len(firmware) - offset :], "firmware")
    found, _, version, count = cursor.take(4), cursor.uint(4), cursor.uint(4), cursor.uint(4)
    if (found, version) != (mark, 1) or count > most:
        raise Malformed(f"firmware: its {kind} section table is of an unknown form")
    return cursor, count


def _find(table: bytes, guid: uuid.UUID) -> bytes:
    while table:
        size = int.from_bytes(table[-_TAIL:-16], "little")
        if not _TAIL <= size <= len(table):
            raise Malformed("firmware: its table of GUIDs has a broken entry")
        if table[-16:] == guid.bytes_le:
            return table[-size:-_TAIL]
        table = table[:-size]
    return b""
