"""A reader over bytes that somebody else wrote: every step is checked against what is left."""

from __future__ import annotations

from attest.errors import Malformed


class Cursor:
    """Takes little-endian values off the front of `data`; `what` names the document in complaints."""

    def __init__(self, data: bytes, what: str) -> None:
        self.data = data
        self.what = what
        self.at = 0

    @property
    def left(self) -> int:
        """How many bytes have not been taken yet."""
        return len(self.data) - self.at

    def take(self, size: int) -> bytes:
        """The next `size` bytes; Malformed when the document ends before that."""
        if size > self.left:
            raise Malformed(f"{self.what}: cut short at byte {len(self.data)}")
        self.at += size
        return self.data[self.at - size : self.at]

    def uint(self, size: int) -> int:
        """The next unsigned integer of `size` bytes, little-endian."""
        return int.from_bytes(self.take(size), "little")

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(self.left)
