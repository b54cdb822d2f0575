"""The names of apps and VMs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from apps import names

ID = "0f8fad5b-d9cb-469f-a165-70867728950e"


def vm(**fields: object) -> SimpleNamespace:
    values = {"id": ID, "number": 7, "app_id": "ab" * 20, "instance_id": "cd" * 20, "name": "web"}
    return SimpleNamespace(**(values | fields))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("ab" * 20, "ab" * 20),
        ("0x" + "AB" * 20, "ab" * 20),
        ("app_" + "ab" * 20, "ab" * 20),
        ("app_0x" + "ab" * 20, "ab" * 20),
        ("ab" * 19, None),
        ("zz" * 20, None),
        ("", None),
    ],
)
def test_an_app_id_in_its_spellings(text: str, wanted: str | None) -> None:
    assert names.bare_app_id(text) == wanted


@pytest.mark.parametrize(
    "text",
    [ID, ID.upper(), ID.replace("-", ""), names.hashed("cvm", ID), "7", "app_" + "ab" * 20,
     "instance_" + "cd" * 20, "cd" * 20, "web"],
)  # fmt: skip
def test_a_vm_answers_to_each_of_its_names(text: str) -> None:
    other = vm(id="1" * 36, number=8, app_id="11" * 20, instance_id=None, name="other")

    assert [each.id for each in names.named(text, [other, vm()])] == [ID]


@pytest.mark.parametrize("text", ["", "07", "-7", "8", "webs", "cvm_", "None"])
def test_what_names_nothing(text: str) -> None:
    assert names.named(text, [vm()]) == []


def test_a_name_cannot_hide_the_id_of_another_vm() -> None:
    impostor = vm(id="2" * 36, number=8, name="7", app_id="22" * 20, instance_id=None)

    assert [each.number for each in names.named("7", [impostor, vm()])] == [7]


def test_equal_names_are_all_found() -> None:
    assert len(names.named("web", [vm(), vm(id="3" * 36, number=9)])) == 2


def test_a_moment_is_written_in_utc_with_milliseconds() -> None:
    assert names.moment(1_700_000_000_123) == "2023-11-14T22:13:20.123Z"
