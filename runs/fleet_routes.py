"""Fleets and instances of the runs interface."""

from __future__ import annotations

from typing import Any

from flask import jsonify

from rest.access import caller
from rest.blueprint import Blueprint
from runs import answers, schemas
from runs.fleets import ListQuery
from runs.routes import service

blueprint = Blueprint("runs_fleets", __name__)
PROJECT = "/api/project/<project_name>/fleets"


@blueprint.post("/api/fleets/list")
@blueprint.arguments(schemas.ListFleets)
@blueprint.response(200, answers.Fleet(many=True))
def list_fleets(asked: dict[str, Any]) -> Any:
    """The fleets of all projects that the caller sees, or of one."""
    project_name, _ = asked.pop("project_name"), asked.pop("include_imported")
    return jsonify(service().fleets.search(caller(), project_name, ListQuery(**asked)))


@blueprint.post(f"{PROJECT}/list")
@blueprint.arguments(schemas.ListProjectFleets)
@blueprint.response(200, answers.Fleet(many=True))
def list_project_fleets(_: dict[str, Any], project_name: str) -> Any:
    """The fleets of a project."""
    return jsonify(service().fleets.of_project(caller(), project_name))


@blueprint.post(f"{PROJECT}/get")
@blueprint.arguments(schemas.GetFleet)
@blueprint.response(200, answers.Fleet)
def get_fleet(asked: dict[str, Any], project_name: str) -> Any:
    """A fleet by name or id."""
    return jsonify(service().fleets.get(caller(), project_name, asked["name"], asked["id"]))


@blueprint.post(f"{PROJECT}/get_plan")
@blueprint.arguments(schemas.GetFleetPlan)
@blueprint.response(200, answers.FleetPlan)
def get_fleet_plan(asked: dict[str, Any], project_name: str) -> Any:
    """What applying a fleet would do."""
    return jsonify(service().fleets.plan(caller(), project_name, asked["spec"]))


@blueprint.post(f"{PROJECT}/apply")
@blueprint.arguments(schemas.ApplyFleetPlan)
@blueprint.response(200, answers.Fleet)
def apply_fleet(asked: dict[str, Any], project_name: str) -> Any:
    """Makes or changes a fleet."""
    plan = asked["plan"]
    made = service().fleets.apply(
        caller(), project_name, plan["spec"], plan["current_resource"], asked["force"]
    )
    return jsonify(made)


@blueprint.post(f"{PROJECT}/delete")
@blueprint.arguments(schemas.FleetNames)
@blueprint.response(200, answers.NOTHING)
def delete_fleets(asked: dict[str, Any], project_name: str) -> Any:
    """Removes fleets; their VMs end a little later."""
    service().fleets.delete(caller(), project_name, asked["names"])
    return jsonify(None)


@blueprint.post(f"{PROJECT}/delete_instances")
@blueprint.arguments(schemas.InstanceNumbers)
@blueprint.response(200, answers.NOTHING)
def delete_instances(asked: dict[str, Any], project_name: str) -> Any:
    """Removes instances of a fleet."""
    service().fleets.delete_instances(caller(), project_name, asked["name"], asked["instance_nums"])
    return jsonify(None)


@blueprint.post("/api/instances/list")
@blueprint.arguments(schemas.ListInstances)
@blueprint.response(200, answers.Instance(many=True))
def list_instances(asked: dict[str, Any]) -> Any:
    """The instances of all projects that the caller sees."""
    projects, fleets = asked.pop("project_names"), asked.pop("fleet_ids")
    del asked["include_imported"]
    found = service().fleets.instances(caller(), projects, fleets, ListQuery(**asked))
    return jsonify(found)


@blueprint.post("/api/project/<project_name>/instances/get")
@blueprint.arguments(schemas.InstanceId)
@blueprint.response(200, answers.Instance)
def get_instance(asked: dict[str, Any], project_name: str) -> Any:
    """An instance by its id."""
    return jsonify(service().fleets.instance(caller(), project_name, asked["id"]))


@blueprint.post("/api/project/<project_name>/instances/get_instance_health_checks")
@blueprint.arguments(schemas.HealthQuery)
@blueprint.response(200, answers.HealthChecks)
def get_health_checks(asked: dict[str, Any], project_name: str) -> Any:
    """The health checks of an instance, of which there are none."""
    service().fleets.instance_numbered(
        caller(), project_name, asked["fleet_name"], asked["instance_num"]
    )
    return jsonify({"health_checks": []})
