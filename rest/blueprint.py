"""Blueprints of the REST surfaces: flask-smorest's, whose bad arguments are refusals like any other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

import flask_smorest
from marshmallow import Schema, ValidationError
from webargs.flaskparser import FlaskParser
from werkzeug.datastructures import CombinedMultiDict

from core import prpc
from core.errors import Invalid

# What webargs calls the places of a request.
_PLACES = dict.fromkeys(("json", "form", "files", "json_or_form", "multipart"), "body")
# Bytes of JSON that may be something else than an object, and then come to the schema all the same.
LITTLE = 1000


_View = TypeVar("_View", bound=Callable[..., Any])


class BadArguments(Invalid):
    """What a request said breaks its schema; `place` is body, query, path or headers.

    `malformed` says that the body is no JSON at all.  The names in `fields` have dots between their steps, and
    `given` is all that stood in that place.
    """

    def __init__(
        self,
        place: str,
        fields: Mapping[str, list[str]],
        *,
        malformed: bool = False,
        given: object = None,
    ) -> None:
        told = "; ".join(f"{name or place}: {' '.join(said)}" for name, said in fields.items())
        super().__init__(told, fields)
        self.place = place
        self.malformed = malformed
        self.given = given


class Arguments(FlaskParser):
    """Reads arguments by a marshmallow schema."""

    DEFAULT_VALIDATION_STATUS = 400
    __location_map__ = {**FlaskParser.__location_map__, "multipart": "load_multipart"}  # noqa: RUF012 (webargs' own form)

    def load_multipart(self, req: Any, schema: Schema) -> Any:
        """The fields and the files of a form."""
        return self._makeproxy(CombinedMultiDict([req.files, req.form]), schema)

    def handle_error(
        self,
        error: ValidationError,
        req: Any,
        schema: Schema,
        *,
        error_status_code: int | None,
        error_headers: Mapping[str, str] | None,
    ) -> NoReturn:
        """Turns marshmallow's messages into the refusal."""
        # One place is read at a time.
        (place, said), *_ = cast(dict[str, Any], error.messages).items()
        raise BadArguments(_PLACES.get(place, place), dict(_flat(said)), given=error.data)

    def load_json(self, req: Any, schema: Schema) -> Any:
        """The body, which must say that it is JSON: curl's `-d` alone calls it a form, and all of it would be lost."""
        if req.get_data() and not req.is_json:
            raise BadArguments("body", {"": ["needs the header Content-Type: application/json"]})
        return super().load_json(req, schema)

    def _raw_load_json(self, req: Any) -> Any:
        # Webargs alone knows no bounds of depth or number.
        data = req.get_data()
        is_object = data.lstrip()[:1] == b"{"
        if len(data) > LITTLE and not is_object:
            raise BadArguments("body", {"": ["must be an object"]})
        try:
            return prpc.read_json(data) if is_object else super()._raw_load_json(req)
        except Invalid as error:
            raise BadArguments("body", {"": [error.message]}, malformed=True) from None
        except RecursionError:
            raise BadArguments("body", {"": ["is nested too deeply"]}, malformed=True) from None

    def _handle_invalid_json_error(
        self, error: Any, req: Any, *args: Any, **kwargs: Any
    ) -> NoReturn:
        raise BadArguments("body", {"": ["is not JSON"]}, malformed=True)


class Blueprint(flask_smorest.Blueprint):  # type: ignore[misc] # flask-smorest has no types
    """A blueprint that its surface's document describes."""

    ARGUMENTS_PARSER = Arguments()
    DEFAULT_LOCATION_CONTENT_TYPE_MAPPING = {  # noqa: RUF012 (flask-smorest's own form)
        **flask_smorest.Blueprint.DEFAULT_LOCATION_CONTENT_TYPE_MAPPING,
        "multipart": "multipart/form-data",
    }

    if TYPE_CHECKING:
        # flask-smorest has no types: without these every view would count as untyped.
        def arguments(self, *args: Any, **kwargs: Any) -> Callable[[_View], _View]: ...
        def response(self, *args: Any, **kwargs: Any) -> Callable[[_View], _View]: ...
        def alt_response(self, *args: Any, **kwargs: Any) -> Callable[[_View], _View]: ...
        def route(self, *args: Any, **kwargs: Any) -> Callable[[_View], _View]: ...
        def get(self, *args: Any, **kwargs: Any) -> Callable[[_View], _View]: ...
        def post(self, *args: Any, **kwargs: Any) -> Callable[[_View], _View]: ...
        def put(self, *args: Any, **kwargs: Any) -> Callable[[_View], _View]: ...
        def patch(self, *args: Any, **kwargs: Any) -> Callable[[_View], _View]: ...
        def delete(self, *args: Any, **kwargs: Any) -> Callable[[_View], _View]: ...
        def before_request(self, view: _View) -> _View: ...


def _flat(said: Any, name: str = "") -> Iterator[tuple[str, list[str]]]:
    """Marshmallow's nested messages by dotted names; those of a whole object under the object's own name."""
    if isinstance(said, dict):
        for key, inner in said.items():
            step = "" if key == "_schema" else str(key)
            yield from _flat(inner, ".".join(filter(None, (name, step))))
    else:
        yield name, [str(each) for each in (said if isinstance(said, list) else [said])]
