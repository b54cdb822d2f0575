"""What clients read of rows."""

from __future__ import annotations

from models.account import Project
from models.fleet import Fleet, Instance
from runs import description
from runs.lifecycle import Status
from runs.sizes import Size

SIZE = Size("small", cpu=1, memory_mib=1024, disk_gb=10, price=0.0)


def test_an_instance_is_where_the_host_says_as_soon_as_it_has_a_vm() -> None:
    fleet = Fleet(id="f", name="pool", project=Project(name="main"))
    row = Instance(
        id="i", num=0, name="pool-0", size=SIZE.as_json(), status=Status.PENDING, created_us=0
    )

    waiting = description.instance(row, fleet, "runs.example.com")
    row.vm_id = "vm"
    there = description.instance(row, fleet, "runs.example.com")

    assert (waiting["hostname"], there["hostname"]) == (None, "runs.example.com")
