"""`/openapi.json` (OpenAPI 3.1) and `GET /`: what this server can do, out of the operations and their types.

The document is that of the live server: it names its handlers, and what the payload of each looks like.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from zoneinfo import available_timezones

import msgspec

from orchestrator import __version__
from orchestrator.api.health import Health  # noqa: TC001 the type of a body, read from the annotation
from orchestrator.api.operations import Answer, Call, Empty, Operation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from orchestrator.jobs.registry import Handler, Registry

_REF = "#/components/schemas/{name}"


class Problem(msgspec.Struct, frozen=True):
    """RFC 9457, with `error`, which upstream's clients read; other members say more."""

    type: str
    title: str
    status: int
    detail: str
    error: str


class Root(msgspec.Struct, frozen=True):
    """Who this is. `endpoints` are names and paths."""

    message: str
    name: str
    version: str
    endpoints: dict[str, str]


async def root(_: Call) -> Root:
    """Who this is."""
    return Root("Job Server API", "orchestrator", __version__, _ENDPOINTS)


async def _health(_: Call) -> Health:
    raise NotImplementedError


async def _text(_: Call) -> str:
    raise NotImplementedError


# Handlers that are never called: what they stand for is served elsewhere.
_NOT_HERE = (_health, _text)


_ENDPOINTS = {
    "health": "/health",
    "live": "/health/live",
    "startup": "/health/startup",
    "migrations": "/api/migrations",
    "jobs": "/api/jobs",
    "events": "/api/events",
    "queueStats": "/api/jobs/queue/stats",
    "jobResults": "/api/jobs/results",
    "serverStatus": "/api/jobs/server-status",
    "metrics": "/metrics",
    "openapi": "/openapi.json",
}


def about(operations: Callable[[], Sequence[Operation]]) -> tuple[Operation, ...]:
    """The operations that tell of the server; `operations` are all those that the document is to hold."""
    kept: dict[int, dict[str, Any]] = {}

    async def document(call: Call) -> dict[str, Any]:
        registry = call.backend.registry
        made_for = 0 if registry is None else len(registry.handlers)  # it only ever grows, while modules load
        if made_for not in kept:
            kept[made_for] = build((*operations(), *ELSEWHERE), registry)
        return kept[made_for]

    return (
        Operation("GET", "/openapi.json", document, "This document", "about", {200: Answer("OpenAPI 3.1.")}),
        Operation("GET", "/", root, "Who this is", "about", {200: Answer("A browser gets the status page.")}),
    )


_UP = {200: Answer("It serves."), 503: Answer("It does not serve now.")}
# Routes that stand before the gate; they are served without any of this, from the first moment on.
ELSEWHERE = (
    Operation("GET", "/health", _health, "Whether it serves", "health", _UP),
    Operation("GET", "/health/ready", _health, "Whether it serves, for a readiness probe", "health", _UP),
    Operation("GET", "/health/live", _health, "Whether the process lives", "health", {200: Answer("It does.")}),
    Operation("GET", "/health/startup", _health, "Whether the start is done", "health", _UP),
    Operation(
        "GET",
        "/health/events",
        _text,
        "The start as it happens",
        "health",
        {200: Answer("Server-sent events: state, end.", content_type="text/event-stream")},
    ),
    Operation(
        "GET",
        "/metrics",
        _text,
        "Metrics for Prometheus",
        "about",
        {200: Answer("The text format, or OpenMetrics where it is asked for.", content_type="text/plain")},
        description="Answers in every phase. With API_TOKEN it asks for the token.",
    ),
)

_OPEN = ("/health",)


def build(operations: Sequence[Operation], registry: Registry | None) -> dict[str, Any]:
    """The document of these operations, for a server with these handlers."""
    kinds = _kinds(operations)
    schemas, components = msgspec.json.schema_components(kinds, schema_hook=_any_value, ref_template=_REF)
    by_kind = dict(zip(map(repr, kinds), schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.template, {})[operation.method.lower()] = _described(operation, by_kind)
    _complete(components, registry)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "orchestrator",
            "version": __version__,
            "description": "A durable queue in Postgres behind an HTTP API, and the start that leads to it.",
        },
        "paths": paths,
        "components": {
            "schemas": _portable(components),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": "API_TOKEN"}},
        },
    }


def _any_value(kind: type) -> dict[str, Any]:
    """The schema of `object`, by which our types mean any JSON; the others are known to msgspec."""
    if kind is object:
        return {"description": "Any JSON."}
    raise NotImplementedError


def _kinds(operations: Iterable[Operation]) -> list[Any]:
    found: dict[str, Any] = {repr(Problem): Problem}
    for operation in operations:
        for kind in (operation.body, _json_type(operation)):
            if kind is not None:
                found[repr(kind)] = kind
    return list(found.values())


def _json_type(operation: Operation) -> Any:
    """The type of the operation's answers in JSON; None where they are none."""
    if any(answer.content_type != "application/json" for answer in operation.answers.values()):
        return None
    return None if operation.body_type is type(None) else operation.body_type


def _described(operation: Operation, schemas: dict[str, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": _identity(operation),
        "summary": operation.summary,
        "tags": [operation.tag],
    }
    if operation.description:
        described["description"] = operation.description
    if operation.template not in _OPEN and not operation.template.startswith("/health/"):
        described["security"] = [{"token": []}, {}]
    parameters = [
        *_parameters(operation.parameters, "path"),
        *_parameters(operation.query, "query"),
        *_parameters(operation.headers, "header"),
    ]
    if parameters:
        described["parameters"] = parameters
    if operation.body is not None:
        described["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schemas[repr(operation.body)]}},
        }
    described["responses"] = {
        **{
            str(status): _answer(answer, _json_type(operation), schemas) for status, answer in operation.answers.items()
        },
        **{str(status): _problem(text, schemas) for status, text in operation.refusals.items()},
        **_common(operation, schemas),
    }
    return described


def _identity(operation: Operation) -> str:
    words = re.findall(r"[A-Za-z0-9]+", operation.template.removeprefix("/api/"))
    return "_".join([operation.method.lower(), *words])


def _parameters(kind: type[msgspec.Struct], place: str) -> list[dict[str, Any]]:
    if kind is Empty:
        return []
    (schema,), components = msgspec.json.schema_components([kind], ref_template=_REF)
    whole = components[schema["$ref"].rpartition("/")[2]]
    rows = []
    for name, found in whole.get("properties", {}).items():
        # In a query there is no null: what is left out is not there.
        choices = [one for one in found.get("anyOf", [found]) if one.get("type") != "null"]
        shown = {key: value for key, value in (choices[0] if choices else found).items() if key != "default"}
        if isinstance(shown.get("enum"), list):
            shown["enum"] = [one for one in shown["enum"] if one is not None]
        if found.get("default") is not None:
            shown["default"] = found["default"]
        is_required = place == "path" or name in whole.get("required", ())
        rows.append({"name": name, "in": place, "required": is_required, "schema": _portable(shown)})
    return rows


def _answer(answer: Answer, kind: Any, schemas: dict[str, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {"description": answer.description}
    if answer.headers:
        described["headers"] = {
            name: {"description": text, "required": True, "schema": {"type": "string"}}
            for name, text in answer.headers.items()
        }
    if answer.content_type != "application/json":
        described["content"] = {answer.content_type: {"schema": {"type": "string"}}}
    elif kind is not None:
        described["content"] = {answer.content_type: {"schema": schemas[repr(kind)]}}
    return described


def _problem(text: str, schemas: dict[str, Any]) -> dict[str, Any]:
    return {"description": text, "content": {"application/problem+json": {"schema": schemas[repr(Problem)]}}}


def _common(operation: Operation, schemas: dict[str, Any]) -> dict[str, Any]:
    """The problems of every operation behind the gate, but for those that it describes itself."""
    if operation.handle in _NOT_HERE and operation.template != "/metrics":
        return {"description": "Any JSON."}
    texts: dict[int, str] = {401: "The token is missing or wrong.", 403: "Not from there: another host or origin."}
    if operation.handle not in _NOT_HERE:
        texts[503] = "The service, or its database, is not ready; try again."
        texts[400] = "The request is not usable."
        if operation.query is not Empty or operation.body is not None or operation.method != "GET":
            texts[operation.invalid] = "A value is not usable; the problem names the field."
    if operation.parameters is not Empty:
        texts[404] = "There is no such thing."
    if operation.method != "GET":
        texts |= {
            403: "Changes are refused: no API_TOKEN is set, or the page that asks is of another origin.",
            408: "The body did not arrive in time.",
            413: "The body is larger than 1 MiB.",
            415: "The body is not JSON.",
        }
    if operation.query is not Empty:
        texts[414] = "The query is too long."
    own = {*operation.answers, *operation.refusals}
    return {str(status): _problem(text, schemas) for status, text in sorted(texts.items()) if status not in own}


# What the types cannot say of several fields at once.
_CONDITIONS: Mapping[str, Mapping[str, Any]] = {
    "NewJob": {
        "not": {
            "required": ["run_at", "delay_s"],
            "properties": {"run_at": {"type": "string"}, "delay_s": {"type": "number"}},
        }
    },
    "TriggerSchedule": {
        "anyOf": [
            {"required": ["schedule"], "properties": {"schedule": {"type": "string"}}},
            {"required": ["serverId"], "properties": {"serverId": {"type": "integer"}}},
        ]
    },
}


def _complete(components: dict[str, Any], registry: Registry | None) -> None:
    """Put in what only this server knows: its handlers, the schema of each payload, and the zones of its machine."""
    handlers = [] if registry is None else list(registry.handlers.values())
    names = [handler.name for handler in handlers]
    for name, component in components.items():
        component.update(_CONDITIONS.get(name, {}))
        for found in component.get("properties", {}).values():
            if found.pop("x-handlers", None) and names:
                found["enum"] = names
            if found.pop("x-zones", None):
                found["enum"] = sorted(available_timezones())
    if not handlers:
        return
    payloads, more = msgspec.json.schema_components(
        [handler.payload_type for handler in handlers], ref_template="#/components/schemas/payload.{name}"
    )
    components |= {f"payload.{name}": schema for name, schema in more.items()}
    for body, field in (("NewJob", "name"), ("PutSchedule", "job")):
        if body in components:
            _split_by_handler(components, body, field, list(zip(handlers, payloads, strict=True)))


def _split_by_handler(components: dict[str, Any], body: str, field: str, handlers: list[tuple[Handler, Any]]) -> None:
    """Make one schema for each handler of a body that names one in `field`: each has its own payload."""
    general = components[body]
    variants = []
    for handler, payload in handlers:
        variant = f"{body}.{re.sub(r'[^A-Za-z0-9._-]', '_', handler.name)}"
        required = [*general["required"], *([] if _may_be_empty(handler) else ["payload"])]
        properties = {**general["properties"], field: {"const": handler.name}, "payload": payload}
        components[variant] = {
            **general,
            "title": handler.name,
            "description": handler.doc,
            "properties": properties,
            "required": required,
        }
        variants.append({"$ref": _REF.format(name=variant)})
    components[body] = {"description": general.get("description", ""), "oneOf": variants}


def _may_be_empty(handler: Handler) -> bool:
    try:
        handler.decoder.decode(b"{}")
    except msgspec.ValidationError:
        return False
    return True


def _portable(schema: Any) -> Any:
    """The schema with patterns as ECMA 262 has them, where `$` is the end alone."""
    if isinstance(schema, dict):
        return {
            key: value.removesuffix(r"(?!\n)") if key == "pattern" and isinstance(value, str) else _portable(value)
            for key, value in schema.items()
        }
    return [_portable(one) for one in schema] if isinstance(schema, list) else schema
