"""What of a run's spec breaks a rule across fields, or is not done here (pure).

Source: runs.md section 5.
"""

from __future__ import annotations

import re
import shlex

from core.errors import Invalid
from runs import refusals
from runs.specs import NAME_RULE, Spec, check_size, is_name

# dstack's word for a value that the server keeps.
_SECRET = re.compile(r"\$\{\{\s*secrets\.")


def check(spec: Spec) -> None:
    """Refuses a run's spec for the first rule that it breaks."""
    check_size(spec, "run_spec")
    _check_names(spec)
    _check_repo(spec)
    _check_offered(spec)
    _check_values(spec["configuration"])
    _check_command(spec["configuration"])


def _check_names(spec: Spec) -> None:
    for name in (spec["run_name"], spec["configuration"]["name"]):
        if name is not None and not is_name(name):
            raise Invalid(NAME_RULE)


def _check_repo(spec: Spec) -> None:
    if (spec["repo_id"] is None) != (spec["repo_data"] is None):
        raise Invalid("repo_id and repo_data must be set together or not at all")
    if (spec["repo_data"] or {}).get("repo_type", "virtual") != "virtual":
        raise refusals.unsupported("repositories")


def _check_offered(spec: Spec) -> None:
    configuration, profile = spec["configuration"], spec["profile"] or {}
    for what, given in (
        ("volumes", configuration["volumes"]),
        ("repos", configuration["repos"]),
        ("files", configuration["files"] or spec["file_archives"]),
        ("groups", configuration.get("groups")),
        ("docker", configuration["docker"]),
        ("gateway", configuration.get("gateway")),
        ("model", configuration.get("model")),
        ("schedule", configuration["schedule"] or profile.get("schedule")),
        ("instances", configuration["instances"] or profile.get("instances")),
    ):
        if given:
            raise refusals.unsupported(what)


def _check_values(configuration: Spec) -> None:
    unset = [name for name, value in configuration["env"].items() if not isinstance(value, str)]
    if unset:
        raise Invalid(f"env: {', '.join(unset)} must be given a value")
    texts = [*configuration["env"].values(), *(configuration["registry_auth"] or {}).values()]
    if any(_SECRET.search(text) for text in texts):
        # They would reach the job, or a registry, as they are written.
        raise refusals.unsupported("secrets")


def _check_command(configuration: Spec) -> None:
    try:
        shlex.split(configuration["entrypoint"] or "")
    except ValueError as error:
        raise Invalid(f"entrypoint: {error}; quote it as for a shell") from None
    working_dir = configuration["working_dir"]
    if working_dir is not None and not working_dir.startswith("/"):
        raise Invalid("working_dir must be an absolute path")
