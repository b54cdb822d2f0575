"""Plans, changes and deletions of fleets, without a scheduler."""

from __future__ import annotations

from typing import Any

from tests.api.runs.conftest import Api, begin


def spec(**more: Any) -> dict[str, Any]:
    return {
        "configuration": {"type": "fleet", "name": "default", "nodes": "0..1", **more},
        "profile": {},
    }


def apply(api: Api, given: Any, current: Any = None, *, force: bool = False) -> Any:
    return api.ask(
        "fleets/apply", {"plan": {"spec": given, "current_resource": current}, "force": force}
    )


def test_a_fleet_that_is_the_same_is_seen_to_be(api: Api) -> None:
    made = apply(api, spec(idle_duration="1h"))

    plan = api.ask("fleets/get_plan", {"spec": spec(idle_duration=3600)})

    assert plan["effective_spec"] == plan["current_resource"]["spec"]
    assert plan["action"] == "update"
    assert plan["current_resource"]["id"] == made["id"]


def test_a_fleet_changes_where_it_can_and_is_made_anew_otherwise(api: Api) -> None:
    made = apply(api, spec())

    wider = apply(api, spec(nodes="0..3"), made)
    assert wider["spec"]["configuration"]["nodes"] == {"min": 0, "max": 3}
    assert api.ask("fleets/get_plan", {"spec": spec(idle_duration=5)})["action"] == "create"
    code, said = api.refusal(
        "fleets/apply", {"plan": {"spec": spec(idle_duration=5)}, "force": True}
    )
    assert (code, said[:28]) == ("error", "Cannot override active fleet")
    stale = {"plan": {"spec": spec(nodes=2), "current_resource": made}, "force": False}
    assert api.refusal("fleets/apply", stale)[1].startswith("Failed to apply plan.")
    assert apply(api, spec(nodes="0..2"), force=True)["id"] == made["id"]


def test_a_fleet_without_a_name_gets_one(api: Api) -> None:
    made = apply(api, spec(name=None))

    assert "-" in made["name"]
    assert made["spec"]["configuration"]["name"] == made["name"]


def test_a_fleet_needs_nodes_and_a_good_name(api: Api) -> None:
    for given, said in (
        (spec(nodes=None), "One of `nodes` and `ssh_config` must be specified"),
        (spec(name="A"), "Resource name should match regex '^[a-z][a-z0-9-]{1,40}$'"),
        (spec(ssh_config={"hosts": ["x"]}), "SSH fleets: not supported by Casemate"),
    ):
        assert api.refusal("fleets/get_plan", {"spec": given}) == ("error", said)


def test_a_deleted_fleet_is_on_its_way_out_at_once(api: Api) -> None:
    made = apply(api, spec())

    assert api.ask("fleets/delete", {"names": ["default", "nobody"]}) is None

    assert api.ask("fleets/get", {"id": made["id"]})["status"] == "terminating"
    code, _ = api.refusal("fleets/apply", {"plan": {"spec": spec()}, "force": True})
    assert code == "error"


def test_a_fleet_in_use_is_not_deleted(api: Api, vms: Any) -> None:
    api.fleet()
    host = begin(vms, boots=False)
    try:
        api.run("true", name="one")
        api.until("one", "provisioning")
        code, said = api.refusal("fleets/delete", {"names": ["default"]})
        instances = {"name": "default", "instance_nums": [0]}
        assert api.refusal("fleets/delete_instances", instances)[0] == "error"
    finally:
        host.end()

    assert (code, said) == ("error", "Failed to delete fleet default. Fleet is in use.")


def test_fleets_and_instances_are_listed_across_projects(api: Api) -> None:
    apply(api, spec())
    apply(api, spec(name="second"))

    newest = api.ask("/api/fleets/list", {"limit": 1})
    cursor = {"prev_created_at": newest[0]["created_at"], "prev_id": newest[0]["id"]}

    assert newest[0]["name"] == "second"
    assert [each["name"] for each in api.ask("/api/fleets/list", cursor)] == ["default"]
    assert [each["name"] for each in api.ask("fleets/list")] == ["default", "second"]
    assert api.ask("/api/instances/list") == []
    assert api.ask("/api/instances/list", {"project_names": ["main"], "only_active": True}) == []
    assert api.refusal("instances/get", {"id": newest[0]["id"]})[0] == "resource_not_exists"
    assert api.refusal("fleets/get", {})[1] == "name or id must be specified"


def test_a_fleet_that_fits_nothing_has_no_offers(api: Api) -> None:
    plan = api.ask("fleets/get_plan", {"spec": spec(resources={"cpu": 4000})})

    assert (plan["offers"], plan["total_offers"], plan["max_offer_price"]) == ([], 0, None)
