"""The runs interface of dstack's clients: what is open to all, users, projects, and how this surface refuses."""

from __future__ import annotations

from typing import Any

from flask import Response, current_app, jsonify, request

from core.errors import Unauthenticated
from rest.access import caller, public
from rest.blueprint import Blueprint
from runs import access, answers, refusals, schemas
from runs.people import Page
from runs.service import Runs

server = Blueprint("runs_server", __name__)
users = Blueprint("runs_users", __name__, url_prefix="/api/users")
projects = Blueprint("runs_projects", __name__, url_prefix="/api/projects")


def service() -> Runs:
    """The service of this application."""
    found: Runs = current_app.extensions["runs"]
    return found


def refusal(message: str, status: int, error: Exception) -> Response:
    """A refusal in the bodies that dstack's clients know."""
    if isinstance(error, Unauthenticated):
        if not request.headers.get("Authorization"):
            return _refused(401, "Not authenticated")
        return _refused(403, {"msg": "Invalid token", "code": None})
    return _refused(*refusals.body(message, status, error))


def _refused(status: int, detail: Any) -> Response:
    response = jsonify({"detail": detail})
    response.status_code = status
    return response


def check_version() -> None:
    """Refuses a client of a newer version; for before_request of every blueprint of this surface."""
    access.check_version(
        request.headers.get("X-API-VERSION"), current_app.extensions["runs"].config.runs.api_version
    )


def _token() -> str:
    """The token that the request came with."""
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return given.strip()
    return request.headers.get("X-Api-Key", "")


# Open to all -----------------------------------------------------------------------------------


@server.post("/api/server/get_info")
@server.response(200, answers.ServerInfo)
@public
def get_info() -> Any:
    """The level of dstack's interface that this service answers."""
    return jsonify({"server_version": service().config.runs.api_version})


@server.get("/healthcheck")
@server.response(200, answers.Health)
@public
def healthcheck() -> Any:
    """Whether the service answers."""
    return jsonify({"status": "running"})


@server.post("/api/auth/list_providers")
@server.response(200, answers.EMPTY)
@public
def list_providers() -> Any:
    """Ways to sign in by a browser: none."""
    return jsonify([])


@server.post("/api/auth/get_next_redirect")
@public
def get_next_redirect() -> Any:
    """The next step of signing in by a browser."""
    raise refusals.unsupported("sign-in by a browser")


# Users -----------------------------------------------------------------------------------------


@users.post("/list")
@users.arguments(schemas.ListUsers)
@users.response(200, {"anyOf": [{"type": "array", "items": answers.User}, answers.UsersPage]})
def list_users(asked: dict[str, Any]) -> Any:
    """Users: all of them to an admin, oneself to others."""
    total, found = service().people.users(caller(), Page(**asked))
    return jsonify({"total_count": total, "users": found} if asked["return_total_count"] else found)


@users.post("/get_my_user")
@users.response(200, answers.UserWithCreds)
def get_my_user() -> Any:
    """The caller with token and key pair."""
    return jsonify(service().people.me(caller(), _token()))


@users.post("/get_user")
@users.arguments(schemas.Username)
@users.response(200, answers.UserWithCreds)
def get_user(asked: dict[str, Any]) -> Any:
    """A user; for admins."""
    return jsonify(service().people.user(caller(), asked["username"]))


@users.post("/create")
@users.arguments(schemas.UserFields)
@users.response(200, answers.User)
def create_user(asked: dict[str, Any]) -> Any:
    """Makes a user; for admins."""
    made = service().people.create_user(
        caller(), asked["username"], asked["global_role"], asked["email"], asked["active"]
    )
    return jsonify(made)


@users.post("/update")
@users.arguments(schemas.UserFields)
@users.response(200, answers.User)
def update_user(asked: dict[str, Any]) -> Any:
    """Changes a user; for admins."""
    changed = service().people.update_user(
        caller(), asked["username"], asked["global_role"], asked["email"], asked["active"]
    )
    return jsonify(changed)


@users.post("/delete")
@users.arguments(schemas.UserNames)
@users.response(200, answers.NOTHING)
def delete_users(asked: dict[str, Any]) -> Any:
    """Removes users; for admins."""
    service().people.delete_users(caller(), asked["users"])
    return jsonify(None)


@users.post("/refresh_token")
@users.arguments(schemas.Username)
@users.response(200, answers.UserWithCreds)
def refresh_token(asked: dict[str, Any]) -> Any:
    """A new token; those that were issued here before end."""
    return jsonify(service().people.refresh_token(caller(), asked["username"]))


@users.post("/refresh_ssh_key")
@users.arguments(schemas.Username)
@users.response(200, answers.UserWithCreds)
def refresh_ssh_key(asked: dict[str, Any]) -> Any:
    """A new key pair."""
    return jsonify(service().people.refresh_ssh_key(caller(), asked["username"]))


@users.post("/public_keys/list")
@users.response(200, answers.PublicKey(many=True))
def list_public_keys() -> Any:
    """The public keys that the caller added."""
    return jsonify(service().people.public_keys(caller()))


@users.post("/public_keys/add")
@users.arguments(schemas.NewPublicKey)
@users.response(200, answers.PublicKey)
def add_public_key(asked: dict[str, Any]) -> Any:
    """Adds a public key of the caller."""
    return jsonify(service().people.add_public_key(caller(), asked["key"], asked["name"]))


@users.post("/public_keys/delete")
@users.arguments(schemas.KeyIds)
@users.response(200, answers.NOTHING)
def delete_public_keys(asked: dict[str, Any]) -> Any:
    """Removes public keys of the caller."""
    service().people.delete_public_keys(caller(), asked["ids"])
    return jsonify(None)


# Projects --------------------------------------------------------------------------------------


@projects.post("/list")
@projects.arguments(schemas.ListProjects)
@projects.response(
    200, {"anyOf": [{"type": "array", "items": answers.Project}, answers.ProjectsPage]}
)
def list_projects(asked: dict[str, Any]) -> Any:
    """The projects that the caller sees."""
    joined, username = asked.pop("include_not_joined"), asked.pop("username")
    page = Page(**asked)
    total, found = service().people.projects(
        caller(), page, include_not_joined=joined, username=username
    )
    return jsonify({"total_count": total, "projects": found} if page.return_total_count else found)


@projects.post("/list_only_no_fleets")
@projects.response(200, answers.Project(many=True))
def list_only_no_fleets() -> Any:
    """The caller's projects without a fleet."""
    return jsonify(service().people.projects_without_fleets(caller()))


@projects.post("/create")
@projects.arguments(schemas.NewProject)
@projects.response(200, answers.Project)
def create_project(asked: dict[str, Any]) -> Any:
    """Makes a project of the caller."""
    made = service().people.create_project(caller(), asked["project_name"], asked["is_public"])
    return jsonify(made)


@projects.post("/delete")
@projects.arguments(schemas.ProjectNames)
@projects.response(200, answers.NOTHING)
def delete_projects(asked: dict[str, Any]) -> Any:
    """Removes projects that are empty."""
    service().people.delete_projects(caller(), asked["projects_names"])
    return jsonify(None)


@projects.post("/<project_name>/get")
@projects.response(200, answers.Project)
def get_project(project_name: str) -> Any:
    """A project with its members."""
    return jsonify(service().people.project(caller(), project_name))


@projects.post("/<project_name>/update")
@projects.arguments(schemas.ProjectChange)
@projects.response(200, answers.Project)
def update_project(asked: dict[str, Any], project_name: str) -> Any:
    """Changes a project."""
    changed = service().people.update_project(caller(), project_name, asked["is_public"])
    return jsonify(changed)


@projects.post("/<project_name>/add_members")
@projects.arguments(schemas.Members)
@projects.response(200, answers.Project)
def add_members(asked: dict[str, Any], project_name: str) -> Any:
    """Gives users roles in a project."""
    return jsonify(service().people.add_members(caller(), project_name, asked["members"]))


@projects.post("/<project_name>/set_members")
@projects.arguments(schemas.Members)
@projects.response(200, answers.Project)
def set_members(asked: dict[str, Any], project_name: str) -> Any:
    """Makes users all members of a project."""
    return jsonify(service().people.set_members(caller(), project_name, asked["members"]))


@projects.post("/<project_name>/remove_members")
@projects.arguments(schemas.MemberNames)
@projects.response(200, answers.Project)
def remove_members(asked: dict[str, Any], project_name: str) -> Any:
    """Takes users out of a project."""
    return jsonify(service().people.remove_members(caller(), project_name, asked["usernames"]))
