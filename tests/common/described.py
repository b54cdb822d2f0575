"""Whether calls and their answers are what the OpenAPI document of their surface says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jsonschema_rs
from werkzeug.test import TestResponse


@dataclass
class Described:
    """A document, and what was checked against it: method and path of each operation, with the status."""

    document: Mapping[str, Any]
    seen: set[tuple[str, str, int]] = field(default_factory=set)
    _validators: dict[str, Any] = field(default_factory=dict)

    def check(self, answer: TestResponse, sent: Any = None) -> None:
        """Fails where an answer in JSON, or a request that was taken, has another form than the document says."""
        method, status = answer.request.method.lower(), answer.status_code
        path = self._path(answer.request.path)
        if path is None or method not in self.document["paths"][path]:
            return
        operation = self.document["paths"][path][method]
        if status == 200 and sent is not None and "requestBody" in operation:
            self._fits(f"request of {path}", operation["requestBody"], sent)
        told = operation["responses"].get(str(status), operation["responses"]["default"])
        if "$ref" in told:
            told = self.document["components"]["responses"][told["$ref"].rpartition("/")[2]]
        self._fits(f"{status} of {method} {path}", told, answer.get_json())
        self.seen.add((method, path, status))

    def _path(self, asked: str) -> str | None:
        """The path of the document that a request is for: one without parameters before others."""
        fitting = [
            path
            for path in self.document["paths"]
            if re.fullmatch(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(path)), asked)
        ]
        return min(fitting, key=lambda path: path.count("{"), default=None)

    def _fits(self, what: str, told: Mapping[str, Any], body: Any) -> None:
        if what not in self._validators:
            schema = told["content"]["application/json"]["schema"]
            whole = {**schema, "components": self.document["components"]}
            self._validators[what] = jsonschema_rs.Draft202012Validator(
                whole, validate_formats=True
            )
        wrong = [
            f"{each.instance_path}: {each.message}"
            for each in self._validators[what].iter_errors(body)
        ]
        assert not wrong, (what, wrong[:5])
