"""Notices that guests have booted: each is asked for a quote until it has given one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from core.errors import CasemateError
from secretvm.service import SecretVms
from secretvm.vm_object import Row

# Guests that boot at the same time and are asked at the same time.
ASKED_AT_ONCE = 4


def look_for_quotes(secret_vms: SecretVms) -> None:
    """Asks each guest that has not given a quote since its start for one."""
    rows = secret_vms.unquoted()
    if not rows:
        return

    def has_quoted(row: Row) -> bool:
        try:
            return bool(secret_vms.quote(row))
        except CasemateError:  # it boots still
            return False

    with ThreadPoolExecutor(ASKED_AT_ONCE, thread_name_prefix="quotes") as pool:
        for row, is_there in zip(rows, pool.map(has_quoted, rows), strict=True):
            if is_there:
                secret_vms.note_quote(row.vm.id)
