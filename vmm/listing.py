"""VMs as lists and details read them: plain rows, which cost a fifth of what objects of a session do.

The statements are built once: putting one together takes longer than SQLite needs to answer it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain
from types import SimpleNamespace
from typing import Any

from sqlalchemy import BindParameter, ColumnElement, Row, bindparam, func, or_, select
from sqlalchemy.orm import Session

from models.port import PortLease
from models.vm import Vm, VmEvent
from vmm.schemas import StatusQuery

_VMS, _LEASES, _EVENTS = (table.__table__ for table in (Vm, PortLease, VmEvent))
# The exact text and the opaque parts: large, and shown with the configuration alone.
_LONG = ("compose_file", "encrypted_env", "user_config")
_WHOLE = select(_VMS)
_BRIEF = select(*(column for column in _VMS.c if column.name not in _LONG))
_ONE = _WHOLE.where(_VMS.c.id == bindparam("vm_id"))
_ids: BindParameter[Any] = bindparam("ids", expanding=True)
_LEASES_OF = select(_LEASES).where(_LEASES.c.vm_id.in_(_ids)).order_by(_LEASES.c.position)
_EVENTS_OF = select(_EVENTS).where(_EVENTS.c.vm_id.in_(_ids)).order_by(_EVENTS.c.id)
# So many are held at once, with their parts.
CHUNK = 250


def page(session: Session, query: StatusQuery) -> tuple[int, Iterator[SimpleNamespace]]:
    """How many VMs match a query, and those of its page, oldest first; with the names of a Vm.

    They are read as they are taken, while the session is open.
    """
    found = _conditions(query)
    total = session.scalar(select(func.count()).select_from(_VMS).where(*found)) or 0
    wanted = _BRIEF if query.brief else _WHOLE
    wanted = wanted.where(*found).order_by(_VMS.c.created_ms, _VMS.c.number)
    if query.page_size:
        first = min(query.page * query.page_size, 2**62)  # SQLite counts to 2^63
        wanted = wanted.offset(first).limit(query.page_size)
    chunks = session.execute(wanted).partitions(CHUNK)
    return total, chain.from_iterable(_with_parts(session, rows) for rows in chunks)


def one(session: Session, vm_id: str) -> SimpleNamespace | None:
    """One VM with its long parts, or None."""
    found = _with_parts(session, session.execute(_ONE, {"vm_id": vm_id}).all())
    return found[0] if found else None


def _with_parts(session: Session, rows: Sequence[Row[Any]]) -> list[SimpleNamespace]:
    ids = {"ids": [row.id for row in rows]}
    ports, events = defaultdict(list), defaultdict(list)
    for lease in session.execute(_LEASES_OF, ids):
        ports[lease.vm_id].append(lease)
    for event in session.execute(_EVENTS_OF, ids):
        events[event.vm_id].append(event)
    return [
        SimpleNamespace(**row._mapping, ports=ports[row.id], events=events[row.id]) for row in rows
    ]


def _conditions(query: StatusQuery) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = []
    if query.ids:
        found.append(_VMS.c.id.in_(query.ids))
    if query.keyword:
        columns = (_VMS.c.name, _VMS.c.id, _VMS.c.app_id, _VMS.c.image)
        # SQLite refuses long patterns; no column has more than 64 characters.
        keyword = query.keyword[:100]
        found.append(or_(*(c.contains(keyword, autoescape=True) for c in columns)))
    return found
